"""Clocks and memory: paired step times, peak resident memory, this machine's matrix-product rate, fitted exponents."""

import ctypes
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from common.fast.pairs import Step


@dataclass(frozen=True)
class Paired:
    """Medians in seconds; ratios are theirs / ours, above 1 when ours is faster."""

    ours: float
    theirs: float
    ratio: float
    low: float
    high: float


def paired(ours: Step, theirs: Step, rounds: int, seconds: float = 0.0) -> Paired:
    """Both sides take turns, each first in half of the rounds, so that what else the machine does falls on both.

    A turn repeats a step until `seconds` have passed, so that short steps are not lost in the clock.
    """
    repeats = max(1, math.ceil(seconds / max(timed(ours), timed(theirs), 1e-6)))
    pairs = []
    for turn in range(rounds):
        found = {}
        for side, step in [("ours", ours), ("theirs", theirs)][:: 1 if turn % 2 else -1]:
            found[side] = timed(step, repeats)
        pairs.append((found["ours"], found["theirs"]))
    ratios = sorted(t / o for o, t in pairs)
    medians = [statistics.median(side) for side in zip(*pairs)]
    return Paired(medians[0], medians[1], statistics.median(ratios), ratios[0], ratios[-1])


def timed(step: Step, repeats: int = 1) -> float:
    """Seconds a step."""
    start = perf_counter()
    for _ in range(repeats):
        step()
    return (perf_counter() - start) / repeats


def peak_memory(arguments: Sequence[str]) -> int:
    """Bytes by which the resident set of a fresh process grows: `python -m benchmarks.speed --memory-of arguments`."""
    command = [sys.executable, "-m", "benchmarks.speed", "--memory-of", *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


class Resident:
    """Peak growth of this process's resident set since it was made (Linux).

    What was freed before goes back to the system first, or later use of it would be no growth.
    """

    def __init__(self) -> None:
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
        self.before = self._status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")

    def growth(self) -> int:
        return self._status("VmHWM") - self.before

    @staticmethod
    def _status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


NOMINAL = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # dense bfloat16 FLOP/s of the SXM cards (data sheets)
MATMULS = ((1024, 1024, 1024), (2048, 768, 3072), (2048, 3072, 768))


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of matrix products (on the CPU with this process's threads): the best of five bouts of three shapes."""
    return max(_rate(shape, device, dtype, seconds / len(MATMULS)) for shape in MATMULS)


def nominal_rate(card: str) -> float | None:
    """The vendor's dense bfloat16 FLOP/s for a card by its name, what MFU refers to; None when not known here."""
    return next((rate for name, rate in NOMINAL.items() if name in card), None)


def _rate(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    rows, inner, columns = shape if device.type == "cpu" else (4 * side for side in shape)
    a, b = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(inner, columns, device=device, dtype=dtype)

    def bout(products: int) -> float:
        start = perf_counter()
        for _ in range(products):
            last = torch.mm(a, b)
        last[0, 0].item()  # an accelerator has finished then
        return (perf_counter() - start) / products

    bout(3)
    repeats = max(1, round(seconds / 5 / bout(3)))
    return 2 * rows * inner * columns / min(bout(repeats) for _ in range(5))


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of log y against log x by least squares: y grows as x to this power."""
    u, v = ([math.log(value) for value in values] for values in (x, y))
    mean_u, mean_v = statistics.fmean(u), statistics.fmean(v)
    return sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v)) / sum((a - mean_u) ** 2 for a in u)

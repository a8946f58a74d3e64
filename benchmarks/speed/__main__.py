"""Paired step times and peak memory: python -m benchmarks.speed [--pairs vit-b16] [--rounds 7] [--json FILE]

Time: both sides in one process, taking turns, so that what else the machine does falls on both; the ratio is the median
of the rounds' ratios. Memory: the growth of the resident set over three steps, each side in a process of its own.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.speed.pairs import PAIRS


def seeded_step(name: str, side: Any, folder: Path) -> Any:
    """One side, built and fed under the same seed as the other."""
    torch.manual_seed(0)
    return PAIRS[name](side, folder)


def times(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Medians of both sides' step time in seconds, and of the ratio theirs / ours (above 1: ours is faster)."""
    theirs, ours = seeded_step(name, "theirs", folder), seeded_step(name, "ours", folder)
    first = theirs(), ours()
    if abs(first[0] - first[1]) > 2e-3 * abs(first[0]):
        raise SystemExit(f"error: {name}: the first losses differ ({first[0]} and {first[1]}): not the same model")
    pairs = []
    for turn in range(rounds):
        seconds = {}
        for side, step in [("ours", ours), ("theirs", theirs)][:: 1 if turn % 2 else -1]:
            start = perf_counter()
            step()
            seconds[side] = perf_counter() - start
        pairs.append((seconds["ours"], seconds["theirs"]))
    ratios = sorted(t / o for o, t in pairs)
    return {
        "ours_s": statistics.median(o for o, _ in pairs),
        "theirs_s": statistics.median(t for _, t in pairs),
        "throughput_ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "first_losses": first,
    }


def peak_memory(name: str, side: str, folder: Path) -> int:
    """Bytes by which the resident set of a fresh process grows while it builds the model and trains three steps."""
    command = [sys.executable, "-m", "benchmarks.speed", "--memory-of", name, side, str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_memory(name: str, side: Any, folder: Path) -> None:
    """What the child process does: imports first, so that only model and training are counted."""
    import transformers  # noqa: F401

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    step = seeded_step(name, side, folder)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        step()
    print(status("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print_memory(args.memory_of[0], args.memory_of[1], Path(args.memory_of[2]))
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    rows = []
    for name in args.pairs:
        with tempfile.TemporaryDirectory() as folder:
            row: dict[str, Any] = {"pair": name, **times(name, Path(folder), args.rounds)}
            memory = {side: peak_memory(name, side, Path(folder)) for side in ("ours", "theirs")}
        row |= {"ours_bytes": memory["ours"], "theirs_bytes": memory["theirs"]}
        row["memory_ratio"] = memory["ours"] / memory["theirs"]
        rows.append(row)
        print(
            f"{name:14s} step {row['ours_s']:.2f} s against {row['theirs_s']:.2f} s, throughput ratio "
            f"{row['throughput_ratio']:.3f} ({row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f}), memory "
            f"{memory['ours'] / 2**20:.0f} MiB against {memory['theirs'] / 2**20:.0f} MiB, "
            f"ratio {row['memory_ratio']:.3f}",
            flush=True,
        )
    if args.json:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.processor()}
        args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How fast we are: encore speed [--pairs vit clip] [--sizes base small] [--compile] [--json FILE]

For every model with a public peer at equal weights: a training step and an inference of both sides in one process,
taking turns (the median of the rounds' ratios counts), and the peak memory of three training steps, each side in a
process of its own. Both train with fused AdamW and keep freed memory (in_backward.keep_freed_memory). Ours spares
memory by two options that leave the same weights: at base size it does not keep what its activations give
(common.fast.lean), and it updates inside the backward pass (common.fast.in_backward). Under --compile neither is
used and memory is not measured. Then the share of this machine's matrix-product rate that our step reaches, the papers'
own efficiency claims as ratios, and how the cost of a step grows.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch

from benchmarks.paper.files import write_atomic
from benchmarks.run.provenance import provenance
from benchmarks.speed import ratios, results
from benchmarks.speed.measure import Paired, Resident, matmul_rate, nominal_rate, paired, peak_memory
from benchmarks.speed.pairs import pairs
from common.errors import EncoreError
from common.fast.in_backward import keep_freed_memory
from common.fast.lean import keep_less
from common.fast.pairs import Side, Size, Subject

SIDES: tuple[Side, Side] = ("ours", "theirs")
SIZES: tuple[Size, Size] = ("base", "small")
KEY = ("pair", "size", "device", "precision", "compiled")
SHORTEST = 0.1  # seconds that a turn lasts at least


@dataclass(frozen=True)
class Setting:
    """Where and how a pair runs: float32 on the CPU, bfloat16 under autocast on a GPU, unless told otherwise."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "float32"
    compiled: bool = False

    @classmethod
    def chosen(cls, device: str | None, precision: str | None, compiled: bool) -> "Setting":
        """What the options mean on this machine. EncoreError for a GPU that is not there."""
        if device == "cuda" and not torch.cuda.is_available():
            raise EncoreError("--device cuda: torch finds no GPU on this machine")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(torch.device(device), precision or ("float32" if device == "cpu" else "bfloat16"), compiled)

    def words(self) -> list[str]:
        """For the command line of a child process."""
        return [self.device.type, self.precision]

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.precision)


def subject(name: str, side: Side, folder: Path, size: Size, setting: Setting = Setting()) -> Subject:
    """One side, built and fed on the device under the same seed as the other."""
    keep_freed_memory()
    torch.manual_seed(0)
    with setting.device:
        made = pairs()[name](side, folder, size)
    made.model.to(setting.device)
    if side == "ours" and not setting.compiled:
        made.in_backward = True
        if size == "base":
            keep_less(made.model)
    if setting.dtype == torch.bfloat16:
        made.in_bfloat16(setting.device)
    if setting.compiled:
        made.loss, made.infer = torch.compile(made.loss), torch.compile(made.infer)
    return made


def compare(name: str, size: Size, folder: Path, rounds: int, setting: Setting) -> dict[str, Any]:
    """One row: training, inference, memory and share of the matrix-product rate of a pair at a size."""
    rate = matmul_rate(setting.device, setting.dtype)
    theirs, ours = (subject(name, side, folder, size, setting) for side in ("theirs", "ours"))
    infer = ours.inference(), theirs.inference()
    agree(name, "outputs", infer[0](), infer[1](), setting)
    inference = paired(*infer, rounds, SHORTEST)
    flops = _flops(ours) if not setting.compiled else None
    train = ours.training_step(), theirs.training_step()
    agree(name, "first losses", train[0](), train[1](), setting)
    training = paired(*train, rounds, SHORTEST)
    del theirs, ours, infer, train
    row: dict[str, Any] = {"pair": name, "size": size, "what": described(pairs()[name]), "matmul_rate": rate}
    row |= {"device": setting.device.type, "precision": setting.precision, "compiled": setting.compiled}
    peer = "timm" if name.endswith("timm") else "transformers"
    row |= {"peer": f"{peer} {version(peer)}", "threads": torch.get_num_threads(), **provenance()}
    row |= {"training": asdict(training), "inference": asdict(inference)}
    if not setting.compiled:
        words = {side: [name, side, size, str(folder), *setting.words()] for side in SIDES}
        memory = {side: sorted(peak_memory(words[side]) for _ in range(3))[1] for side in SIDES}  # malloc wavers by 4 %
        row |= {"memory": memory, "memory_ratio": memory["ours"] / memory["theirs"]}
    row["share_of_matmul_rate"] = flops / training.ours / rate if flops else None
    if flops and setting.device.type == "cuda" and (nominal := nominal_rate(torch.cuda.get_device_name())):
        row["mfu"] = flops / training.ours / nominal
    return row


def agree(name: str, what: str, ours: float, theirs: float, setting: Setting = Setting()) -> None:
    """EncoreError unless both sides gave the same number: a comparison of different models is none."""
    tolerance = 2e-3 if setting.dtype == torch.float32 else 3e-2  # bfloat16 has 8 bits
    if abs(ours - theirs) > tolerance * max(abs(theirs), 0.05):
        raise EncoreError(f"{name}: the {what} differ ({ours:.6g} and {theirs:.6g}): not the same model")


def described(function: Callable[..., Any]) -> str:
    """Its docstring in one line: what a figure is a figure of."""
    return " ".join((function.__doc__ or "").split())


def _flops(made: Subject) -> int:
    """FLOPs of the products, convolutions and attention of a training step, forward and backward."""
    from common.fast.flops import flop_counter

    made.model.train()
    with flop_counter() as counter:
        made.loss().backward()
    return counter.get_total_flops()


def print_memory(name: str, side: Side, size: Size, folder: Path, setting: Setting) -> None:
    """What the child process does: imports first, so that only training is counted, and on a GPU the model too."""
    import transformers  # noqa: F401

    step = subject(name, side, folder, size, setting).training_step()
    resident = Resident()
    for _ in range(3):
        step()
    print(resident.growth() if setting.device.type == "cpu" else torch.accelerator.max_memory_allocated())


def told(row: dict[str, Any]) -> str:
    """A row in words."""
    training, inference = Paired(**row["training"]), Paired(**row["inference"])
    rate = row["share_of_matmul_rate"]
    return (
        f"{row['pair']:11s} {row['size']:5s} step {1e3 * training.ours:.1f} ms against {1e3 * training.theirs:.1f} ms, "
        f"ratio {training.ratio:.3f} ({training.low:.2f} to {training.high:.2f}), "
        + (f"{100 * rate:.0f} % of the matrix-product rate; " if rate else "")
        + (f"MFU {100 * row['mfu']:.1f} %; " if "mfu" in row else "")
        + f"inference ratio {inference.ratio:.3f} ({inference.low:.2f} to {inference.high:.2f})"
        + (f"; memory {_mebibytes(row)}, ratio {row['memory_ratio']:.3f}" if "memory" in row else "")
    )


def _mebibytes(row: dict[str, Any]) -> str:
    return " against ".join(f"{row['memory'][side] / 2**20:.0f} MiB" for side in SIDES)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="encore speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = list(pairs())
    parser.add_argument("--pairs", nargs="*", default=known, choices=known)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="both sides under torch.compile")
    parser.add_argument("--no-ratios", action="store_true", help="pairs only")
    parser.add_argument("--json", type=Path, help="keep the figures here, in place of earlier ones of the same pairs")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU where there is one")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="default: bfloat16 on a GPU")
    parser.add_argument("--memory-of", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.memory_of:
        name, side, size, folder, *words = args.memory_of
        return print_memory(name, side, size, Path(folder), Setting.chosen(words[0], words[1], compiled=False))
    if args.json:
        results.read(args.json)  # a damaged file is refused before anything is measured
    setting = Setting.chosen(args.device, args.precision, args.compile)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    where = torch.cuda.get_device_name() if setting.device.type == "cuda" else f"{torch.get_num_threads()} threads"
    rate = matmul_rate(setting.device, setting.dtype) / 1e9
    print(f"{where}: {rate:.0f} GFLOP/s in {setting.precision} matrix products", flush=True)
    rows = []
    for name in args.pairs:
        for size in args.sizes:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(compare(name, size, Path(folder), args.rounds, setting))
            print(told(rows[-1]), flush=True)
            if args.json:
                keep(args.json, rows=rows)
    for what in ("training", "inference") if rows else ():
        print(f"geometric mean of the {what} ratios: {geometric_mean([row[what]['ratio'] for row in rows]):.3f}")
    if not args.no_ratios:
        with setting.device:
            claims = ratios.of_papers()
            found = {name: paired(*steps(), args.rounds) for name, steps in claims.items()}
            growth = ratios.growth(args.rounds)
        for name, ratio in found.items():
            print(f"{name}: {ratio.ratio:.2f} times as fast ({ratio.low:.2f} to {ratio.high:.2f})", flush=True)
        for what, curve in growth.items():
            times = ", ".join(f"{x}: {1e3 * s:.1f} ms" for x, s in zip(curve["x"], curve["seconds"]))
            print(f"a step grows as {what} to the power {curve['exponent']:.2f} ({times})")
        if args.json:
            at = {"threads": torch.get_num_threads(), **provenance()}
            kept = {k: {"what": described(claims[k]), **asdict(v), **at} for k, v in found.items()}
            keep(args.json, ratios=kept, growth={"what": described(ratios.growth), **growth, **at})
    return None


def keep(file: Path, rows: Sequence[dict[str, Any]] = (), **content: Any) -> None:
    """Write figures to a file that may hold others; a row replaces the one of the same pair, size and setting."""
    known = results.parsed(file) or {}
    merged = {tuple(row[name] for name in KEY): row for row in [*known.get("rows", []), *rows]}
    write_atomic(file, json.dumps({**known, **content, "rows": list(merged.values())}, indent=1) + "\n")


if __name__ == "__main__":
    main()

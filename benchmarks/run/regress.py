"""Regression check: the smoke loss trajectory of every paper against its committed one, then its facts.

    python -m benchmarks.run.regress [--paper clip] [--update]

--update runs the smoke config twice with one thread and twice with two, and keeps the losses in
benchmarks/regress/<slug>.json with a tolerance of four times the largest relative spread between those runs, at least
FLOOR for machines of other make. The tolerance is measured, never chosen to make a run pass.
"""

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.paper import catalog, facts, paths
from benchmarks.paper.files import digest, read_json, write_atomic
from benchmarks.paper.schema import Paper
from benchmarks.run.curves import read_csv, significant
from benchmarks.run.provenance import cores, machine, versions
from benchmarks.run.records import dump_lines
from common.errors import EncoreError

FLOOR = 1e-4
SPREADS = 4
TIME_LIMIT = 180.0
METRIC = "train/loss"
Trajectory = dict[int, float]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when everything agrees, 1 when something does not, 2 for bad input."""
    about = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run.regress", description=about)
    parser.add_argument("--paper", default="all", help="slug of a paper, default all")
    parser.add_argument("--update", action="store_true", help="measure and keep new trajectories")
    given = parser.parse_args(arguments)
    try:
        papers = catalog.select(given.paper)
        with ThreadPoolExecutor(max_workers=1 if given.update else cores()) as pool:
            problems = [line for found in pool.map(update if given.update else check, papers) for line in found]
        problems += [] if given.update else [line for paper in papers for line in _wrong_facts(paper)]
    except EncoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    return 1 if problems else 0


def check(paper: Paper) -> list[str]:
    """What differs between a smoke run now and the committed trajectory."""
    kept = read_json(paths.trajectory(paper.slug))
    if kept is None:
        return [f"{paper.slug}: no {paths.shown(paths.trajectory(paper.slug))}; make it with --update"]
    if kept["config"] != _config_hash(paper.slug):
        return [f"{paper.slug}: configs/smoke.yaml changed since its trajectory was kept; look at it, then --update"]
    try:
        found = smoke_losses(paper.slug, threads=1)
    except EncoreError as error:
        return [str(error)]
    before = {int(step): loss for step, loss in kept["losses"].items()}
    differences = compare(before, found, kept["tolerance"])
    print(f"{paper.slug}: {len(found)} losses, {'DIFFERENT' if differences else 'as before'}", flush=True)
    if differences and kept["versions"] != versions():
        differences.append(f"(it was kept under {kept['versions']}, this is {versions()})")
    return [f"{paper.slug}: {line}" for line in differences]


def compare(before: Trajectory, now: Trajectory, tolerance: float) -> list[str]:
    """One line a step whose loss differs by more than the relative tolerance, five at most."""
    if before.keys() != now.keys():
        return [f"steps {sorted(now)} were logged, {sorted(before)} are kept"]
    lines = [
        f"step {step}: loss {now[step]:.6g}, kept {before[step]:.6g}, relative difference {gap:.2e} > {tolerance:.2e}"
        for step in sorted(before)
        if (gap := relative(before[step], now[step])) > tolerance
    ]
    return [*lines[:5], f"and {len(lines) - 5} more steps"] if len(lines) > 5 else lines


def update(paper: Paper) -> list[str]:
    """Measure and keep the trajectory of a paper."""
    if not (paths.room(paper.slug) / "configs" / "smoke.yaml").is_file():
        return [f"{paper.slug}: no configs/smoke.yaml"]
    try:
        found = [smoke_losses(paper.slug, threads) for threads in (1, 1, 2, 2)]
    except EncoreError as error:
        return [str(error)]
    spread = largest_spread(found)
    content = {
        "config": _config_hash(paper.slug),
        "tolerance": significant(max(FLOOR, SPREADS * spread), 3),
        "spread": significant(spread, 3),
        "versions": versions(),
        "machine": {key: value for key, value in machine().items() if key != "threads"},
        "losses": found[0],
    }
    write_atomic(paths.trajectory(paper.slug), dump_lines(content))
    print(
        f"{paper.slug}: {len(found[0])} losses, spread {spread:.2e}, tolerance {content['tolerance']:.2e}", flush=True
    )
    return []


def largest_spread(runs: list[Trajectory]) -> float:
    """Largest relative difference at any step between any run and the first."""
    return max(relative(runs[0][step], run[step]) for run in runs[1:] for step in runs[0])


def relative(one: float, other: float) -> float:
    return abs(one - other) / max(abs(one), abs(other), 1e-12)


def smoke_losses(slug: str, threads: int) -> Trajectory:
    """{step: loss} of a fresh smoke training; EncoreError when it fails or logs no train/loss."""
    config = paths.room(slug) / "configs" / "smoke.yaml"
    with tempfile.TemporaryDirectory(prefix=f"encore-{slug}-") as folder:
        command = [sys.executable, "-m", f"papers.{slug}.train", "fit", "--config", str(config)]
        command += ["--trainer.default_root_dir", folder, "--trainer.log_every_n_steps", "1"]
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        environment = paths.child_environment(**limits)
        try:
            run = subprocess.run(
                command, cwd=paths.root(), env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
            )
        except subprocess.TimeoutExpired:
            raise EncoreError(f"{slug}: the smoke run took longer than {TIME_LIMIT:.0f} s") from None
        if run.returncode:
            said = [line for line in (run.stdout + run.stderr).splitlines() if line.strip()]
            raise EncoreError(f"{slug}: the smoke run failed: {said[-1] if said else run.returncode}")
        losses: Trajectory = {}
        for file in sorted(Path(folder).rglob("metrics.csv")):
            losses |= read_csv(file).get(METRIC, {})
    if not losses:
        raise EncoreError(f"{slug}: the smoke run logged no {METRIC}")
    return {step: significant(loss, 7) for step, loss in sorted(losses.items())}


def _wrong_facts(paper: Paper) -> list[str]:
    results = facts.compute(paper, keep=False)
    print(f"{paper.slug}: {sum(fact.verdict == 'match' for fact in results)} of {len(results)} facts match", flush=True)
    return [f"{paper.slug}: fact {fact.id}: {fact.verdict} {fact.error}" for fact in results if fact.verdict != "match"]


def _config_hash(slug: str) -> str:
    file = paths.room(slug) / "configs" / "smoke.yaml"
    return digest(file.read_bytes()) if file.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())

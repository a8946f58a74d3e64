"""Child process of the engine: runs one unit and writes its result.json, or an error.json that says why not.

    python -m benchmarks.run.unit PAPER CLAIM ARM SEED SCALE [--force]

Exit status 0: there is a result; 2: the unit raised EncoreError; NOT_WRITABLE: its folder takes no more files, so there
is no error.json either; 1: anything else went wrong.
"""

import argparse
import importlib
import json
import math
import os
import platform
import resource
import shutil
import sys
import threading
import time
import traceback
import zipfile
from typing import Any, cast

from benchmarks.paper import catalog
from benchmarks.paper.choices import pick
from benchmarks.paper.files import read_json, write_atomic
from benchmarks.run import provenance
from benchmarks.run.curves import read_curves, significant
from benchmarks.run.units import Unit, identity, same_identity
from common.errors import EncoreError

NOT_WRITABLE = 3


def main() -> int:
    unit, force = _arguments()
    _end_with_parent()
    try:
        with unit.lock():  # an orphan of a killed engine, or a second engine, may still be in there
            return _run_and_report(unit, force)
    except OSError:  # of the lock, the log or error.json; what the unit itself raised is reported there
        return NOT_WRITABLE


def _run_and_report(unit: Unit, force: bool) -> int:
    try:
        run_unit(unit, force)
    except EncoreError as error:
        return _failed(unit, str(error), 2)
    except Exception as error:
        traceback.print_exc()
        return _failed(unit, f"{type(error).__name__}: {error}", 1)
    return 0


def run_unit(unit: Unit, force: bool = False) -> None:
    """Run the unit unless its result is fresh. Checkpoints of an interrupted run of the same code are continued."""
    experiment = catalog.load_one(unit.paper).experiment(unit.claim)
    pick(unit.arm, dict.fromkeys(experiment.all_arms), f"arm of {unit.claim}")
    wanted = identity(experiment)
    if not force and unit.fresh_result(wanted):
        return
    started = read_json(unit.dir / "unit.json")
    if force or started is None or not same_identity(started, wanted):
        shutil.rmtree(unit.dir, ignore_errors=True)
        started = {}
    remove_damaged(unit)
    attempts = _whole_number(started.get("attempts")) + 1
    (unit.dir / "error.json").unlink(missing_ok=True)
    write_atomic(unit.dir / "unit.json", json.dumps({**wanted, "attempts": attempts}, indent=1))
    origin = {**wanted, **provenance.provenance(), "attempts": attempts}

    begin = time.perf_counter()
    returned, wiring = call_entry(unit, experiment.entry)
    metrics = check_metrics(returned, experiment.metrics_of(unit.arm))
    origin["machine"] = provenance.machine()  # by now the process knows whether it used an accelerator
    result = {
        "arm": unit.arm,
        "seed": unit.seed,
        "metrics": metrics,
        "seconds": round(time.perf_counter() - begin, 1),
        "peak_memory_mb": _peak_memory_mb(),
        "wiring": wiring,
        "curves": read_curves(unit.dir),
        "provenance": origin,
    }
    write_atomic(unit.dir / "result.json", json.dumps(result, indent=1))


def remove_damaged(unit: Unit) -> None:
    """Delete checkpoints that are not whole (a failing disk, a full one): training goes on from what there is."""
    for file in sorted(file for file in unit.dir.rglob("*") if file.suffix in (".ckpt", ".pt")):
        try:
            with zipfile.ZipFile(file) as archive:
                whole = archive.testzip() is None
        except Exception:  # zipfile has many ways to say that it is not one
            whole = False
        if not whole:
            print(f"{file} is damaged: removed, its steps are trained again", flush=True)
            file.unlink()


def _whole_number(value: object) -> int:
    return value if isinstance(value, int) else 0


def call_entry(unit: Unit, entry: str) -> tuple[Any, dict[str, Any]]:
    """What the entry function returns for this unit, and what it was wired to."""
    from common.training.run import Run, Scale

    module, _, name = entry.partition(":")
    function = getattr(importlib.import_module(module), name, None)
    if function is None:
        raise EncoreError(f"{entry}: {module} has no function {name!r}; correct `entry` in paper.yaml")
    threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    scale = cast(Scale, unit.scale)
    run = Run(unit.paper, unit.claim, unit.arm, unit.seed, scale, unit.dir, threads)
    return function(run), run.record.as_json()


def check_metrics(metrics: object, needed: set[str]) -> dict[str, float]:
    """The metrics rounded to six significant digits; EncoreError when one is not finite or a needed one is absent."""
    if not isinstance(metrics, dict) or not metrics:
        raise EncoreError(f"the entry must return a dict of metrics, not {metrics!r}")
    checked = {}
    for name, value in metrics.items():
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            raise EncoreError(f"metric {name!r} is {value!r}, not a number")
        checked[str(name)] = significant(float(value))
        if not math.isfinite(checked[str(name)]):
            raise EncoreError(f"metric {name!r} is {float(value)}: a result that is not finite is not kept")
    if absent := needed - checked.keys():
        raise EncoreError(f"the entry gave no metric {', '.join(sorted(absent))}; it gave {', '.join(checked)}")
    return checked


def _arguments() -> tuple[Unit, bool]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run.unit", description="Run one unit of a claim.")
    for name in ("paper", "claim", "arm"):
        parser.add_argument(name)
    parser.add_argument("seed", type=int)
    parser.add_argument("scale")
    parser.add_argument("--force", action="store_true", help="run it even if its result is fresh")
    given = parser.parse_args()
    return Unit(given.paper, given.claim, given.arm, given.seed, given.scale), given.force


def _end_with_parent() -> None:
    """End this process when the engine is gone (killed outright), so that nothing is left running."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(0, 9) if os.getpgrp() == os.getpid() else os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _failed(unit: Unit, message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    write_atomic(unit.dir / "error.json", json.dumps({"error": message, "status": status}, indent=1))
    return status


def _peak_memory_mb() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if platform.system() == "Darwin" else 1024))


if __name__ == "__main__":
    status = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # the log is on the full disk as well
        os._exit(status)
    sys.exit(status)

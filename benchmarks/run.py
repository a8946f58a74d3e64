"""The local engine: runs units side by side, each in its own process group, and keeps what is finished.

Nothing is lost by stopping it: a finished unit is skipped the next time, another continues from its checkpoint.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from benchmarks import paths
from benchmarks.files import read_json
from benchmarks.progress import progress_view
from benchmarks.provenance import cores
from benchmarks.records import read_record
from benchmarks.units import Unit

GRACE_SECONDS = 5.0


class Interrupted(Exception):
    """SIGINT or SIGTERM reached the engine; the children are already gone."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


@dataclass
class Running:
    unit: Unit
    process: subprocess.Popen
    started: float
    limit: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def run_units(
    units: dict[Unit, float],
    *,
    workers: int | None = None,
    force: bool = False,
    finished: Callable[[Unit], None] = lambda unit: None,
) -> dict[Unit, str]:
    """Run every unit of {unit: time limit in seconds}, the longest first; returns {failed unit: why}.

    `finished` is called after each unit that has a result. Interrupted is raised on Ctrl-C or SIGTERM.
    """
    expected = {unit: past_seconds(unit) for unit in units}
    order = {unit: -index for index, unit in enumerate(units)}
    waiting = sorted(units, key=lambda unit: (expected[unit] or units[unit], order[unit]))  # taken from the end
    workers = workers or (1 if any(unit.scale == "gpu" for unit in units) else cores())
    # not a share for each unit left: numbers must not depend on how many are already done
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores() // workers))
    workers = min(workers, len(units))
    running: list[Running] = []
    failed: dict[Unit, str] = {}
    with progress_view(expected, workers) as view, _signals_as_exceptions():
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    unit = waiting.pop()
                    running.append(_start(unit, threads, units[unit], force))
                    view.started(unit)
                for child in list(running):
                    why = _outcome(child)
                    if why is None:
                        continue
                    running.remove(child)
                    if why:
                        failed[child.unit] = why
                    else:
                        finished(child.unit)
                    view.ended(child.unit, child.seconds, why)
                time.sleep(0.05)
        finally:
            _stop(running)
    return failed


def past_seconds(unit: Unit) -> float | None:
    """How long this unit took the last time, whatever the code was then."""
    result = unit.result()
    if result is not None:
        return float(result["seconds"])
    record = read_record(unit.paper, unit.claim, unit.scale)
    times = [u["seconds"] for u in record["units"] if u["arm"] == unit.arm] if record else []
    return float(max(times)) if times else None


def _start(unit: Unit, threads: int, limit: float, force: bool) -> Running:
    command = [sys.executable, "-m", "benchmarks.unit", unit.paper, unit.claim, unit.arm, str(unit.seed), unit.scale]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    unit.log.parent.mkdir(parents=True, exist_ok=True)
    with unit.log.open("ab") as log:
        process = subprocess.Popen(
            [*command, "--force"] if force else command,
            cwd=paths.root(),
            env=paths.child_environment(TOKENIZERS_PARALLELISM="false", **limits),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Running(unit, process, time.monotonic(), limit)


def _outcome(child: Running) -> str | None:
    """None: still running; "": it has a result; else why it failed."""
    status = child.process.poll()
    if status is None and child.seconds > child.limit:
        _stop([child])
        return f"stopped after its time limit of {child.limit / 60:g} minutes (`minutes` in paper.yaml)"
    if status is None:
        return None
    if status == 0 and child.unit.result() is not None:
        return ""
    log = f"see {paths.shown(child.unit.log)}"
    error = read_json(child.unit.dir / "error.json")
    if error is None:
        ended = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"{ended} without a result; {log}"
    return error["error"] if error.get("status") == 2 else f"{error['error']}; {log}"


def _stop(running: list[Running]) -> None:
    """End the process groups of the children: politely, then by force."""
    for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        alive = [child for child in running if child.process.poll() is None]
        for child in alive:
            try:
                os.killpg(child.process.pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience
        for child in alive:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted, once; further ones are ignored while the children are being ended."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def continue_command() -> str:
    """What to type to go on after a stop."""
    return shlex.join(["encore", *(argument for argument in sys.argv[1:] if argument != "--force")])

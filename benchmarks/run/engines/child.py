"""One unit as a child process in a process group of its own: started, watched, ended."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from benchmarks.paper import paths
from benchmarks.paper.files import read_json
from benchmarks.run.engines import Job
from benchmarks.run.unit import NOT_WRITABLE
from common.errors import EncoreError

GRACE_SECONDS = 5.0
POLL_SECONDS = 0.05


@dataclass
class Child:
    """A started job. `begun` moves on until it is its turn: another process may be running the same unit."""

    job: Job
    process: subprocess.Popen
    begun: float
    its_turn: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun


def start(job: Job, threads: int) -> Child:
    """Start the unit in a process that may use so many threads; EncoreError when its folder cannot be written."""
    unit = job.unit
    of_unit = [unit.paper, unit.claim, unit.arm, str(unit.seed), unit.scale]
    command = [sys.executable, "-m", "benchmarks.run.unit", *of_unit]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    try:
        unit.log.parent.mkdir(parents=True, exist_ok=True)
        log = unit.log.open("ab")
    except OSError as error:
        raise EncoreError(not_writable(job, error.strerror or str(error))) from error
    with log:
        process = subprocess.Popen(
            [*command, "--force"] if job.force else command,
            cwd=paths.root(),
            env=paths.child_environment(TOKENIZERS_PARALLELISM="false", **limits),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Child(job, process, time.monotonic())


def outcome(child: Child) -> str | None:
    """None: still running; "": it has a result; else why it failed."""
    unit = child.job.unit
    status = child.process.poll()
    if not child.its_turn:
        runner = unit.runner()
        child.its_turn = runner == child.process.pid
        if runner not in (None, child.process.pid):
            child.begun = time.monotonic()
    if status is None and child.seconds > child.job.limit:
        stop([child])
        return f"stopped after its time limit of {child.job.limit / 60:g} minutes (`minutes` in paper.yaml)"
    if status is None:
        return None
    _end_group(child, signal.SIGKILL)  # what it forked and left behind
    if status == 0 and unit.result() is not None:
        return ""
    log = f"see {paths.shown(unit.log)}"
    error = read_json(unit.dir / "error.json")
    if status == NOT_WRITABLE:
        return not_writable(child.job, "it is full, or read-only")
    if error is None or not isinstance(error.get("error"), str):
        ended = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"{ended} without a result; {log}"
    return error["error"] if error.get("status") == 2 else f"{error['error']}; {log}"


def run_to_end(job: Job, threads: int) -> str:
    """Run the unit here and now; "" when it has a result, else why not. Whatever raises meanwhile ends it."""
    child = start(job, threads)
    try:
        while (why := outcome(child)) is None:
            time.sleep(POLL_SECONDS)
        return why
    finally:
        stop([child])


def stop(children: list[Child]) -> None:
    """End the process groups of the children: politely, then by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        alive = [child for child in children if child.process.poll() is None]
        for child in alive:
            _end_group(child, number)
        deadline = time.monotonic() + GRACE_SECONDS
        for child in alive:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue


def not_writable(job: Job, why: str) -> str:
    """The one line about a folder of runs that takes no more files."""
    return (
        f"cannot write to {paths.shown(job.unit.dir.parent)}: {why}; "
        "make room, or set ENCORE_RUNS to a folder that can be written"
    )


def _end_group(child: Child, number: signal.Signals) -> None:
    try:
        os.killpg(child.process.pid, number)
    except (ProcessLookupError, PermissionError):  # none left; macOS says EPERM of zombies
        return

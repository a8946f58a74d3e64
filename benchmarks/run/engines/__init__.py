"""Engines: where units run. Each takes the same jobs and answers alike, and no number depends on which one was used.

local: processes of this machine; ray: tasks of a Ray cluster; slurm: job arrays. Each is a module with

    run_units(jobs, *, workers) -> {failed unit: why}

that takes the longest jobs first and raises Interrupted on Ctrl-C or SIGTERM, with nothing left running. `workers`
bounds the units at a time; None: what the place has.
"""

import importlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, ModuleType

from benchmarks.paper.choices import ENGINES, pick
from benchmarks.paper.schema import Needs
from benchmarks.run.provenance import cores
from benchmarks.run.records import COMMITTED_SCALE, read_record
from benchmarks.run.units import Unit
from common.errors import EncoreError

RETRIES = 3  # of a unit whose Ray worker died, or whose SLURM job ran out of its time or was preempted


@dataclass(frozen=True)
class Job:
    """A unit as an engine takes it: `limit` in seconds of running time, what it needs, whether to start it anew."""

    unit: Unit
    limit: float
    needs: Needs = field(default_factory=Needs)
    force: bool = False

    @property
    def expected(self) -> float:
        """Seconds it took the last time, else its limit."""
        return past_seconds(self.unit) or self.limit


class Interrupted(Exception):
    """SIGINT or SIGTERM reached the engine; what it had started is already gone."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


def run_units(engine: str, jobs: list[Job], *, workers: int | None) -> dict[Unit, str]:
    """Run the jobs on the engine of that name; {failed unit: why}."""
    pick(engine, dict.fromkeys(ENGINES), "engine")
    module = importlib.import_module(f"benchmarks.run.engines.{engine}")
    return module.run_units(jobs, workers=workers)


def longest_first(jobs: list[Job]) -> list[Job]:
    """What takes longest starts first, so that no long unit runs alone at the end; else the order stays."""
    return sorted(jobs, key=lambda job: -job.expected)


def past_seconds(unit: Unit) -> float | None:
    """How long this unit, or the longest of its arm, took the last time, whatever the code was then."""
    result = unit.result()
    if result is not None:
        return float(result["seconds"])
    record = read_record(unit.paper, unit.claim) if unit.scale == COMMITTED_SCALE else None
    times = [u["seconds"] for u in record["units"] if u["arm"] == unit.arm] if record else []
    return float(max(times)) if times else None


def threads_of_a_unit(workers: int) -> int:
    """OMP_NUM_THREADS, else an equal share of the cores; never a share for each unit that is left to run.

    Sums over another number of threads round differently: a continued run would give other numbers.
    """
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, cores() // workers))


def optional(package: str, engine: str) -> ModuleType:
    """The package an engine needs; EncoreError that says how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EncoreError(f"engine {engine} needs {package}: make setup EXTRAS={engine} ({error})") from error


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Inside, SIGINT and SIGTERM are only noted; the function it gives raises Interrupted when there was one.

    An engine calls it where it may be left: an exception in the middle of anything would lose a unit just started, and
    Ray cannot bear one at all.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    def check() -> None:
        if received:
            raise Interrupted(received[0])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def continue_command() -> str:
    """What to type to go on after a stop."""
    return shlex.join(["encore", *(argument for argument in sys.argv[1:] if argument != "--force")])

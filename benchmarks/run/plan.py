"""What a run would do: its units, what state each is in, and what they will cost judging by past results.

`--budget` takes what tells most for the time: first claims that have no result yet, then claims whose result is stale,
those of which the verdict was open (inconclusive, undertrained) ahead of the others, then measurements without a
result, then stale ones, and last what the committed results have already; of equals the one that needs least time. A
claim is taken whole, since half of one has no verdict; what is left of the budget goes to single units of the first one
that did not fit, so that it is finished some other night.
"""

import heapq
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.paper.schema import Claim, Measurement, Paper
from benchmarks.run.engines import Job, past_seconds
from benchmarks.run.records import COMMITTED_SCALE, Record, read_record
from benchmarks.run.units import identity, same_identity, units_of
from benchmarks.run.verdict import judge
from common.errors import EncoreError

State = Literal["fresh", "kept", "stale", "missing"]
Key = tuple[str, str]
UNITS_OF_TIME = {"h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True)
class Entry:
    """One unit of the plan.

    state: fresh (runs/ has a result of this code, configuration and data: it is skipped), kept (the committed record
    has one, and this run makes its own), stale (the only one is of other code, configuration or data), missing.
    seconds: how long it takes; basis: judging by what (its arm's past runs, the claim's, or its time limit).
    """

    job: Job
    state: State
    seconds: float
    basis: Literal["arm", "claim", "limit"]

    @property
    def key(self) -> Key:
        return self.job.unit.paper, self.job.unit.claim


def entries_of(
    paper: Paper, experiment: Claim | Measurement, scale: str, seeds: list[int] | None, force: bool = False
) -> list[Entry]:
    """Every unit of a claim or measurement with its state and expected cost."""
    wanted = identity(experiment)
    record = read_record(paper.slug, experiment.id) if scale == COMMITTED_SCALE else None
    known = {(unit["arm"], unit["seed"]) for unit in record["units"]} if record else set()
    current = record is not None and same_identity(record, wanted)
    needs = experiment.needs
    if scale == "gpu":
        needs = needs.model_copy(update={"gpus": max(1, needs.gpus)})
    found = []
    for unit in units_of(paper, experiment, scale, seeds):
        state: State = "missing"
        if unit.fresh_result(wanted):
            state = "fresh"
        elif (unit.arm, unit.seed) in known:
            state = "kept" if current else "stale"
        elif unit.result() is not None:
            state = "stale"
        job = Job(unit, experiment.minutes * 60, needs, force)
        found.append(Entry(job, state, *_estimate(job, record)))
    return found


def _estimate(job: Job, record: Record | None) -> tuple[float, Literal["arm", "claim", "limit"]]:
    seconds = past_seconds(job.unit)
    if seconds is not None:
        return seconds, "arm"
    if record is not None and record["units"]:
        return float(max(unit["seconds"] for unit in record["units"])), "claim"
    return job.limit, "limit"


def within(
    budget: float, entries: list[Entry], experiments: dict[Key, Claim | Measurement], workers: int
) -> list[Entry]:
    """The units without a result in runs/ to run in `budget` seconds on so many workers, see the top of this file."""
    open_units: dict[Key, list[Entry]] = {}
    for entry in entries:
        if entry.state != "fresh":
            open_units.setdefault(entry.key, []).append(entry)
    order = sorted(
        open_units,
        key=lambda key: (_rank(experiments[key], open_units[key]), wall_seconds(open_units[key], workers)),
    )
    chosen: list[Entry] = []
    left_out = []
    for key in order:
        if wall_seconds([*chosen, *open_units[key]], workers) <= budget:
            chosen += open_units[key]
        else:
            left_out.append(key)
    for entry in open_units[left_out[0]] if left_out else []:
        if wall_seconds([*chosen, entry], workers) <= budget:
            chosen.append(entry)
    return chosen


def _rank(experiment: Claim | Measurement, open_units: list[Entry]) -> int:
    unit = open_units[0].job.unit
    record = read_record(unit.paper, unit.claim) if unit.scale == COMMITTED_SCALE else None
    if all(entry.state == "kept" for entry in open_units):
        return 5 if isinstance(experiment, Claim) else 6
    if not isinstance(experiment, Claim):
        return 3 if record is None else 4
    if record is None:
        return 0
    verdict = judge(experiment, record, record).verdict  # as it was under its own code
    return 1 if verdict in ("inconclusive", "undertrained") else 2


def wall_seconds(entries: Iterable[Entry], workers: int) -> float:
    """Time until all are done when the longest start first on so many workers."""
    ends = [0.0] * workers
    for seconds in sorted((entry.seconds for entry in entries), reverse=True):
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def summary(entries: list[Entry], workers: int) -> dict[str, Any]:
    """Totals over the units that would run."""
    return {
        "units": len(entries),
        "workers": workers,
        "wall_seconds": round(wall_seconds(entries, workers), 1),
        "core_hours": round(sum(e.seconds * e.job.needs.cores for e in entries) / 3600, 3),
        "gpu_hours": round(sum(e.seconds * e.job.needs.gpus for e in entries) / 3600, 3),
        "at_most": any(e.basis == "limit" for e in entries),
    }


def as_json(entries: list[Entry], chosen: list[Entry], workers: int) -> dict[str, Any]:
    """`encore reproduce --plan --json`: every unit, whether it would run, and the totals of those that would."""
    units = [
        {
            **{name: getattr(e.job.unit, name) for name in ("paper", "claim", "arm", "seed", "scale")},
            **{"state": e.state, "run": e in chosen, "seconds": round(e.seconds, 1), "basis": e.basis},
            **{"cores": e.job.needs.cores, "gpus": e.job.needs.gpus, "memory_gb": e.job.needs.memory_gb},
        }
        for e in entries
    ]
    return {"units": units, "total": summary(chosen, workers)}


def duration(text: str) -> float:
    """Seconds of "30m", "1h30m", "90s"."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise EncoreError(f"--budget {text!r}: give a time such as 30m, 90s or 1h30m")
    return sum(float(number) * UNITS_OF_TIME[unit] for number, unit in parts)

"""Where a run in runs/ agrees with the committed results: what `encore reproduce` ends with.

A claim agrees when both verdicts are the same and the 95 % intervals of both gaps overlap (without an interval, the gap
itself counts); a measured row when the means lie within two standard deviations of the seeds, taken together. One seed
has no spread to judge by: unless both figures are the same, nothing is said.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, stdev

from benchmarks.paper.schema import Claim, Measurement, Paper, Reported
from benchmarks.run.standing import Standing, interval_text, number, signed
from benchmarks.run.verdict import Verdict

AGREES, DIFFERS, ALONE, INCOMPLETE, TRIED = "agrees", "differs", "nothing to compare", "incomplete", "not judged"


@dataclass(frozen=True)
class Line:
    """One claim or measured row: cells as shown, and how the two sides relate."""

    what: str
    reported: str
    committed: str
    run: str
    outcome: str


def lines(paper: Paper, experiments: list[Claim | Measurement], scale: str, seeds: list[int] | None) -> list[Line]:
    """One line a claim and a row of a measurement among `experiments`; scale smoke is run, and not judged."""
    committed, run = Standing(paper), Standing(paper, scale, seeds, run=True)
    found: list[Line] = []
    for experiment in experiments:
        if isinstance(experiment, Claim):
            found.append(_claim(experiment, committed, run))
        else:
            found += _rows(experiment, committed, run)
    return found


def _claim(claim: Claim, committed: Standing, run: Standing) -> Line:
    kept, ours = committed.verdicts[claim.id], run.verdicts[claim.id]
    rows = [f"{_reported(row)} ({row.table})" for row in committed.paper.reported if row.claim == claim.id]
    more = [f"and {len(rows) - 2} more"] if len(rows) > 2 else []
    reported = "\n".join([*rows[:2], *more]) or claim.paper_ref
    return Line(claim.id, reported, _judged(kept), _judged(ours), _outcome(kept, ours, run.scale))


def _outcome(kept: Verdict, ours: Verdict, scale: str) -> str:
    if ours.verdict in ("missing", "stale"):
        return INCOMPLETE
    if scale == "smoke":
        return TRIED
    if kept.verdict in ("missing", "stale"):
        return ALONE
    same, near = kept.verdict == ours.verdict, _overlap(_bounds(kept), _bounds(ours))
    if same and near:
        return AGREES
    return f"{DIFFERS}: same verdict, other gap" if same else f"{DIFFERS}: {'other verdict' if near else 'other gap'}"


def _bounds(verdict: Verdict) -> tuple[float, float]:
    gap = verdict.gap if verdict.gap is not None else math.nan
    return verdict.interval or (gap, gap)


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return max(one[0], other[0]) <= min(one[1], other[1])


def _judged(verdict: Verdict) -> str:
    if verdict.gap is None:
        return verdict.verdict
    return f"{signed(verdict.gap)} {interval_text(verdict.interval)}\n{verdict.verdict}, n = {verdict.n}"


def _rows(measurement: Measurement, committed: Standing, run: Standing) -> Iterator[Line]:
    reported = {row.id: row for row in committed.paper.reported}
    for row in measurement.rows:
        kept, ours = committed.measured(measurement, row), run.measured(measurement, row)
        outcome = INCOMPLETE
        if run.state(measurement) == "measured" and ours:
            fresh = committed.state(measurement) == "measured" and kept
            outcome = TRIED if run.scale == "smoke" else _near(kept, ours) if fresh else ALONE
        yield Line(row, _reported(reported[row]), _values(kept), _values(ours), outcome)


def _near(kept: list[float], ours: list[float]) -> str:
    apart, spreads = abs(fmean(kept) - fmean(ours)), [stdev(values) for values in (kept, ours) if len(values) > 1]
    if apart <= 2 * math.hypot(*spreads):
        return AGREES
    return DIFFERS if spreads else f"{TRIED}: one seed"


def _values(values: list[float]) -> str:
    if not values:
        return "missing"
    return number(fmean(values)) + (f" ± {stdev(values):.2g}" if len(values) > 1 else "") + f"\nn = {len(values)}"


def _reported(row: Reported) -> str:
    return number(row.value) + (row.unit if row.unit == "%" else f" {row.unit}")

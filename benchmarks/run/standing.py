"""Where one paper stands: its figures beside ours, as the table, the report, the README and --json show them."""

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.paper import facts, paths
from benchmarks.paper.facts import FactResult
from benchmarks.paper.recipe import RecipeResult, recorded, started
from benchmarks.paper.rooms import missing_parts
from benchmarks.paper.schema import Measurement, Paper, Reported
from benchmarks.run.records import COMMITTED_SCALE, Record, gather, read_record
from benchmarks.run.units import identity, same_identity
from benchmarks.run.verdict import Verdict, judge


@dataclass(frozen=True)
class Row:
    """A reported number and what stands behind it here.

    verdict: verified | mismatch (by a fact), supported | a claim's other verdicts, measured | stale, recipe, not run.
    `ours` and `spread` (standard deviation over seeds, None for one) are set where the row itself was computed.
    """

    reported: Reported
    verdict: str
    by: str = ""
    ours: float | None = None
    spread: float | None = None
    n: int = 0
    command: str = ""


@dataclass
class Standing:
    """One paper, judged by its committed results; `run`: by the units in runs/ at a scale, for some seeds."""

    paper: Paper
    scale: str = COMMITTED_SCALE
    seeds: list[int] | None = None
    run: bool = False

    @cached_property
    def records(self) -> dict[str, Record | None]:
        """{claim or measurement: its results}."""
        return {
            experiment.id: gather(self.paper, experiment, self.scale)
            if self.run
            else read_record(self.paper.slug, experiment.id)
            for experiment in self.paper.experiments
        }

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """{claim: verdict}."""
        return {
            claim.id: judge(claim, self.records[claim.id], identity(claim), self.seeds) for claim in self.paper.claims
        }

    @cached_property
    def facts(self) -> list[FactResult]:
        """The facts as last computed for the present code."""
        return facts.recorded(self.paper)

    def carried(self, experiment: str) -> dict[str, Any] | None:
        """What `encore carry` last said of a result that is fresh because of it; None for one that needs it not."""
        record = self.records[experiment]
        wanted = identity(self.paper.experiment(experiment))
        if record is None or not record.get("carried") or not same_identity(record, wanted):
            return None
        return None if all(record[key] == wanted[key] for key in wanted) else record["carried"][-1]

    @property
    def matches(self) -> int:
        return sum(fact.verdict == "match" for fact in self.facts)

    @cached_property
    def recipe(self) -> list[RecipeResult]:
        """The recipe rows as last compared with the present configs."""
        return recorded(self.paper)

    @property
    def recipe_matches(self) -> int:
        return sum(row.verdict == "match" for row in self.recipe)

    @cached_property
    def missing(self) -> list[str]:
        outcomes: dict[str, str] = {claim: verdict.verdict for claim, verdict in self.verdicts.items()}
        outcomes |= {measurement.id: self.state(measurement) for measurement in self.paper.measurements}
        return missing_parts(self.paper, self.facts, self.recipe, outcomes)

    @cached_property
    def rows(self) -> list[Row]:
        return [self._row(row) for row in self.paper.reported]

    def _row(self, row: Reported) -> Row:
        command = train_command(self.paper.slug, row.recipe) if row.recipe else ""
        if row.fact is not None:
            fact = next(fact for fact in self.facts if fact.id == row.fact)
            verdict = {"match": "verified"}.get(fact.verdict, fact.verdict)
            return Row(row, verdict, f"fact {row.fact}", fact.computed, n=1, command=command)
        for measurement in self.paper.measurements:
            if row.id in measurement.rows and (values := self.measured(measurement, row.id)):
                spread = stdev(values) if len(values) > 1 else None
                by = f"measurement {measurement.id}"
                state = self.state(measurement)
                return Row(
                    row, "stale" if state == "stale" else "measured", by, fmean(values), spread, len(values), command
                )
        if row.claim is not None:
            outcome = self.verdicts[row.claim].verdict
            if outcome not in ("missing", "stale") or not row.recipe:
                verdict = {"reproduced": "supported"}.get(outcome, outcome)
                return Row(row, verdict, f"claim {row.claim}", command=command)
        return Row(row, "recipe" if row.recipe else "not run", command=command)

    def state(self, measurement: Measurement) -> str:
        """measured, stale, or missing when a planned unit has no result."""
        record = self.records[measurement.id]
        if record is not None and not same_identity(record, identity(measurement)):
            return "stale"
        found = {(unit["arm"], unit["seed"]) for unit in record["units"]} if record else set()
        planned = {(arm, seed) for arm in measurement.all_arms for seed in self.seeds or measurement.seeds}
        return "measured" if planned <= found else "missing"

    def measured(self, measurement: Measurement, row: str) -> list[float]:
        """Values of a measurement's row, one a seed."""
        record, cell = self.records[measurement.id], measurement.rows[row]
        units = record["units"] if record else []
        return [u["metrics"][cell.metric] for u in units if u["arm"] == cell.arm and cell.metric in u["metrics"]]

    def brief(self) -> dict[str, Any]:
        """One element of `encore list --json`; other tools read it, its keys stay."""
        paper = self.paper
        return {
            "slug": paper.slug,
            "title": paper.title,
            "year": paper.year,
            "modality": paper.modality,
            "fidelity": paper.fidelity,
            "facts": {"match": self.matches, "total": len(paper.facts)},
            "recipe": {"match": self.recipe_matches, "total": len(paper.recipe)},
            "claims": [
                {
                    **{"id": id, "verdict": v.verdict, "gap": rounded(v.gap), "interval": rounded_pair(v.interval)},
                    **{"n": v.n, "carried": self.carried(id)},
                }
                for id, v in self.verdicts.items()
            ],
            "missing": self.missing,
        }

    def full(self) -> dict[str, Any]:
        """`encore show --json`: the brief, the paper's figures and what stands behind each."""
        return {
            **self.brief(),
            "paper": self.paper.model_dump(mode="json"),
            "rows": [
                {"id": r.reported.id, "verdict": r.verdict, "by": r.by, "ours": rounded(r.ours), "command": r.command}
                for r in self.rows
            ],
        }


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.9g}")


def rounded_pair(interval: tuple[float, float] | None) -> list[float | None] | None:
    return None if interval is None else [rounded(bound) for bound in interval]


def train_command(slug: str, config: str) -> str:
    """The command that trains a config of a paper's room, with the config it builds on, where there is one."""
    verb, *options = started(paths.room(slug) / config)
    shown = [word if word == "--config" else paths.shown(Path(word)) for word in options]
    return f"python -m papers.{slug}.train {shlex.join([verb, *shown])}"


def number(value: float | str | None) -> str:
    """A figure as a reader wants it: whole numbers with thousands separators, others to four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if float(value).is_integer() and abs(value) >= 1000:
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.1f}"


def value_text(value: object) -> str:
    """A constant of a recipe as a reader wants it: 0.0001, [0.9, 0.98], yes, none."""
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "none" if value is None else str(value)


def signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3g}"


def interval_text(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"[{interval[0]:+.3g}, {interval[1]:+.3g}]"


def spoken(seconds: float) -> str:
    """A duration as a reader wants it: 40 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def machine_text(machine: dict[str, Any]) -> str:
    """Where a unit ran, from its provenance."""
    return f"{machine.get('gpu') or machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('threads')} a unit"

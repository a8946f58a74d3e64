"""`encore compare A B`: what changed between two commits' results."""

from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.history.past import Snapshot
from benchmarks.paper.schema import Claim, Measurement, Paper
from benchmarks.run.records import Record
from benchmarks.run.standing import interval_text, number, rounded, rounded_pair, signed
from benchmarks.run.table import coloured
from benchmarks.run.verdict import judge

NEAR = 1e-9  # relative: the same figure, written by another JSON library


@dataclass(frozen=True)
class State:
    """A claim as one commit judged it; `missing` when it was not there or had no result."""

    verdict: str = "missing"
    gap: float | None = None
    interval: list[float | None] | None = None
    n: int = 0
    identity: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """A paper, claim, measurement or fact that differs. `because`: which of code, config and data changed."""

    paper: str
    kind: str
    id: str
    before: str
    after: str
    because: list[str] = field(default_factory=list)
    detail: dict[str, Any] = field(default_factory=dict)


def changes(before: Snapshot, after: Snapshot) -> list[Change]:
    """Everything that differs between the results of two commits, papers in the order of their slugs."""
    found: list[Change] = []
    for slug in sorted(before.papers.keys() | after.papers.keys()):
        old, new = before.papers.get(slug), after.papers.get(slug)
        if (old is None or new is None) and slug not in before.unreadable + after.unreadable:
            found.append(Change(slug, "paper", slug, "there" if old else "absent", "there" if new else "absent"))
        found += _facts(slug, before, after)
        ids = dict.fromkeys(e.id for paper in (old, new) if paper for e in paper.experiments)
        for id in ids:
            one, other = _experiment(old, id), _experiment(new, id)
            if isinstance(other or one, Claim):
                found += _claim(slug, id, one, other, before, after)
            else:
                found += _measurement(slug, id, before.record(slug, id), after.record(slug, id))
    return found


def _facts(slug: str, before: Snapshot, after: Snapshot) -> list[Change]:
    old, new = before.facts(slug), after.facts(slug)
    return [
        Change(slug, "fact", id, number(old.get(id)), number(new.get(id)))
        for id in dict.fromkeys([*old, *new])
        if _differ(old.get(id), new.get(id))
    ]


def _claim(slug: str, id: str, one: Any, other: Any, before: Snapshot, after: Snapshot) -> list[Change]:
    old, new = _state(one, before.record(slug, id)), _state(other, after.record(slug, id))
    because = [part for part in ("code", "config", "data") if old.identity.get(part) != new.identity.get(part)]
    if (old.verdict, old.n) == (new.verdict, new.n) and not _differ(old.gap, new.gap):
        return []
    detail = {"before": _plain(old), "after": _plain(new)}
    return [Change(slug, "claim", id, _worded(old), _worded(new), because if old.n and new.n else [], detail)]


def _state(claim: Any, record: Record | None) -> State:
    if not isinstance(claim, Claim) or record is None:
        return State()
    identity = {part: record[part] for part in ("code", "config", "data")}
    verdict = judge(claim, record, identity)
    return State(verdict.verdict, rounded(verdict.gap), rounded_pair(verdict.interval), verdict.n, identity)


def _plain(state: State) -> dict[str, Any]:
    return {key: value for key, value in asdict(state).items() if key != "identity"}


def _worded(state: State) -> str:
    if state.gap is None:
        return state.verdict
    bounds = (state.interval[0], state.interval[1]) if state.interval else None
    return f"{signed(state.gap)} {interval_text(bounds)}, n = {state.n}, {state.verdict}"  # type: ignore[arg-type]


def _measurement(slug: str, id: str, old: Record | None, new: Record | None) -> list[Change]:
    one, other = _means(old), _means(new)
    moved = [name for name in dict.fromkeys([*one, *other]) if _differ(one.get(name), other.get(name))]
    return [
        Change(slug, "measurement", f"{id} {name}", number(one.get(name)), number(other.get(name))) for name in moved
    ]


def _means(record: Record | None) -> dict[str, float]:
    """{"arm metric": mean over seeds}."""
    values: dict[str, list[float]] = {}
    for unit in record["units"] if record else []:
        for metric, value in unit["metrics"].items():
            values.setdefault(f"{unit['arm']} {metric}", []).append(value)
    return {name: fmean(found) for name, found in values.items()}


def _experiment(paper: Paper | None, id: str) -> Claim | Measurement | None:
    return next((e for e in paper.experiments if e.id == id), None) if paper else None


def _differ(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is not other
    return abs(one - other) > NEAR * max(abs(one), abs(other))


def as_json(before: Snapshot, after: Snapshot, found: list[Change]) -> dict[str, Any]:
    unreadable = {snapshot.name: snapshot.unreadable for snapshot in (before, after) if snapshot.unreadable}
    changed = [asdict(change) for change in found]
    return {"before": before.name, "after": after.name, "changes": changed, "unreadable": unreadable}


def print_changes(before: Snapshot, after: Snapshot, found: list[Change], out: Console) -> None:
    """A table of the changes, or one line when there are none."""
    if found:
        table = Table(title=f"results of {before.name} and of {after.name}")
        for column in ("paper", "what", "id", before.name, after.name, "changed too"):
            table.add_column(column, overflow="fold")
        for change in found:
            cells = [_coloured(change.before), _coloured(change.after), ", ".join(change.because)]
            table.add_row(change.paper, change.kind, escape(change.id), *cells)
        out.print(table)
    else:
        out.print(f"no difference between the results of {before.name} and of {after.name}")
    for snapshot in (before, after):
        if snapshot.unreadable:
            papers = ", ".join(snapshot.unreadable)
            out.print(f"not compared, the paper.yaml of {snapshot.name} has another form: {papers}", markup=False)


def _coloured(text: str) -> str:
    head, _, verdict = text.rpartition(", ")
    return f"{escape(head)}, {coloured(verdict)}" if head else coloured(escape(text))

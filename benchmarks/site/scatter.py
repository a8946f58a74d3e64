"""Reported against ours: the numbers that stand on both sides, and the two figures of the overview that show them."""

from dataclasses import dataclass

from markupsafe import Markup

from benchmarks.run.standing import Standing, number
from benchmarks.site.drawn import Drawn


@dataclass(frozen=True)
class Comparable:
    """A number that was reported and that we have too; `group`: which of them one may compare on an axis."""

    paper: str
    modality: str
    what: str
    group: str
    reported: float
    ours: float
    unit: str


def comparables(standings: list[Standing]) -> list[Comparable]:
    """Every fact and every reported row with a value of ours; a row that a fact verifies counts as that fact."""
    found = []
    for standing in standings:
        slug, modality = standing.paper.slug, standing.paper.modality[0]
        for fact in standing.facts:
            if fact.computed is not None:
                found.append(Comparable(slug, modality, fact.id, "facts", fact.reported, fact.computed, fact.quantity))
        for row in standing.rows:
            kept, value = row.reported, row.reported.value
            if row.ours is None or kept.fact is not None or isinstance(value, str) or value is None:
                continue
            group = "percent" if kept.unit == "%" else "rows"
            found.append(Comparable(slug, modality, kept.id, group, float(value), row.ours, kept.unit))
    return found


def scatter(points: list[Comparable], drawn: Drawn) -> list[Markup]:
    """Ours against reported: rows in percent by modality on plain axes, facts and rows in other units on logarithmic
    ones.
    """
    figures = []
    percent: dict[str, list] = {}
    for each in (each for each in points if each.group == "percent"):
        percent.setdefault(each.modality, []).append([each.reported, each.ours, _tip(each)])
    if percent:
        figures.append(
            drawn(
                "against",
                groups=percent,
                labels=["reported, %", "ours, %"],
                title="Rows in percent: ours against reported",
                description=_worded([each for each in points if each.group == "percent"])
                + " Ours come from small runs and are not expected to reach the reported values.",
                name="scatter-percent",
            )
        )
    names = {"facts": "facts, computed from the sizes", "rows": "rows in other units, measured"}
    other: dict[str, list] = {}
    for each in (each for each in points if each.group in names and each.reported > 0 and each.ours > 0):
        other.setdefault(names[each.group], []).append([each.reported, each.ours, _tip(each)])
    if other:
        figures.append(
            drawn(
                "against",
                groups=other,
                labels=["reported", "ours"],
                title="Facts and rows in other units: ours against reported",
                description=_worded([each for each in points if each.group in names]),
                name="scatter-other",
                log=True,
            )
        )
    return figures


def _tip(each: Comparable) -> str:
    return f"{each.paper} {each.what}: reported {number(each.reported)}, ours {number(each.ours)} ({each.unit})"


def _worded(points: list[Comparable]) -> str:
    close = sum(abs(each.ours - each.reported) <= 0.01 * abs(each.reported) for each in points)
    return (
        f"{len(points)} points; {close} of them within 1 % of the reported value. All values stand in the table below."
    )

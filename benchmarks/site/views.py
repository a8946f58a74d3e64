"""What the pages of the report show, prepared for the templates: figures, tables, commands."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from markupsafe import Markup

from benchmarks.history.history import History, Past
from benchmarks.paper.facts import FactResult
from benchmarks.paper.schema import Claim, Fact, Measurement
from benchmarks.run.curves import Curve
from benchmarks.run.records import read_curves
from benchmarks.run.standing import Row, Standing, interval_text, machine_text, number, signed
from benchmarks.run.table import carried_text
from benchmarks.site import gallery
from benchmarks.site.drawn import Drawn
from benchmarks.site.notes import Section, sections

SIZES = ("parameters", "trainable_parameters", "tokens", "multiply_adds")
UNINTERESTING = re.compile(r"(^|[:/ ])(lr|learning_rate|epoch|samples|flops|seconds|step_time|throughput|grad)", re.I)
MAX_CURVES = 3


@dataclass(frozen=True)
class Compute:
    """What the units of one experiment took: seconds an arm, and where and from what they came."""

    arms: dict[str, float]
    machines: list[str]
    commits: list[str]
    code: str
    config: str
    carried: str

    @property
    def seconds(self) -> float:
        return sum(self.arms.values())


@dataclass(frozen=True)
class ExperimentView:
    """A claim or measurement: `arms` is a table of mean and spread a metric, `seeds` one of every seed's values."""

    experiment: Claim | Measurement
    metrics: list[str]
    arms: list[tuple[str, list[str]]]
    seeds: list[tuple[str, int, list[str]]]
    figures: list[Markup]
    compute: Compute | None
    pasts: list[Past]
    past_figure: Markup | None


@dataclass(frozen=True)
class Size:
    """One line of the architecture table: a constructor, or a part of it, with (reported, computed) a quantity."""

    what: str
    cells: list[FactResult | None]


@dataclass
class PaperView:
    """Everything the page of one paper shows."""

    standing: Standing
    sections: list[Section]
    claims: list[ExperimentView]
    measurements: list[ExperimentView]
    quantities: list[str]
    sizes: list[tuple[str, list[Size]]]
    gallery: gallery.Kept | None
    shown: list[Markup | None]
    commands: dict[str, str]
    relatives: Markup | None
    builders: list[str]


def paper_view(
    standing: Standing, history: History, drawn: Drawn, edges: list[tuple[str, str]], pages: set[str]
) -> PaperView:
    paper = standing.paper
    kept = gallery.read(paper)
    quantities = [name for name in SIZES if any(fact.quantity == name for fact in paper.facts)]
    near = _family(paper.slug, edges)
    return PaperView(
        standing=standing,
        sections=sections(paper.slug, pages),
        claims=[experiment_view(standing, claim, history, drawn) for claim in paper.claims],
        measurements=[experiment_view(standing, each, history, drawn) for each in paper.measurements],
        quantities=quantities,
        sizes=list(sizes(paper.facts, standing.facts, quantities)),
        gallery=kept,
        shown=[_shown(item, index, drawn) for index, item in enumerate(kept.gallery.items)] if kept else [],
        commands={name: line for row in standing.rows for name, line in commands(paper.slug, row).items()},
        relatives=graph(near, drawn, paper.slug) if near else None,
        builders=[one for one, base in edges if base == paper.slug],
    )


def experiment_view(
    standing: Standing, experiment: Claim | Measurement, history: History, drawn: Drawn
) -> ExperimentView:
    """Tables and figures of one claim or measurement; empty where it never ran."""
    record = standing.records[experiment.id]
    units = record["units"] if record else []
    curves = read_curves(standing.paper.slug, experiment.id) if record else {}
    names = list(dict.fromkeys(name for unit in units for name in unit["metrics"]))
    arms = []
    for arm in experiment.all_arms:
        values = [[u["metrics"][name] for u in units if u["arm"] == arm and name in u["metrics"]] for name in names]
        arms.append((arm, [mean_and_spread(each) for each in values]))
    seeds = [(u["arm"], u["seed"], [number(u["metrics"].get(name)) for name in names]) for u in units]
    figures = list(_verdict_figure(standing, experiment, units, drawn)) if isinstance(experiment, Claim) else []
    figures += _curve_figures(experiment, curves, drawn)
    pasts = history.of(standing.paper.slug, experiment.id)
    return ExperimentView(
        experiment,
        names,
        arms if units else [],
        seeds,
        figures,
        _compute(record, experiment, standing.carried(experiment.id)) if record else None,
        pasts,
        _past_figure(experiment, pasts, drawn) if len(pasts) > 1 else None,
    )


def mean_and_spread(values: list[float]) -> str:
    if not values:
        return "-"
    return number(fmean(values)) + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def ours(row: Row) -> str:
    """Our value of a reported row, with its standard deviation over seeds."""
    spread = f" ± {row.spread:.2g}" if row.spread is not None else ""
    return "" if row.ours is None else number(row.ours) + spread


def commands(slug: str, row: Row) -> dict[str, str]:
    """{short name: command}: what gave the value or verdict here, and the published recipe."""
    kind, _, name = row.by.partition(" ")
    found = {}
    if kind == "fact":
        found["facts"] = f"encore facts {slug}"
    elif kind:
        found[name] = f"encore reproduce {slug} --claim {name}"
    if row.reported.recipe:
        found[row.reported.recipe.removeprefix("configs/")] = row.command
    return found


def sizes(facts: list[Fact], results: list[FactResult], quantities: list[str]) -> Iterator[tuple[str, list[Size]]]:
    """(constructor, its lines): the facts about sizes, grouped by what builds them."""
    groups: dict[str, dict[str, dict[str, FactResult]]] = {}
    for fact, result in zip(facts, results):
        if fact.quantity in quantities:
            constructor, what = _built(fact)
            cells = groups.setdefault(constructor, {}).setdefault(what, {})
            cells.setdefault(fact.quantity, result)
    for constructor, lines in groups.items():
        yield constructor, [Size(what, [cells.get(name) for name in quantities]) for what, cells in lines.items()]


def _built(fact: Fact) -> tuple[str, str]:
    """(constructor, which part of it or what about it): a helper that takes a constructor's name counts as that."""
    function = fact.build.partition(":")[2]
    arguments = dict(fact.args)
    inner = next((key for key in ("name", "build") if isinstance(arguments.get(key), str)), None)
    constructor = str(arguments.pop(inner)) if inner else function
    words = [function.replace("_", " ")] if inner else []
    words += [fact.part] if fact.part else []
    words += [f"{key.replace('_', ' ')} {value}" for key, value in arguments.items()]
    return constructor, ", ".join(words) or "whole"


def _verdict_figure(standing: Standing, claim: Claim, units: list[dict], drawn: Drawn) -> Iterator[Markup]:
    verdict = standing.verdicts[claim.id]
    sides = [side for of in (claim.method, claim.baseline) if isinstance(side := claim.side(of), tuple)]
    others = [(arm, claim.metric) for arm in claim.all_arms if arm not in {arm for arm, _ in sides}]
    rows = {}
    for arm, metric in dict.fromkeys([*sides, *others]):
        values = [u["metrics"][metric] for u in units if u["arm"] == arm and metric in u["metrics"]]
        if values:
            rows[arm if metric == claim.metric else f"{arm} {metric}"] = values
    if not rows or verdict.gap is None:
        return
    worded = "; ".join(f"{name}: {', '.join(f'{v:.4g}' for v in values)}" for name, values in rows.items())
    better = "higher" if claim.higher_is_better else "lower"
    sign = 1 if claim.higher_is_better else -1
    gaps = [sign * (verdict.values[seed] - verdict.baseline_values[seed]) for seed in verdict.values]
    gap_words = f"Mean gap {signed(verdict.gap)}, 95 % interval {interval_text(verdict.interval)}, {verdict.verdict}."
    yield drawn(
        "values_and_gap",
        rows=rows,
        gaps=gaps,
        interval=verdict.interval,
        margin=claim.margin,
        labels=[f"{claim.metric} ({better} is better)", "gap in the paper's favour, 95 % interval"],
        title=f"{claim.id}: {claim.metric} of every seed",
        description=f"One dot a seed. {worded}. {gap_words}",
        name=f"seeds-{claim.id}",
    )


def _curve_figures(
    experiment: Claim | Measurement, curves: dict[str, dict[str, Curve]], drawn: Drawn
) -> Iterator[Markup]:
    names = dict.fromkeys(name for unit in curves.values() for name in unit if not UNINTERESTING.search(name))
    for index, name in enumerate(sorted(names, key=lambda name: ("loss" not in name, name))[:MAX_CURVES]):
        lines = {}
        for arm in experiment.all_arms:
            found = [curves.get(f"{arm}-{seed}", {}).get(name, []) for seed in experiment.seeds]
            if seeds := [line for line in found if len(line) > 1]:
                lines[arm] = seeds
        if lines:
            last = {arm: ", ".join(f"{line[-1][1]:.4g}" for line in seeds) for arm, seeds in lines.items()}
            ends = "; ".join(f"{arm} ends at {values}" for arm, values in last.items())
            yield drawn(
                "curves",
                lines=lines,
                label=name,
                title=f"{experiment.id}: {name} against step",
                description=f"Learning curves, one line a seed. {ends}.",
                name=f"curve{index}-{experiment.id}",
            )


def _past_figure(experiment: Claim | Measurement, pasts: list[Past], drawn: Drawn) -> Markup:
    worded = "; ".join(f"{past.date}: {signed(past.gap)} {interval_text(past.interval)}" for past in pasts)
    return drawn(
        "past_gaps",
        entries=[[past.date, past.gap, past.interval] for past in pasts],
        title=f"{experiment.id}: gaps of the past",
        description=f"The gap in each committed record, oldest above. {worded}.",
        name=f"past-{experiment.id}",
    )


def _compute(record: dict[str, Any], experiment: Claim | Measurement, carried: dict[str, Any] | None) -> Compute:
    units = record["units"]
    arms = {arm: sum(u["seconds"] for u in units if u["arm"] == arm) for arm in experiment.all_arms}
    machines = [machine_text(unit["provenance"]["machine"]) for unit in units]
    commits = [unit["provenance"]["commit"] for unit in units]
    return Compute(
        {arm: seconds for arm, seconds in arms.items() if seconds},
        [f"{name}: {count} unit{'s' if count > 1 else ''}" for name, count in Counter(machines).items()],
        list(dict.fromkeys(commits)),
        str(record["code"]),
        str(record["config"]),
        carried_text(carried) if carried else "",
    )


def _shown(item: Any, index: int, drawn: Drawn) -> Markup | None:
    """The drawing of a gallery item that is one; pictures and sentences are plain HTML."""
    words = {"title": item.title, "description": item.caption, "name": f"item{index}"}
    if item.kind == "drawing":
        return drawn("drawing", points=[list(point) for point in item.points], paths=item.paths, **words)
    if item.kind == "spectrogram":
        return drawn("spectrogram", png=item.png, tokens=item.tokens, **words)
    return None


def graph(edges: list[tuple[str, str]], drawn: Drawn, marked: str = "") -> Markup:
    """The builds_on graph of these edges, [(paper, what it builds on)]."""
    return drawn(
        "graph",
        edges=[list(edge) for edge in edges],
        title="What builds on what",
        description="; ".join(f"{paper} builds on {base}" for paper, base in edges) + ".",
        name="builds-on",
        marked=marked,
    )


def builds_on(standings: list[Standing]) -> list[tuple[str, str]]:
    """[(paper, what it builds on)] of papers that are here, without the edges that would close a circle."""
    here = {standing.paper.slug for standing in standings}
    kept: list[tuple[str, str]] = []
    for standing in standings:
        for base in standing.paper.builds_on:
            if base in here and standing.paper.slug not in _ancestors(base, kept):
                kept.append((standing.paper.slug, base))
    return kept


def _ancestors(slug: str, edges: list[tuple[str, str]]) -> set[str]:
    """The paper and everything it builds on, directly or not."""
    found, queue = set(), [slug]
    while queue:
        one = queue.pop()
        if one not in found:
            found.add(one)
            queue += [base for paper, base in edges if paper == one]
    return found


def _family(slug: str, edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The edges above and below a paper."""
    above = _ancestors(slug, edges)
    below = _ancestors(slug, [(base, paper) for paper, base in edges])
    return [edge for edge in edges if set(edge) <= above or set(edge) <= below]

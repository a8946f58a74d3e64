"""What the report shows of the kept figures of speed: rows, their means, figures, and where they came from."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import geometric_mean

from markupsafe import Markup

from benchmarks.site.drawn import Drawn
from benchmarks.speed import results
from benchmarks.speed.results import Curve, Growth, Origin, Ratio, Results, Row, Timing


@dataclass(frozen=True)
class Source:
    """Figures that came from one machine, commit and set of versions."""

    figures: list[str]
    machine: str
    versions: str
    commit: str
    days: str


@dataclass(frozen=True)
class Part:
    """The rows of one setting with their figure, and geometric means over them where they are not compiled."""

    setting: str
    rows: list[Row]
    means: dict[str, float]
    figure: Markup


@dataclass(frozen=True)
class SpeedView:
    """Everything speed.html shows. pairs: what each is; papers: those that a pair is named by, and has its model of."""

    parts: list[Part]
    pairs: dict[str, str]
    papers: set[str]
    ratios: dict[str, Ratio]
    growth: Growth | None
    sources: list[Source]
    growth_figures: list[Markup]

    @property
    def figures(self) -> list[Markup]:
        return [part.figure for part in self.parts]


def speed_view(drawn: Drawn, slugs: set[str]) -> SpeedView | None:
    """The committed figures; None when there are none. slugs: of the papers that have a page."""
    kept = results.read(results.committed())
    if kept is None:
        return None
    curves = {"tokens": kept.growth.tokens, "width": kept.growth.width} if kept.growth else {}
    return SpeedView(
        parts=list(_parts(kept.rows, drawn)),
        pairs={row.pair: row.what for row in kept.rows if row.what},
        papers={row.pair for row in kept.rows} & slugs,
        ratios=kept.ratios,
        growth=kept.growth,
        sources=list(_sources(kept)),
        growth_figures=[_growth(what, curve, drawn) for what, curve in curves.items()],
    )


def _parts(rows: list[Row], drawn: Drawn) -> Iterator[Part]:
    """One part a setting, those under torch.compile last; all figures reach over the same ratios."""
    marks = [mark for row in rows for timing in (row.training, row.inference) for mark in _marks(timing)]
    settings: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.compiled, row.device, row.precision != "float32")):
        settings.setdefault(row.setting, []).append(row)
    for setting, group in settings.items():
        means = {}
        if not group[0].compiled:
            means = {
                "training": geometric_mean([row.training.ratio for row in group]),
                "inference": geometric_mean([row.inference.ratio for row in group]),
                "memory": geometric_mean([row.memory_ratio for row in group if row.memory_ratio]),
            }
        figure = _ratios(setting, group, [min(marks), max(marks)], drawn)
        yield Part(setting, group, means, figure)


def _ratios(setting: str, rows: list[Row], span: list[float], drawn: Drawn) -> Markup:
    named = {f"{row.pair} {row.size}": row for row in rows}
    worded = [
        f"{name}: training {_spread(row.training)}, inference {_spread(row.inference)}" for name, row in named.items()
    ]
    return drawn(
        "ratios",
        rows=[[name, [_marks(row.training), _marks(row.inference)]] for name, row in named.items()],
        kinds=["training step", "inference"],
        label=f"times as fast ({setting})",
        span=span,
        title=f"Training step and inference: times as fast as the public class ({setting})",
        description=f"A dot at the ratio and a line over its range, against a line at 1. {'; '.join(worded)}.",
        name="ratios-" + setting.lower().replace(", ", "-"),
    )


def _growth(what: str, curve: Curve, drawn: Drawn) -> Markup:
    worded = ", ".join(f"{x:g}: {1e3 * seconds:.3g} ms" for x, seconds in zip(curve.x, curve.seconds))
    return drawn(
        "power_law",
        x=curve.x,
        y=[1e3 * seconds for seconds in curve.seconds],
        exponent=curve.exponent,
        label=what,
        title=f"A training step grows as {what} to the power {curve.exponent:.2f}",
        description=f"Milliseconds a step against {what} on logarithmic axes, with the fitted line. {worded}.",
        name=f"growth-{what}",
    )


def _marks(timing: Timing) -> list[float]:
    return [timing.ratio, timing.low, timing.high]


def _spread(timing: Timing) -> str:
    return f"{timing.ratio:.2f} ({timing.low:.2f} to {timing.high:.2f})"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f}"


def mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f}"


def _sources(kept: Results) -> Iterator[Source]:
    """Rows and other figures by what they came from, in the order of the file."""
    found: dict[tuple[str, str, str], list[tuple[str, Origin]]] = {}
    figures: list[tuple[str, Origin]] = [*((row.name, row) for row in kept.rows), *kept.ratios.items()]
    figures += [("growth", kept.growth)] if kept.growth else []
    for name, each in figures:
        on_cpu = isinstance(each, Row) and each.device == "cpu"
        processor = each.machine.cpu if on_cpu else each.machine.gpu or each.machine.cpu
        machine = f"{processor}, {each.threads} of {each.machine.cores} cores"
        versions = ", ".join(f"{package} {version}" for package, version in each.versions.items())
        found.setdefault((machine, versions, each.commit), []).append((name, each))
    for (machine, versions, commit), these in found.items():
        days = sorted({each.started[:10] for _, each in these})
        names = list(_listed(these, kept.rows))
        yield Source(names, machine, versions, commit, days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}")


def _listed(figures: list[tuple[str, Origin]], rows: list[Row]) -> Iterator[str]:
    """Names of the figures, rows by setting; "every row" where the setting has no other."""
    settings: dict[str, list[str]] = {}
    for _, each in figures:
        if isinstance(each, Row):
            settings.setdefault(each.setting, []).append(f"{each.pair} {each.size}")
    for setting, names in settings.items():
        whole = len(names) == sum(row.setting == setting for row in rows)
        yield f"{'every row' if whole else ', '.join(names)} ({setting})"
    yield from (name for name, each in figures if not isinstance(each, Row))

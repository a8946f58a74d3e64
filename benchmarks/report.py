"""`encore report`: one HTML page about all papers that needs nothing but itself."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev

from benchmarks import catalog, paths, plots
from benchmarks.curves import Curve
from benchmarks.files import write_atomic
from benchmarks.provenance import commit
from benchmarks.records import read_curves
from benchmarks.schema import Claim, Measurement
from benchmarks.standing import Row, Standing, interval_text, number, signed
from benchmarks.table import ran

UNINTERESTING = re.compile(r"(^|[:/ ])(lr|learning_rate|epoch|samples|flops|seconds|step_time|throughput|grad)", re.I)
MAX_CURVES = 3


@dataclass
class ClaimView:
    """A claim, or a measurement, as the page shows it: `arms` is a table of mean and spread a metric."""

    experiment: Claim | Measurement
    metrics: list[str]
    arms: list[tuple[str, list[str]]]
    plots: list[str]


def write_report(output: Path | None = None) -> Path:
    """Write the page about every paper's committed results; returns the file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    output = output or paths.root() / "reports" / "index.html"
    environment = Environment(
        loader=PackageLoader("benchmarks"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "interval": interval_text, "ran": ran, "ours": ours}
    environment.globals |= {"idea": idea, "claim_view": claim_view}
    standings = [Standing(paper) for paper in catalog.load_all().values()]
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = environment.get_template("report.html").render(standings=standings, written=written, commit=commit())
    write_atomic(output, page)
    return output


def idea(slug: str) -> str:
    """First paragraph of the section `Idea` of a paper's README.md, as plain text; empty when there is none."""
    file = paths.room(slug) / "README.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    match = re.search(r"^#+ +(?:the )?idea\b.*?\n+(.+?)(?:\n\s*\n|\n#|\Z)", text, re.I | re.M | re.S)
    paragraph = " ".join(match.group(1).split()) if match else ""
    paragraph = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", paragraph).replace("`", "")
    return re.sub(r"(\*{1,2})(\S.*?)\1", r"\2", paragraph)


def ours(row: Row) -> str:
    """Our value of a reported row, with its standard deviation over seeds."""
    spread = f" ± {row.spread:.2g}" if row.spread is not None else ""
    return "" if row.ours is None else number(row.ours) + spread


def claim_view(standing: Standing, experiment: Claim | Measurement) -> ClaimView:
    """Tables and plots of one claim or measurement; empty where it never ran."""
    record = standing.records[experiment.id]
    units = record["units"] if record else []
    curves = read_curves(standing.paper.slug, experiment.id, standing.scale) if record else {}
    names = list(dict.fromkeys(name for unit in units for name in unit["metrics"]))
    arms = []
    for arm in experiment.all_arms:
        values = [[u["metrics"][name] for u in units if u["arm"] == arm and name in u["metrics"]] for name in names]
        arms.append((arm, [_mean_and_spread(each) for each in values]))
    drawn = _verdict_plots(standing, experiment, units) if isinstance(experiment, Claim) and units else []
    return ClaimView(experiment, names, arms if units else [], [*drawn, *_curve_plots(experiment, curves)])


def _mean_and_spread(values: list[float]) -> str:
    if not values:
        return "-"
    return number(fmean(values)) + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def _verdict_plots(standing: Standing, claim: Claim, units: list[dict]) -> list[str]:
    verdict = standing.verdicts[claim.id]
    sides = [side for of in (claim.method, claim.baseline) if isinstance(side := claim.side(of), tuple)]
    others = [(arm, claim.metric) for arm in claim.all_arms if arm not in {arm for arm, _ in sides}]
    rows = {}
    for arm, metric in dict.fromkeys([*sides, *others]):
        values = [u["metrics"][metric] for u in units if u["arm"] == arm and metric in u["metrics"]]
        if values:
            rows[arm if metric == claim.metric else f"{arm} {metric}"] = values
    if not rows or verdict.gap is None:
        return []
    worded = "; ".join(f"{name}: {', '.join(f'{v:.4g}' for v in values)}" for name, values in rows.items())
    better = "higher" if claim.higher_is_better else "lower"
    sign = 1 if claim.higher_is_better else -1
    gaps = [sign * (verdict.values[seed] - verdict.baseline_values[seed]) for seed in verdict.values]
    gap_words = f"mean gap {signed(verdict.gap)}, 95 % interval {interval_text(verdict.interval)}, {verdict.verdict}"
    return [
        plots.dots(rows, f"{claim.metric} ({better} is better)", f"One dot a seed. {worded}"),
        plots.interval(gaps, verdict.interval, claim.margin, "gap in the paper's favour", gap_words),
    ]


def _curve_plots(experiment: Claim | Measurement, curves: dict[str, dict[str, Curve]]) -> list[str]:
    names = dict.fromkeys(name for unit in curves.values() for name in unit if not UNINTERESTING.search(name))
    drawn = []
    for name in sorted(names, key=lambda name: ("loss" not in name, name))[:MAX_CURVES]:
        lines = {}
        for arm in experiment.all_arms:
            found = [curves.get(f"{arm}-{seed}", {}).get(name, []) for seed in experiment.seeds]
            if seeds := [line for line in found if len(line) > 1]:
                lines[arm] = seeds
        if lines:
            last = {arm: ", ".join(f"{line[-1][1]:.4g}" for line in seeds) for arm, seeds in lines.items()}
            ends = "; ".join(f"{arm} ends at {values}" for arm, values in last.items())
            drawn.append(plots.curves(lines, f"{name} against step", f"Learning curves, one line a seed. {ends}"))
    return drawn

"""The paper's figures and ours side by side, on a terminal."""

from collections import Counter
from statistics import fmean
from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.paper.facts import FactResult
from benchmarks.paper.recipe import RecipeResult
from benchmarks.paper.schema import Claim, Measurement, Paper
from benchmarks.run.agreement import Line
from benchmarks.run.plan import Entry
from benchmarks.run.standing import Standing, interval_text, machine_text, number, signed, spoken, value_text
from benchmarks.run.verdict import Verdict

COLOURS = {
    **dict.fromkeys(("match", "verified", "reproduced", "supported"), "green"),
    **dict.fromkeys(("mismatch", "error", "not reproduced"), "red"),
    **dict.fromkeys(("inconclusive", "undertrained", "stale", "missing", "not computed"), "yellow"),
    "measured": "cyan",
    **{"agrees": "green", "differs": "red"},
    **dict.fromkeys(("incomplete", "nothing to compare"), "yellow"),
}


def console(file: IO[str] | None = None, terminal: bool | None = None, width: int | None = None) -> Console:
    """A console that keeps whole table lines when the output goes into a file.

    `file` takes the place of stdout; it is drawn for as if it were a terminal (or not) of `width` columns.
    """
    plain = Console(file=file, highlight=False, force_terminal=terminal, width=width)
    return plain if plain.is_terminal else Console(file=file, highlight=False, force_terminal=terminal, width=160)


def coloured(verdict: str) -> str:
    colour = COLOURS.get(verdict)
    return f"[{colour}]{verdict}[/{colour}]" if colour else verdict


def overview(standings: list[Standing]) -> Table:
    """One line a paper."""
    table = Table("paper", "year", "title", "modality", "fidelity", "facts", "claims", "missing parts")
    for standing in standings:
        paper = standing.paper
        counts = Counter(verdict.verdict for verdict in standing.verdicts.values())
        claims = ", ".join(f"{n} {coloured(verdict)}" for verdict, n in counts.items()) or "none"
        total = f"{standing.matches}/{len(paper.facts)}"
        line = (
            paper.slug,
            str(paper.year),
            escape(paper.title),
            " ".join(paper.modality),
            paper.fidelity,
            total,
            claims,
        )
        table.add_row(*line, str(len(standing.missing)))
    return table


def facts_table(slug: str, results: list[FactResult]) -> Table:
    table = Table("fact", "quantity", "reported", "computed", "difference", "verdict", title=f"{slug}: facts")
    for fact in results:
        difference = "-" if fact.difference is None else f"{100 * fact.difference:+.4g} %"
        computed = number(fact.computed)
        table.add_row(fact.id, fact.quantity, number(fact.reported), computed, difference, coloured(fact.verdict))
    return table


def recipe_table(slug: str, results: list[RecipeResult]) -> Table:
    table = Table("recipe row", "reported", "in the configs", "verdict", title=f"{slug}: recipe")
    for row in results:
        found = row.error or value_text(row.computed)
        table.add_row(*map(escape, (row.where, value_text(row.reported), found)), coloured(row.verdict))
    return table


def claims_table(standing: Standing) -> Table:
    table = Table(title=f"{standing.paper.slug}: claims at scale {standing.scale}")
    for column in (
        "claim",
        "paper",
        "metric",
        "method (ours)",
        "baseline (ours)",
        "gap",
        "95 % interval",
        "n",
        "verdict",
    ):
        table.add_column(column, overflow="fold")
    for claim in standing.paper.claims:
        verdict = standing.verdicts[claim.id]
        method, baseline = (_named(claim.side(of)) for of in (claim.method, claim.baseline))
        sides = [
            f"{name} {mean(values)}" for name, values in ((method, verdict.values), (baseline, verdict.baseline_values))
        ]
        metric = claim.metric + ("" if claim.higher_is_better else " (lower is better)")
        gap = signed(verdict.gap) + (f" (margin {claim.margin:g})" if claim.margin else "")
        line = (claim.id, claim.paper_ref, metric, *sides, gap, interval_text(verdict.interval), str(verdict.n))
        table.add_row(*map(escape, line), coloured(verdict.verdict))
    return table


def rows_table(standing: Standing) -> Table:
    table = Table(title=f"{standing.paper.slug}: the paper's numbers and ours")
    for column in ("row", "table", "what", "reported", "source", "paper's baseline", "ours", "gap", "verdict"):
        table.add_column(column, overflow="fold")
    for row in standing.rows:
        kept = row.reported
        what = ", ".join(
            part for part in (kept.method, kept.dataset, kept.metric, kept.setting) if part not in (None, "none")
        )
        unit = kept.unit if kept.unit == "%" else f" {kept.unit}"
        baseline = f"{kept.baseline.name} {number(kept.baseline.value)}" if kept.baseline else "-"
        ours = (
            "-" if row.ours is None else number(row.ours) + (f" ± {row.spread:.2g}" if row.spread is not None else "")
        )
        gap = signed(row.ours - kept.value) if row.ours is not None and isinstance(kept.value, int | float) else "-"
        line = (kept.id, kept.table, what, number(kept.value) + unit, kept.source, baseline, ours, gap)
        table.add_row(*map(escape, line), coloured(row.verdict) + (f" ({row.by})" if row.by else ""))
    return table


def plan_table(entries: list[Entry], chosen: list[Entry]) -> Table:
    """One line an experiment: its units by state, and those that would run with their expected time."""
    table = Table("paper", "claim or measurement", "units", "to run", "a unit", "unit time", "judging by")
    by_experiment: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        by_experiment.setdefault(entry.key, []).append(entry)
    for (paper, claim), units in by_experiment.items():
        states = ", ".join(f"{n} {state}" for state, n in Counter(entry.state for entry in units).items())
        run = [entry for entry in units if entry in chosen]
        longest = spoken(max(entry.seconds for entry in run)) if run else "-"
        time = spoken(sum(entry.seconds for entry in run)) if run else "-"
        basis = {"arm": "past runs", "claim": "past runs of the claim", "limit": "its time limit"}
        judged = ", ".join(dict.fromkeys(basis[entry.basis] for entry in run)) or "-"
        table.add_row(paper, claim, states, str(len(run)), longest, time, judged)
    return table


def print_standing(standing: Standing, out: Console) -> None:
    """Facts summary, claims, reported rows, and the commands of what was not run here."""
    paper = standing.paper
    out.print(f"\n[bold]{escape(paper.title)}[/bold] ({escape(paper.venue)} {paper.year}), fidelity: {paper.fidelity}")
    out.print(f"facts: {standing.matches} of {len(paper.facts)} match")
    if paper.recipe:
        out.print(f"recipe rows: {standing.recipe_matches} of {len(paper.recipe)} match")
    if paper.claims:
        out.print(claims_table(standing))
        out.print(*(f"  {claim.id}: {escape(claim.statement)}" for claim in paper.claims), sep="\n")
        out.print(*(f"  {claim.id}: {ran(standing.verdicts[claim.id])}" for claim in paper.claims), sep="\n")
        below = {claim: verdict.below for claim, verdict in standing.verdicts.items() if verdict.below}
        out.print(*(f"  {claim} does not clear its gate: {escape(why)}" for claim, why in below.items()), sep="\n")
    for experiment in paper.experiments:
        if entry := standing.carried(experiment.id):
            out.print(f"  {experiment.id}: {carried_text(entry)}")
    if paper.reported:
        out.print(rows_table(standing))
    commands = {row.command for row in standing.rows if row.verdict == "recipe"}
    if commands:
        out.print("recipes of the rows that were not run here:")
        out.print(*(f"  {command}" for command in sorted(commands)), sep="\n")


def print_agreement(
    paper: Paper, experiments: list[Claim | Measurement], lines: list[Line], scale: str, out: Console
) -> None:
    """What a run gave beside what the paper reported and what is committed, and in how many lines they agree."""
    out.print(f"\n[bold]{escape(paper.title)}[/bold] ({escape(paper.venue)} {paper.year})")
    out.print(*(f"  {each.id}: {escape(each.statement)}" for each in experiments), sep="\n")
    table = Table(title=f"{paper.slug} at scale {scale}")
    for column in ("claim or row", "reported", "committed", "this run", "verdict"):
        table.add_column(column, overflow="fold")
    for line in lines:
        head, colon, more = line.outcome.partition(":")
        cells = map(escape, (line.what, line.reported, line.committed, line.run))
        table.add_row(*cells, coloured(head) + colon + more)
    if lines:
        out.print(table)
    count = Counter(line.outcome.partition(":")[0] for line in lines)
    if compared := count["agrees"] + count["differs"]:
        out.print(f"{paper.slug}: this run agrees with the committed results in {count['agrees']} of {compared} lines")


def ran(verdict: Verdict) -> str:
    """When and where the results behind a verdict came to be."""
    if not verdict.commit:
        return "not run yet"
    where = machine_text(verdict.machine)
    origin = f"commit {verdict.commit}, code {verdict.code}, config {verdict.config}"
    return f"{verdict.seconds:.0f} s of unit time on {where}; {origin}"


def carried_text(entry: dict[str, Any]) -> str:
    """What stands behind a result that is fresh by `encore carry`."""
    return (
        f"carried on {entry['date']} to code {entry['code']}: smoke runs there and in commit {entry['from']} "
        f"are equal bit for bit (digest {entry['smoke']})"
    )


def mean(values: dict[int, float]) -> str:
    return number(fmean(values.values())) if values else "-"


def _named(side: tuple[str, str] | float) -> str:
    return " ".join(side) if isinstance(side, tuple) else "fixed"

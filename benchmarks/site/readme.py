"""Generated blocks of the README files, so that prose about results cannot drift from the results.

A block lies between `<!-- encore:begin NAME -->` and `<!-- encore:end -->`: `papers` in README.md, `results` in
papers/<slug>/README.md.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from benchmarks.paper import catalog, paths
from benchmarks.paper.files import write_atomic
from benchmarks.paper.schema import Claim
from benchmarks.run.standing import Row, Standing, interval_text, number, signed, train_command
from common.errors import EncoreError

BLOCK = re.compile(r"(<!-- encore:begin (\S+) -->\n)(.*?)(<!-- encore:end -->)", re.S)


def update(check: bool = False) -> list[str]:
    """Rewrite the blocks; returns the files that changed, or with `check` those that would."""
    standings = [Standing(paper) for paper in catalog.load_all().values()]
    files: dict[Path, dict[str, Callable[[], str]]] = {
        paths.root() / "README.md": {"papers": partial(papers_block, standings)}
    }
    for standing in standings:
        room = paths.room(standing.paper.slug) / "README.md"
        files[room] = {"results": partial(results_block, standing)}
    changed = []
    for file, blocks in files.items():
        if not file.is_file():
            continue
        before = file.read_text(encoding="utf-8")
        after = BLOCK.sub(partial(_filled, file, blocks), before)
        if after != before:
            changed.append(paths.shown(file))
            if not check:
                write_atomic(file, after)
    return changed


def _filled(file: Path, blocks: dict[str, Callable[[], str]], match: re.Match[str]) -> str:
    begin, name, _, end = match.groups()
    if name not in blocks:
        raise EncoreError(f"{paths.shown(file)}: unknown block {name!r}; it may hold {', '.join(blocks)}")
    return f"{begin}{blocks[name]()}\n{end}"


def papers_block(standings: list[Standing]) -> str:
    """Table of all papers with their verdicts."""
    lines = [_line(["paper", "year", "modality", "facts that match", "recipe rows that match", "claims", "fidelity"])]
    lines.append("|---" * 7 + "|")
    for standing in standings:
        paper = standing.paper
        verdicts = Counter(verdict.verdict for verdict in standing.verdicts.values())
        claims = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items()) or "none"
        line = [f"[{paper.title}](papers/{paper.slug}/README.md)", str(paper.year), ", ".join(paper.modality)]
        counts = (
            f"{standing.matches} of {len(paper.facts)}",
            (f"{standing.recipe_matches} of {len(paper.recipe)}" if paper.recipe else "none"),
        )
        lines.append(_line([*line, *counts, claims, paper.fidelity]))
    return "\n".join(lines)


def results_block(standing: Standing) -> str:
    """Facts, claims, measured rows and reported rows of one paper, and how to get them."""
    paper = standing.paper
    rows = f", recipe rows: {standing.recipe_matches} of {len(paper.recipe)}" if paper.recipe else ""
    parts = [f"Facts: {standing.matches} of {len(paper.facts)} match{rows} (`encore facts {paper.slug}`)."]
    if paper.claims:
        parts += [f"Claims at scale `{standing.scale}` (`encore reproduce {paper.slug}`):", _claims(standing)]
        parts += [f"- `{claim.id}`: {claim.statement} ({claim.paper_ref})" for claim in paper.claims]
    if measured := [row for row in standing.rows if row.by.startswith("measurement")]:
        parts += [
            f"Measured beside the paper's rows (`encore reproduce {paper.slug} --measurements`):",
            _measured(measured),
        ]
    if paper.reported:
        parts += ["Every number kept from the paper:", _reported(standing.rows)]
    recipes = sorted({row.reported.recipe for row in standing.rows if row.reported.recipe})
    if recipes:
        commands = "\n".join(train_command(paper.slug, recipe) for recipe in recipes)
        parts += ["The published recipes:", f"```\n{commands}\n```"]
    return _join(parts)


def _claims(standing: Standing) -> str:
    lines = [_line(["claim", "metric", "method", "baseline", "gap", "95 % interval", "n", "verdict"]), "|---" * 8 + "|"]
    for claim in standing.paper.claims:
        verdict = standing.verdicts[claim.id]
        sides = (_side(claim, of, values) for of, values in _sides(claim, verdict.values, verdict.baseline_values))
        metric = claim.metric if claim.higher_is_better else f"{claim.metric} (lower is better)"
        gap = signed(verdict.gap) + (f" (margin {claim.margin:g})" if claim.margin else "")
        cells = [f"`{claim.id}`", metric, *sides, gap, interval_text(verdict.interval), str(verdict.n), verdict.verdict]
        lines.append(_line(cells))
    return "\n".join(lines)


def _sides(claim: Claim, method: dict[int, float], baseline: dict[int, float]) -> list[tuple]:
    return [(claim.method, method), (claim.baseline, baseline)]


def _side(claim: Claim, of: object, values: dict[int, float]) -> str:
    side = claim.side(of)  # type: ignore[arg-type]
    name = (side[0] if side[1] == claim.metric else " ".join(side)) if isinstance(side, tuple) else "fixed"
    return f"{name} {number(fmean(values.values()))}" if values else name


def _measured(rows: list[Row]) -> str:
    lines = [_line(["row", "what", "reported", "ours", "seeds"]), "|---" * 5 + "|"]
    for row in rows:
        kept = row.reported
        ours = number(row.ours) + (f" ± {row.spread:.2g}" if row.spread is not None else "")
        ours += " (stale)" if row.verdict == "stale" else ""
        reported = f"{number(kept.value)} {kept.unit} ({kept.source})"
        lines.append(_line([f"`{kept.id}`", _what(row), reported, ours, str(row.n)]))
    return "\n".join(lines)


def _reported(rows: list[Row]) -> str:
    lines = [_line(["row", "table", "what", "reported", "source", "paper's baseline", "here"]), "|---" * 7 + "|"]
    for row in rows:
        kept = row.reported
        baseline = f"{kept.baseline.name} {number(kept.baseline.value)}" if kept.baseline else ""
        here = f"{row.verdict} by {row.by}" if row.by else row.verdict
        here += f", `{kept.recipe}`" if row.verdict == "recipe" else ""
        value = f"{number(kept.value)} {kept.unit}"
        lines.append(_line([f"`{kept.id}`", kept.table, _what(row), value, kept.source, baseline, here]))
    return "\n".join(lines)


def _what(row: Row) -> str:
    kept = row.reported
    return ", ".join(
        part for part in (kept.method, kept.dataset, kept.metric, kept.setting) if part not in (None, "none", "-")
    )


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _join(parts: list[str]) -> str:
    """Paragraphs apart, list items together."""
    text = parts[0]
    for before, part in pairwise(parts):
        text += ("\n" if before.startswith("- ") and part.startswith("- ") else "\n\n") + part
    return text

"""What is not there yet: the parts of a complete room that a paper lacks, and imports that point the wrong way."""

import re
from collections.abc import Iterator
from itertools import pairwise

from benchmarks.paper import paths
from benchmarks.paper.facts import FactResult
from benchmarks.paper.fingerprint import imported_modules
from benchmarks.paper.recipe import RecipeResult
from benchmarks.paper.schema import Claim, Paper

FILES = (
    "model.py",
    "module.py",
    "data.py",
    "claims.py",
    "train.py",
    "configs/smoke.yaml",
    "configs/cpu.yaml",
    "README.md",
)
TESTED = ("model", "module", "data", "claims")


def missing_parts(
    paper: Paper, facts: list[FactResult], recipe: list[RecipeResult], outcomes: dict[str, str]
) -> list[str]:
    """Every part of a complete room that is not there, not tested, not run or stale, one line each.

    outcomes: {claim or measurement: its verdict}, of which only `missing` and `stale` matter here.
    """
    return [*_missing(paper, facts, recipe, outcomes), *paper.missing]


def _missing(
    paper: Paper, facts: list[FactResult], recipe: list[RecipeResult], outcomes: dict[str, str]
) -> Iterator[str]:
    room = paths.room(paper.slug)
    yield from (name for name in FILES if not (room / name).is_file())
    if not list((room / "configs").glob("paper*.yaml")):
        yield "configs/paper*.yaml"
    tests = sorted((paths.root() / "tests" / "papers" / paper.slug).glob("test_*.py"))
    if not tests:
        yield f"tests/papers/{paper.slug}/"
    else:
        mentioned = _mentioned(paper.slug, "\n".join(test.read_text(encoding="utf-8") for test in tests))
        yield from (
            f"{name}.py is not tested" for name in TESTED if (room / f"{name}.py").is_file() and name not in mentioned
        )
    if not paper.facts:
        yield "facts"
    if open_facts := [fact.id for fact in facts if fact.verdict != "match"]:
        yield f"facts without a match: {', '.join(open_facts)}"
    if not paper.recipe:
        yield "recipe rows"
    if open_rows := [row.where for row in recipe if row.verdict != "match"]:
        yield f"recipe rows without a match: {', '.join(open_rows)}"
    if not paper.claims:
        yield "claims"
    for experiment in paper.experiments:
        kind = "claim" if isinstance(experiment, Claim) else "measurement"
        if outcomes[experiment.id] in ("missing", "stale"):
            adjective = "fresh " if outcomes[experiment.id] == "stale" else ""
            yield f"{adjective}result of {kind} {experiment.id}"
    if not paths.trajectory(paper.slug).is_file():
        yield "regress trajectory"


def _mentioned(slug: str, text: str) -> set[str]:
    """Modules of the paper that a test file imports."""
    found = set(re.findall(rf"papers\.{slug}\.(\w+)", text))
    for names in re.findall(rf"from papers\.{slug} import \(?([\w\s,]+)", text):
        found |= set(re.findall(r"\w+", names))
    return found


def wrong_arrows(papers: dict[str, Paper]) -> list[str]:
    """Imports the house rules forbid, disagreements between imports and `builds_on`, and circles; one line each."""
    found = []
    root = paths.root()
    for file in sorted((root / "common").rglob("*.py")):
        for module in imported_modules(file):
            if module.split(".")[0] in ("papers", "benchmarks"):
                found.append(f"{paths.shown(file)} imports {module}: common knows no paper and no harness")
    edges: dict[str, set[str]] = {slug: set() for slug in papers}
    for slug, paper in papers.items():
        for file in sorted(paths.room(slug).rglob("*.py")):
            for module in imported_modules(file):
                package, *rest = module.split(".")
                if package == "benchmarks":
                    found.append(f"{paths.shown(file)} imports {module}: a paper does not know the harness")
                if package == "papers" and rest and rest[0] != slug:
                    edges[slug].add(rest[0])
        for other in sorted(edges[slug] - set(paper.builds_on)):
            found.append(f"papers/{slug} imports papers.{other} but builds_on does not name it")
        for other in paper.builds_on:
            if other not in papers:
                found.append(f"papers/{slug}/paper.yaml: builds_on names {other!r}, which is not a paper here")
            elif other not in edges[slug]:
                found.append(f"papers/{slug}/paper.yaml: builds_on names {other}, but nothing is imported from it")
    found += [f"papers build on each other in a circle: {' -> '.join(circle)}" for circle in _circles(edges)]
    return [*found, *_wrong_arrows_of_the_harness()]


def _wrong_arrows_of_the_harness() -> Iterator[str]:
    """A paper that benchmarks/ imports by name, and rooms of it that import each other in a circle."""
    home = paths.root() / "benchmarks"
    edges: dict[str, dict[str, str]] = {}
    for file in sorted(home.rglob("*.py")):
        room = file.relative_to(home).parts[0]
        for module in sorted(imported_modules(file)):
            package, *rest = module.split(".")
            if package == "papers":
                yield f"{paths.shown(file)} imports {module}: the harness names no paper"
            if package == "benchmarks" and rest and (home / room).is_dir() and rest[0] != room:
                edges.setdefault(room, {}).setdefault(rest[0], paths.shown(file))
    for circle in _circles({room: set(others) for room, others in edges.items()}):
        files = ", ".join(edges[room][other] for room, other in pairwise(circle))
        yield f"rooms of benchmarks import each other in a circle: {' -> '.join(circle)} ({files})"


def _circles(edges: dict[str, set[str]]) -> list[list[str]]:
    done: set[str] = set()
    found: list[list[str]] = []

    def visit(slug: str, path: list[str]) -> None:
        if slug in path:
            found.append([*path[path.index(slug) :], slug])
        elif slug not in done:
            for other in sorted(edges.get(slug, ())):
                visit(other, [*path, slug])
            done.add(slug)

    for slug in sorted(edges):
        visit(slug, [])
    return found

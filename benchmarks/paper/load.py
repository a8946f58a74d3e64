"""Reads one paper.yaml; every error names the file, the line and the field."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from benchmarks.paper import paths
from benchmarks.paper.schema import Paper
from common.errors import EncoreError
from common.plain_yaml import Loader, read_mapping

GENERATED = "generated"
RESERVED = re.compile(r"facts|gallery|.*\.curves")  # files of these names lie beside the results of claims
Location = tuple[int | str, ...]


def parse_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a yaml file; EncoreError with the line when it is not one."""
    return read_mapping(path, paths.shown(path))


def load_paper(path: Path, content: dict | None = None) -> Paper:
    """The validated paper.yaml at `path`; `content` is what parse_yaml gave, when the caller has it."""
    content = parse_yaml(path) if content is None else content
    try:
        paper = Paper.model_validate(content)
    except ValidationError as error:
        problems: list[tuple[Location, str]] = []
        for problem in error.errors(include_url=False, include_context=False, include_input=False):
            if not any(problem["loc"][: len(loc)] == loc and loc for loc, _ in problems):
                problems.append((problem["loc"], _plain(problem["msg"], problem["type"])))
    else:
        problems = list(_broken_references(paper, path.parent))
    if problems:
        raise EncoreError(_message(path, problems))
    return paper


def _plain(message: str, kind: str) -> str:
    plain = {"missing": "is required and not there", "extra_forbidden": "unknown key"}
    return plain.get(kind, message.removeprefix("Value error, "))


def _broken_references(paper: Paper, room: Path) -> Iterator[tuple[Location, str]]:
    if paper.slug != room.name:
        yield ("slug",), f"is {paper.slug!r} but the folder is {room.name!r}"
    experiments = [e.id for e in paper.experiments]
    facts, claims, rows = ({item.id for item in items} for items in (paper.facts, paper.claims, paper.reported))
    for field, names in (
        ("facts", [fact.id for fact in paper.facts]),
        ("claims", [claim.id for claim in paper.claims]),
        ("reported", [row.id for row in paper.reported]),
    ):
        for index, name in enumerate(names):
            if name in names[:index]:
                yield (field, index, "id"), f"{name!r} is used twice"
    for field, found in (("claims", paper.claims), ("measurements", paper.measurements)):
        for index, experiment in enumerate(found):
            if RESERVED.fullmatch(experiment.id):
                yield (field, index, "id"), f"{experiment.id!r} is taken by another file of the results"
    for index, row in enumerate(paper.reported):
        if row.fact is not None and row.fact not in facts:
            yield ("reported", index, "fact"), f"there is no fact {row.fact!r}"
        if row.claim is not None and row.claim not in claims:
            yield ("reported", index, "claim"), f"there is no claim {row.claim!r}"
        if row.recipe is not None and not (room / row.recipe).is_file():
            yield ("reported", index, "recipe"), f"there is no file {row.recipe!r} in {paths.shown(room)}"
    for index, measurement in enumerate(paper.measurements):
        if experiments.count(measurement.id) > 1:
            yield ("measurements", index, "id"), f"{measurement.id!r} is used twice"
        for row_id, cell in measurement.rows.items():
            if row_id not in rows:
                yield ("measurements", index, "rows", row_id), f"there is no reported row {row_id!r}"
            if cell.arm not in measurement.arms:
                yield ("measurements", index, "rows", row_id, "arm"), f"{cell.arm!r} is not one of its arms"
    for field, builds in (("facts", [f.build for f in paper.facts]), ("recipe", [row.build for row in paper.recipe])):
        for index, build in enumerate(builds):
            if build is not None and not build.startswith(("papers.", "common.")):
                yield (field, index, "build"), "must lie in papers or common"
    for index, constant in enumerate(paper.recipe):
        field = "config" if constant.config else "configs"
        for pattern in constant.patterns:
            if not any((room / "configs").glob(pattern)):
                yield ("recipe", index, field), f"there is no file {pattern!r} in {paths.shown(room / 'configs')}"
    for field, entries in (
        ("claims", [(claim.entry, claim.sources) for claim in paper.claims]),
        ("measurements", [(measurement.entry, measurement.sources) for measurement in paper.measurements]),
    ):
        for index, (entry, sources) in enumerate(entries):
            if not entry.startswith(f"papers.{paper.slug}."):
                yield (field, index, "entry"), f"must lie in papers.{paper.slug}"
            for name in sources:
                if name != GENERATED and name not in _source_names():
                    yield (field, index, "data"), f"there is no data source {name!r}, see `encore data list`"


@cache
def _source_names() -> set[str]:
    from common.sources import all_sources

    return {source.name for source in all_sources()}


def _message(path: Path, problems: list[tuple[Location, str]]) -> str:
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader)
    assert node is not None  # it was parsed as a mapping before
    lines = []
    for location, message in problems[:10]:
        line, field = _place(node, location)
        lines.append(f"{paths.shown(path)}:{line}: {field}: {message}")
    if len(problems) > 10:
        lines.append(f"and {len(problems) - 10} more")
    return "\n".join(lines)


def _place(node: yaml.Node, location: Location) -> tuple[int, str]:
    """(line, dotted field) of a pydantic location; names of union members in it lead nowhere and are left out."""
    line, field = node.start_mark.line + 1, ""
    for step, part in enumerate(location):
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line, field = node.start_mark.line + 1, f"{field}[{part}]"
        elif isinstance(node, yaml.MappingNode) and not isinstance(part, int):  # int: one gate may stand for a list
            child = next((pair for pair in node.value if pair[0].value == str(part)), None)
            if child is not None:
                line, node = child[0].start_mark.line + 1, child[1]
            if child is not None or step == len(location) - 1:
                field = f"{field}.{part}".lstrip(".")
            if child is None:
                break
    return line, field or "(file)"

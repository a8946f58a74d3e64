"""Facts: figures that follow from the sizes alone, computed on the meta device and compared with the paper's.

`compute` always builds the models. What it found is also kept in benchmarks/results/<paper>/facts.json, tied to a hash
of the code, so that `encore list` and the README can count matches without importing torch.
"""

import importlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.paper import fingerprint, paths
from benchmarks.paper.files import is_finite, read_json, write_atomic
from benchmarks.paper.schema import Fact, Paper

COUNTED = ("parameters", "trainable_parameters")
FactVerdict = Literal["match", "mismatch", "error", "not computed"]


@dataclass(frozen=True)
class FactResult:
    """`difference` is relative to the reported value; `error` says why there is no computed value."""

    id: str
    quantity: str
    reported: float
    computed: float | None
    verdict: FactVerdict
    difference: float | None = None
    error: str = ""
    seconds: float = 0.0


def compute(paper: Paper, keep: bool = True) -> list[FactResult]:
    """Build and check every fact of a paper; a build that raises is the verdict `error`. `keep` updates facts.json."""
    found = [check(fact) for fact in paper.facts]
    if keep:
        _keep(paper, found)
    return found


def check(fact: Fact) -> FactResult:
    """One fact, computed now."""
    begin = time.perf_counter()
    try:
        computed = _computed(fact)
    except Exception as error:
        message = f"{fact.build}: {type(error).__name__}: {error}"
        return FactResult(fact.id, fact.quantity, fact.reported, None, "error", error=message)
    return replace(compare(fact, computed), seconds=round(time.perf_counter() - begin, 2))


def compare(fact: Fact, computed: float) -> FactResult:
    """match when the relative difference is within the fact's tolerance (0 means equal)."""
    scale = abs(fact.reported) or 1.0
    difference = (computed - fact.reported) / scale
    verdict: FactVerdict = "match" if abs(difference) <= fact.rel_tol else "mismatch"
    return FactResult(fact.id, fact.quantity, fact.reported, computed, verdict, difference)


def recorded(paper: Paper) -> list[FactResult]:
    """What the last computation found, without computing; `not computed` where code or definition changed since."""
    kept = {item["id"]: item for item in read_part(paper, "facts") if _is_record(item)}
    results = []
    for fact in paper.facts:
        item = kept.get(fact.id)
        if item is not None and item["code"] == fingerprint.fact_code(fact):
            results.append(compare(fact, item["computed"]))
        else:
            results.append(FactResult(fact.id, fact.quantity, fact.reported, None, "not computed"))
    return results


def _computed(fact: Fact) -> float:
    paths.make_importable()
    module, _, name = fact.build.partition(":")
    build = getattr(importlib.import_module(module), name)
    import torch

    with torch.device("meta"):
        built: Any = build(**fact.args)
    if fact.quantity not in COUNTED:
        number = float(built)
        return int(number) if number.is_integer() else number
    for attribute in filter(None, (fact.part or "").split(".")):
        built = getattr(built, attribute)
    if isinstance(built, torch.nn.Parameter):
        return built.numel()
    return sum(p.numel() for p in built.parameters() if p.requires_grad or fact.quantity == "parameters")


def _is_record(item: Any) -> bool:
    """Whether it has the form of an item of facts.json: a damaged file is a fact not computed."""
    return (
        isinstance(item, dict)
        and is_finite(item.get("computed"))
        and all(isinstance(item.get(key), str) for key in ("id", "code"))
    )


def _keep(paper: Paper, found: list[FactResult]) -> None:
    facts = {fact.id: fact for fact in paper.facts}
    items = [
        {"id": result.id, "computed": result.computed, "code": fingerprint.fact_code(facts[result.id])}
        for result in found
        if result.computed is not None
    ]
    write_part(paper, "facts", items)


def read_part(paper: Paper, part: str) -> list[Any]:
    """What facts.json keeps under `part` ("facts", "recipe"); nothing where the file is damaged or not there."""
    found = (read_json(_file(paper)) or {}).get(part)
    return found if isinstance(found, list) else []


def write_part(paper: Paper, part: str, items: list[dict[str, Any]]) -> None:
    """Put `items` under `part` of facts.json, one a line; the other part stays, and so does an unchanged file."""
    parts = {"facts": read_part(paper, "facts"), "recipe": read_part(paper, "recipe")} | {part: items}
    blocks = []
    for name, rows in parts.items():
        lines = ",\n ".join(json.dumps(row) for row in rows)
        if rows or name == "facts":
            blocks.append(f'"{name}": [\n {lines}\n]' if rows else f'"{name}": []')
    text = "{" + ",\n".join(blocks) + "}\n"
    file = _file(paper)
    if (items or file.exists()) and (not file.exists() or file.read_text() != text):
        write_atomic(file, text)


def _file(paper: Paper) -> Path:
    return paths.results(paper.slug) / "facts.json"

"""Galleries: what makes a paper's method visible, made by papers/<slug>/gallery.py and kept beside its results."""

import importlib
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.paper import fingerprint, paths
from benchmarks.paper.files import read_json, write_atomic
from benchmarks.paper.schema import Paper
from benchmarks.run.provenance import provenance
from common.errors import EncoreError

if TYPE_CHECKING:
    from common.gallery import Gallery

MAX_BYTES = 150_000


@dataclass(frozen=True)
class Kept:
    """A kept gallery; `is_old` when the code that made it has changed since."""

    gallery: "Gallery"
    origin: dict[str, Any]
    is_old: bool


def entry(slug: str) -> str:
    return f"papers.{slug}.gallery:gallery"


def has_one(paper: Paper) -> bool:
    return (paths.room(paper.slug) / "gallery.py").is_file()


def make(paper: Paper, seed: int = 0) -> Path:
    """Train the small model, keep what its gallery shows, and give the file."""
    if not has_one(paper):
        raise EncoreError(f"{paper.slug} has no gallery: there is no {paths.shown(paths.room(paper.slug))}/gallery.py")
    paths.make_importable()
    code = fingerprint.code(entry(paper.slug))  # before it runs: what is edited meanwhile does not count
    function = importlib.import_module(f"papers.{paper.slug}.gallery").gallery
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = function(Path(folder), seed=seed)
    head = {"paper": paper.slug, "code": code, "seed": seed}
    head |= {"seconds": round(time.perf_counter() - begin, 1), "provenance": provenance(), "trained": made.trained}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    items = ",\n".join(f"  {json.dumps(item.model_dump(), ensure_ascii=False)}" for item in made.items)
    text = "{\n" + ",\n".join([*lines, f' "items": [\n{items}\n ]']) + "\n}\n"
    if len(text.encode()) > MAX_BYTES:
        raise EncoreError(
            f"{entry(paper.slug)}: its {len(text.encode()):,} bytes are over {MAX_BYTES:,}: show fewer or smaller items"
        )
    write_atomic(_file(paper), text)
    return _file(paper)


def read(paper: Paper) -> Kept | None:
    """The kept gallery; None when there is none, or a damaged one."""
    content = read_json(_file(paper))
    if content is None:
        return None
    from pydantic import ValidationError

    from common.gallery import Gallery

    origin: Any = content.get("provenance")
    try:
        gallery = Gallery.model_validate({key: content.get(key) for key in ("trained", "items")})
    except ValidationError:
        return None
    if not isinstance(origin, dict) or "commit" not in origin:
        return None
    is_old = content.get("code") != (fingerprint.code(entry(paper.slug)) if has_one(paper) else None)
    return Kept(gallery, origin, is_old)


def _file(paper: Paper) -> Path:
    return paths.results(paper.slug) / "gallery.json"

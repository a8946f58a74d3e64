"""All papers of the tree."""

from pathlib import Path

from benchmarks.paper import paths
from benchmarks.paper.choices import pick
from benchmarks.paper.files import DerivedCache
from benchmarks.paper.load import load_paper, parse_yaml
from benchmarks.paper.schema import Paper


def load_all() -> dict[str, Paper]:
    """{slug: paper} of every papers/*/paper.yaml, in the order of their slugs; EncoreError on the first invalid one."""
    cache = DerivedCache("load", parse_yaml)
    files: list[Path] = sorted((paths.root() / "papers").glob("*/paper.yaml"))
    papers = [load_paper(file, cache[file]) for file in files]
    cache.save()
    return {paper.slug: paper for paper in papers}


def load_one(slug: str) -> Paper:
    """One paper; an unknown slug is an error that names the choices. Other papers' files are not read."""
    file = paths.room(slug) / "paper.yaml"
    if slug.isidentifier() and file.is_file():
        return load_paper(file)
    slugs = {path.parent.name: path.parent.name for path in sorted((paths.root() / "papers").glob("*/paper.yaml"))}
    return load_one(pick(slug, slugs, "paper"))


def select(slug: str | None) -> list[Paper]:
    """The papers a command is about: one of them, or all when `slug` is None or "all"."""
    return list(load_all().values()) if slug in (None, "all") else [load_one(str(slug))]

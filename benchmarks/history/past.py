"""Papers and results as they stood in a commit, read from git without touching the working tree."""

import json
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from benchmarks.paper import catalog, paths
from benchmarks.paper.files import read_json
from benchmarks.paper.git import blobs, commit_of, git
from benchmarks.paper.load import parse_yaml
from benchmarks.paper.schema import Paper
from benchmarks.run.records import Record, valid_record
from common.errors import EncoreError

RESULTS = "benchmarks/results/"


@dataclass
class Snapshot:
    """`revision`: what git resolves to a commit (EncoreError when it does not); None: the working tree."""

    revision: str | None = None
    unreadable: list[str] = field(default_factory=list)

    @cached_property
    def name(self) -> str:
        """Short hash of the commit, or "working tree"."""
        return self.commit[:12] if self.commit else "working tree"

    @cached_property
    def commit(self) -> str | None:
        if self.revision is None:
            return None
        return commit_of(self.revision)

    @cached_property
    def files(self) -> dict[str, str]:
        """{path: text} of every paper.yaml and every JSON of the results, without learning curves."""
        if self.commit is None:
            root = paths.root()
            found = [*root.glob("papers/*/paper.yaml"), *root.glob(f"{RESULTS}*/*.json")]
            names = [str(path.relative_to(root)) for path in found]
            return {
                name: (root / name).read_text(encoding="utf-8", errors="replace") for name in filter(_wanted, names)
            }
        listed = git("ls-tree", "-r", "--full-tree", "--name-only", "-z", self.commit, "--", "papers", RESULTS)
        names = [name for name in listed.split("\0") if _wanted(name)]
        return dict(zip(names, blobs([f"{self.commit}:{name}" for name in names])))

    @cached_property
    def papers(self) -> dict[str, Paper]:
        """{slug: paper}; those that the present schema cannot read are named in `unreadable`."""
        if self.commit is None:
            return catalog.load_all()
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, text in self.files.items():
                if name.endswith("paper.yaml"):
                    slug = name.split("/")[1]
                    copy = Path(folder) / f"{slug}.yaml"
                    copy.write_text(text, encoding="utf-8")
                    try:
                        found[slug] = Paper.model_validate(parse_yaml(copy))
                    except (EncoreError, ValidationError):
                        self.unreadable.append(slug)
        return found

    def record(self, slug: str, claim: str) -> Record | None:
        """The record of a claim or measurement; None when there was none, or a damaged one."""
        return valid_record(self._json(f"{RESULTS}{slug}/{claim}.json"))

    def facts(self, slug: str) -> dict[str, float]:
        """{fact: computed figure} as recorded then."""
        items = (self._json(f"{RESULTS}{slug}/facts.json") or {}).get("facts")
        items = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        return {item["id"]: item["computed"] for item in items if {"id", "computed"} <= item.keys()}

    def _json(self, name: str) -> dict | None:
        if self.commit is None:
            return read_json(paths.root() / name)
        try:
            content = json.loads(self.files.get(name, ""))
        except (ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None


def _wanted(name: str) -> bool:
    if name.startswith(RESULTS):
        return name.endswith(".json") and not name.endswith(".curves.json") and name.count("/") == 3
    return name.startswith("papers/") and name.endswith("/paper.yaml") and name.count("/") == 2

"""A tiny tree with one paper, `toy`, whose claim entry is plain Python: the harness without torch."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.paper import fingerprint, paths

PAPER = """\
slug: toy
title: A toy
authors: [A. Author]
year: 2020
venue: Nowhere
arxiv: "2001.00001"
modality: [text]
fidelity: confirmed
choices: ["everything is made up"]
facts:
  - {id: two, build: "papers.toy.model:two", quantity: value, reported: 2, source: derived}
claims:
  - id: better
    statement: the method is better
    paper_ref: Table 1
    metric: score
    method: method
    baseline: baseline
    higher_is_better: true
    seeds: [0, 1, 2]
    data: generated
    entry: "papers.toy.claims:better"
measurements:
  - id: values
    statement: the values themselves
    entry: "papers.toy.claims:better"
    arms: [method]
    seeds: [0, 1]
    data: generated
    rows: {row-measured: {arm: method, metric: score}}
reported:
  - {id: row-fact, table: T1, dataset: none, metric: two, setting: none, value: 2, unit: n, source: derived, fact: two}
  - {id: row-claim, table: T1, dataset: d, metric: m, setting: s, value: 9, unit: "%", source: recalled, claim: better}
  - {id: row-measured, table: T1, dataset: d, metric: m, setting: s, value: 11, unit: "%", source: abstract}
  - id: row-recipe
    table: T2
    dataset: d
    metric: m
    setting: s
    value: 50.5
    unit: "%"
    baseline: {name: other, value: null}
    source: paper-text
    recipe: configs/paper.yaml
missing: ["a larger run"]
"""

CLAIMS = '''\
"""Claims of the toy."""

import json
import os
import time

from common.numbers import LARGE

OFFSET = {"method": LARGE, "baseline": 5.0}


def better(run):
    """Five steps with a checkpoint each; the score depends on arm and seed alone."""
    run.dir.mkdir(parents=True, exist_ok=True)
    with open(os.environ["TOY_CALLS"], "a") as calls:
        calls.write(f"{run.claim} {run.arm} {run.seed}\\n")
    state_file = run.dir / "state.json"
    state = json.loads(state_file.read_text()) if state_file.exists() else {"step": 0, "sum": 0.0}
    log = run.dir / "fit" / "metrics.csv"
    log.parent.mkdir(exist_ok=True)
    while state["step"] < 5:
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")) / 5)
        state = {"step": state["step"] + 1, "sum": state["sum"] + 1 / (3 + run.seed)}
        state_file.with_suffix(".new").write_text(json.dumps(state))
        os.replace(state_file.with_suffix(".new"), state_file)
    log.write_text("step,train/loss\\n" + "".join(f"{i},{5 - i}\\n" for i in range(5)))
    return {"score": OFFSET[run.arm] + state["sum"]}
'''

RUN = '''\
"""The fields of the real one, without torch."""

from dataclasses import dataclass, field
from pathlib import Path

Scale = str


class Record(dict):
    def as_json(self):
        return dict(self)


@dataclass(frozen=True)
class Run:
    paper: str
    claim: str
    arm: str
    seed: int
    scale: str
    dir: Path
    threads: int = 1
    record: Record = field(default_factory=Record)
'''

FILES = {
    "papers/__init__.py": "",
    "papers/toy/__init__.py": "",
    "papers/toy/paper.yaml": PAPER,
    "papers/toy/model.py": "def two():\n    return 2\n",
    "papers/toy/claims.py": CLAIMS,
    "papers/toy/configs/paper.yaml": "# the recipe\n",
    "papers/toy/README.md": "# A toy\n\n## Idea\n\nNothing much.\n",
    "common/__init__.py": "",
    "common/numbers.py": '"""Numbers."""\n\nLARGE = 10.0\nUNUSED = 1\n',
    "common/training/__init__.py": "",
    "common/training/run.py": RUN,
}


def plant(root: Path) -> None:
    """Write the tiny tree."""
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("errors.py", "files.py", "plain_yaml.py"):
        shutil.copy(paths.REPOSITORY / "common" / name, root / "common" / name)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """root, write(path, text), paper(old, new) to edit paper.yaml, encore(*args) as a process, calls() so far."""
    root = tmp_path / "tree"
    plant(root)
    calls_file = tmp_path / "calls.txt"
    for name, value in {"ENCORE_ROOT": root, "TOY_CALLS": calls_file}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("ENCORE_RUNS", raising=False)
    for module in [name for name in sys.modules if f"{name}.".startswith("papers.toy.")]:
        monkeypatch.delitem(sys.modules, module)  # of another test's tree
    fingerprint.forget()

    def write(name: str, text: str) -> Path:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        fingerprint.forget()
        return root / name

    def edit(old: str, new: str, name: str = "papers/toy/paper.yaml") -> Path:
        text = (root / name).read_text()
        assert old in text
        return write(name, text.replace(old, new))

    def command(*arguments: str) -> dict:
        line = [sys.executable, "-m", "benchmarks.cli", *arguments]
        return {"args": line, "cwd": root, "env": paths.child_environment(), "text": True}

    def encore(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(**command(*arguments), capture_output=True, timeout=60)

    def calls() -> list[str]:
        return calls_file.read_text().splitlines() if calls_file.exists() else []

    yield SimpleNamespace(root=root, write=write, edit=edit, command=command, encore=encore, calls=calls)
    fingerprint.forget()


@pytest.fixture
def history(tree):
    """tree, with git(*arguments) and commit(message) -> hash."""

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", *who, "-C", str(tree.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def commit(message: str) -> str:
        git("add", "--all", "--force", "papers", "common", "benchmarks")
        git("commit", "--quiet", "--allow-empty", "-m", message)
        return git("rev-parse", "HEAD")

    git("init", "--quiet")
    (tree.root / "benchmarks").mkdir(exist_ok=True)
    (tree.root / "benchmarks/.keep").write_text("")
    tree.commit, tree.git = commit, git
    return tree

"""Malformed input, generated: whatever a paper.yaml or a command line says, there is an answer or one clear error."""

import datetime
import json
import os
import string
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("hypothesis", reason="an older environment: make setup")
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from benchmarks.cli import main
from benchmarks.paper import catalog, paths
from benchmarks.run.plan import as_json, entries_of
from benchmarks.run.standing import Standing
from benchmarks.site.readme import results_block
from benchmarks.site.speed import speed_view
from common.errors import EncoreError
from tests.benchmarks.conftest import PAPER
from tests.benchmarks.test_report_speed import FILE as SPEED_FILE
from tests.benchmarks.test_report_speed import SPEED

CONTENT = yaml.safe_load(PAPER)
FILE = "papers/toy/paper.yaml"
many = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 2**63, 0])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["..", "../../etc/passwd", "/etc/passwd", "a/b", "method", "configs/paper.yaml", "x" * 5000, "facts"]
    )
    | st.dates()
    | st.datetimes()
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
SNIPPETS = """&a *a <<:*a !!python/object/apply:os.system[id] ?[a] ?{a:b} 2020-13-45 0x { } [ ] [[[ : | > ' " # é \\ . ~
null .inf .nan 1e999 -1 = @ ` --- ... %YAML claims: slug:"""
TAGS = [f"!!{kind} x" for kind in ("timestamp", "int", "bool", "float", "binary", "set", "omap", "null")]
BLANKS = ["\t", "\n", "\r", ": ", "- ", "---\n", "...\n", "%YAML 9.9\n", "? [a]", "? {a: b}", "<<: *a"]
ODD = ["\0", "\x1b[2J", "\ud800", "\u2028", "\ufeff", "1" * 5000, "claims:\n", "slug: x\n"]
snippets = st.sampled_from([*SNIPPETS.split(), *TAGS, *BLANKS, *ODD])


def places(content, path=()):
    """Every path into nested lists and dicts."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def replaced(content, path, value):
    if not path:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


def files_of(tree):
    cache = tree.root / "runs"
    return {path for path in tree.root.parent.rglob("*") if path != cache and not path.is_relative_to(cache / ".cache")}


def write(tree, text):
    (tree.root / FILE).write_bytes(text.encode("utf-8", "surrogatepass"))


def holds_or_says_why(tree):
    """The paper is read and everything that lists it works, or one error names the file; nothing is written."""
    before = files_of(tree)
    refusal = None
    try:
        paper = catalog.load_one("toy")
        catalog.load_all()
        standing = Standing(paper)
        standing.full()
        results_block(standing)
        for experiment in paper.experiments:
            as_json(entries_of(paper, experiment, "cpu", None), [], 2)
    except EncoreError as error:
        refusal = str(error)
    if refusal is not None:
        assert "papers/toy" in refusal
        assert not set(refusal) & {"\0", "\x1b", "\r"}
    assert files_of(tree) == before


@many
@given(path=st.sampled_from(sorted(places(CONTENT), key=str)), value=anything)
@example(path=("facts", 0), value={**CONTENT["facts"][0], "args": {"day": datetime.date(2020, 1, 1)}})
@example(path=("facts", 0, "build"), value="os:system")
@example(path=("claims", 0, "id"), value="facts")
@example(path=("claims", 0, "seeds"), value=[10**30])
@example(path=("reported", 0, "value"), value=10**400)
@example(path=("title",), value="\x1b[2J")
def test_a_paper_with_anything_in_any_place_is_read_or_refused(tree, path, value):
    write(tree, yaml.safe_dump(replaced(CONTENT, path, value), allow_unicode=True))
    holds_or_says_why(tree)


@many
@given(edits=st.lists(st.tuples(st.integers(0, len(PAPER)), st.integers(0, 12), snippets), min_size=1, max_size=4))
def test_a_paper_with_broken_text_is_read_or_refused(tree, edits):
    text = PAPER
    for at, length, snippet in edits:
        text = text[:at] + snippet + text[at + length :]
    write(tree, text)
    holds_or_says_why(tree)


@many
@given(content=st.binary(max_size=200))
def test_a_paper_of_arbitrary_bytes_is_refused(tree, content):
    (tree.root / FILE).write_bytes(content)
    with pytest.raises(EncoreError, match="papers/toy"):
        catalog.load_one("toy")


SPEED_TEXT = json.dumps(SPEED)


def speed_holds_or_says_why(tree, text):
    (tree.root / SPEED_FILE).parent.mkdir(parents=True, exist_ok=True)
    (tree.root / SPEED_FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
    refusal = None
    try:
        speed_view(lambda kind, **arguments: Markup(json.dumps([kind, arguments], allow_nan=False)), set())
    except EncoreError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith(SPEED_FILE)
        assert len(refusal.splitlines()) == 1


@many
@given(path=st.sampled_from(sorted(places(SPEED), key=str)), value=anything)
def test_figures_of_speed_with_anything_in_any_place_are_shown_or_refused(tree, path, value):
    speed_holds_or_says_why(tree, json.dumps(replaced(SPEED, path, value), default=str, skipkeys=True))


@many
@given(edits=st.lists(st.tuples(st.integers(0, len(SPEED_TEXT)), st.integers(0, 12), snippets), min_size=1, max_size=4))
def test_figures_of_speed_with_broken_text_are_shown_or_refused(tree, edits):
    text = SPEED_TEXT
    for at, length, snippet in edits:
        text = text[:at] + snippet + text[at + length :]
    speed_holds_or_says_why(tree, text)


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("bomb", "says"),
    [
        (LAUGHS + PAPER, "the alias *a0: write the value out"),
        ("x: &x [*x]\n", "the alias *x"),
        ("base: &b {a: 1}\nx: {<<: *b}\n", "the alias *b"),
        ("x: " + "[" * 100_000, "more than 50 levels"),
        ("x: " + "{a: " * 5_000 + "}" * 5_000, "more than 50 levels"),
        ("x: " + "9" * 5_000, "not valid yaml: ValueError"),
        ('title: "\\e[2J"\n', "control character"),
        ("2020-01-01: x\n", "must be text"),
        ("x: !!python/object/apply:os.system [touch /tmp/encore-was-here]\n", "not valid yaml"),
    ],
)
def test_yaml_bombs_are_refused_at_once(tree, bomb, says, capsys, monkeypatch):
    write(tree, bomb)
    for command in (["show", "toy"], ["list"], ["reproduce", "toy"], ["reproduce", "all", "--plan"]):
        monkeypatch.setattr(sys, "argv", ["encore", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: papers/toy/paper.yaml:")
        assert says in error
        assert len(error.splitlines()) == 1
    assert not Path("/tmp/encore-was-here").exists()


def test_source_that_is_no_python_is_one_error_that_names_the_line(tree):
    tree.write("papers/toy/claims.py", "def better(run):\n    return {\n")
    done = tree.encore("list")
    assert done.returncode == 2
    assert done.stderr.startswith("error: papers/toy/claims.py:2: not valid Python: ")


WORDS = "toy all .. ../toy / -- - --json --plan -1 0 better ray 30m 1e9h --help paper smoke 0,1 * papers/toy é ٣ ²"
words = st.text(string.printable, max_size=12) | st.sampled_from(
    [*WORDS.split(), "\0", "\udcff", "1" * 500, "x" * 5000]
)
options = st.sampled_from(
    ["--scale", "--claim", "--seeds", "--workers", "--engine", "--budget", "--plan", "--json", "--measurements"]
)


@many
@given(
    command=st.sampled_from(["show", "reproduce", "facts", "train", "list", "data"]),
    arguments=st.lists(words | options, max_size=4),
)
@example(command="reproduce", arguments=["toy", "--budget", "30"])
@example(command="reproduce", arguments=["toy", "--json"])
@example(command="train", arguments=["toy", "--config", "../../../etc/passwd"])
def test_any_command_line_ends_without_a_traceback(tree, command, arguments, capsys, monkeypatch):
    """Usage errors and bad values alike end with exit code 2; what is valid runs (here without starting anything)."""
    before = files_of(tree)
    monkeypatch.setattr("benchmarks.run.reproduce.run_units", lambda *_, **__: {})
    monkeypatch.setattr("benchmarks.run.reproduce._show", lambda *_: None)
    monkeypatch.setattr("benchmarks.cli._write_report", lambda: 0)
    monkeypatch.setattr("os.execvpe", lambda *_: None)
    monkeypatch.setattr("common.sources.locate", lambda *_: {})
    monkeypatch.setattr(sys, "argv", ["encore", command, *arguments])
    folder = Path.cwd()
    status: object = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code
    finally:
        os.chdir(folder)
    said = capsys.readouterr()
    assert status in (None, 0, 1, 2)
    assert "Traceback" not in said.out + said.err
    if status == 2:
        assert said.err or said.out
    new = files_of(tree) - before
    assert {path for path in new if not path.is_relative_to(tree.root)} == set()


@pytest.mark.parametrize(
    "override",
    [
        ["--trainer.max_steps", "many"],
        ["--trainer.max_stepps", "3"],
        ["--trainer", "3"],
        ["--model.hidden_dim", "[1, 2]"],
        ["--model.nothing", "1"],
        ["--model", "os.system"],
        ["--model.class_path", "no.such.Class"],
        ["--data.batch_size", "x"],
        ["--data", "{"],
        ["--config", "/nowhere.yaml"],
        ["--config", "papers/pointer_networks/paper.yaml"],
        ["--ckpt_path", "/nowhere.ckpt"],
        ["--log", "paper"],
        ["--seed_everything", "none at all"],
    ],
    ids=lambda override: " ".join(override),
)
def test_a_malformed_override_of_a_config_ends_with_exit_code_2(override, tmp_path, capsys, monkeypatch):
    from common.training.cli import main as train

    monkeypatch.chdir(paths.REPOSITORY)
    monkeypatch.setattr("logging.raiseExceptions", False)  # Lightning's handler holds the stream of an earlier test
    config = "papers/pointer_networks/configs/smoke.yaml"
    keep = ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps", "1"]
    with pytest.raises(SystemExit) as ended:
        train(["fit", "--config", config, *keep, *override])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "error" in error
    assert list(tmp_path.iterdir()) == []

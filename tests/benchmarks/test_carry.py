"""`encore carry`: a result stays fresh over code that changes no number, and over nothing else."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.paper import catalog
from benchmarks.paper.files import write_atomic
from benchmarks.run import elsewhere
from benchmarks.run.carry import differences
from benchmarks.run.records import dump, read_record, record_file
from benchmarks.run.units import identity, same_identity
from benchmarks.site.report import write_report
from tests.benchmarks.test_cli import put_record
from tests.benchmarks.test_run import wait_until

CLAIMS = "papers/toy/claims.py"
OFFSET = '{"method": LARGE, "baseline": 5.0}'
REFACTORED = '{"method": max(LARGE, 0.5), "baseline": 5.0}'


@pytest.fixture
def ran(history):
    """The toy with a result recorded at a clean commit, and that commit: (tree, hash)."""
    commit = history.commit("before it runs")
    put_record(history)
    stamp(lambda record: [unit["provenance"].update(commit=commit[:12]) for unit in record["units"]])
    history.commit("its result")
    return history, commit


def verdict(tree):
    (paper,) = json.loads(tree.encore("list", "--json").stdout)
    (claim,) = paper["claims"]
    return claim["verdict"], claim["carried"]


def stamp(change):
    """Rewrite the committed record."""
    record = read_record("toy", "better")
    change(record)
    write_atomic(record_file("toy", "better"), dump(record))


def test_a_refactor_that_keeps_every_number_is_carried(ran):
    tree, commit = ran
    assert verdict(tree) == ("reproduced", None)
    before = read_record("toy", "better")
    tree.edit(OFFSET, REFACTORED, CLAIMS)
    assert verdict(tree) == ("stale", None)
    calls = len(tree.calls())

    planned = tree.encore("carry", "toy", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert f"toy better: 4 units would run in {commit[:12]} and here" in planned.stdout
    assert len(tree.calls()) == calls
    assert read_record("toy", "better") == before

    done = tree.encore("carry", "toy")
    assert done.returncode == 0, done.stderr
    assert f"toy better: carried from {commit[:12]}, 4 metrics and 20 losses of 4 units are equal" in done.stdout
    ran_now = [call.split()[1:] for call in tree.calls()[calls:]]
    assert sorted(ran_now) == sorted(2 * [[arm, seed] for arm in ("method", "baseline") for seed in "01"])
    record = read_record("toy", "better")
    (entry,) = record["carried"]
    assert {key: value for key, value in record.items() if key != "carried"} == before, "what was recorded stays"
    assert {key: entry[key] for key in ("code", "config", "data")} == identity(catalog.load_one("toy").claims[0])
    assert (entry["from"], entry["seeds"], len(entry["smoke"])) == (commit[:12], [0, 1], 16)
    assert verdict(tree) == ("reproduced", entry)

    assert f"to code {entry['code']}" in " ".join(tree.encore("show", "toy").stdout.split())
    page = write_report().with_name("papers").joinpath("toy.html").read_text()
    assert f"smoke runs there and in commit {commit[:12]} are equal bit for bit" in page
    again = tree.encore("carry", "toy")
    assert "1 results are fresh, 0 are stale" in again.stdout
    assert len(tree.calls()) == calls + 8


def test_only_the_newest_code_that_a_result_was_carried_to_counts(ran):
    tree, commit = ran
    tree.edit(OFFSET, REFACTORED, CLAIMS)
    tree.encore("carry", "toy")
    tree.commit("carried")
    first = read_record("toy", "better")["carried"]
    tree.edit("max(LARGE, 0.5)", "max(LARGE, 0.25)", CLAIMS)
    assert verdict(tree) == ("stale", None)
    calls = len(tree.calls())
    assert tree.encore("carry", "toy").returncode == 0
    assert len(tree.calls()) == calls + 4, "the units of the first commit are remembered"
    second = read_record("toy", "better")["carried"]
    assert [entry["from"] for entry in second] == [commit[:12]], (
        "compared with the origin, earlier entries tell nothing"
    )
    assert same_identity({"carried": [first[0], second[0]]}, second[0])
    assert not same_identity({"carried": [first[0], second[0]]}, first[0])


def test_a_changed_constant_is_not_carried_and_is_named(ran):
    tree, commit = ran
    before = record_file("toy", "better").read_text()
    tree.edit('"baseline": 5.0', '"baseline": 5.0000001', CLAIMS)
    done = tree.encore("carry", "toy")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    said = "toy better: not carried: baseline seed 0: score was 6.666666666666666 and is 6.666666766666667"
    assert line.startswith(said), "seven digits: a result file rounds to six"
    assert line.endswith(f"(against {commit[:12]})")
    assert "baseline seed 1: score" in line
    assert "method" not in line
    assert record_file("toy", "better").read_text() == before
    assert verdict(tree) == ("stale", None)


def test_a_loss_that_moved_is_not_carried_even_if_no_metric_did(ran):
    tree, _ = ran
    tree.edit("{i},{5 - i}", "{i},{5 - i - (i == 3) * 1e-9}", CLAIMS)
    done = tree.encore("carry", "toy")
    assert done.returncode == 1
    assert "method seed 0: fit: train/loss at step 3 was 2.0 and is 1.999999999" in done.stderr


def test_other_data_or_another_definition_is_not_carried(ran):
    tree, commit = ran
    tree.edit(OFFSET, REFACTORED, CLAIMS)
    calls = len(tree.calls())
    stamp(lambda record: record.update(data={"generated": "other"}))
    done = tree.encore("carry", "toy")
    assert done.returncode == 1
    assert "toy better: not carried: its data changed: generated was other and is generated" in done.stderr

    stamp(lambda record: record.update(data={"generated": "generated"}))
    tree.edit("    higher_is_better: true", "    higher_is_better: false")
    done = tree.encore("carry", "toy")
    assert done.returncode == 1
    said = f"its definition in paper.yaml changed since {commit[:12]}: higher_is_better was True and is False"
    assert said in done.stderr
    assert len(tree.calls()) == calls, "nothing ran for it"


def test_an_entry_that_moved_is_carried_although_the_config_hash_names_it(ran):
    tree, _ = ran
    (tree.root / CLAIMS).rename(tree.root / "papers/toy/arms.py")
    tree.edit('entry: "papers.toy.claims:better"', 'entry: "papers.toy.arms:better"')
    assert verdict(tree) == ("stale", None)
    done = tree.encore("carry", "toy")
    assert done.returncode == 0, done.stderr
    assert verdict(tree)[0] == "reproduced"


def test_a_dirty_commit_falls_back_to_that_of_the_record_then_to_the_one_named(ran):
    tree, commit = ran
    recorded = tree.git("rev-parse", "HEAD")

    def dirty(record):
        for unit in record["units"]:
            unit["provenance"]["commit"] = commit[:12] + "+changes"

    stamp(dirty)
    tree.edit(OFFSET, REFACTORED, CLAIMS)
    done = tree.encore("carry", "toy")
    assert done.returncode == 0, done.stderr
    assert f"carried from {recorded[:12]}" in done.stdout

    stamp(lambda record: record.pop("carried"))
    other = tree.commit("the refactor and the record together: no base any more")
    missing = tree.encore("carry", "toy")
    assert missing.returncode == 1
    assert f"no commit is known at which it was fresh (looked at {other[:12]}): name one with --from" in missing.stderr
    done = tree.encore("carry", "toy", "--from", commit)
    assert f"carried from {commit[:12]}" in done.stdout, done.stderr


def test_a_base_must_be_the_recorded_code_by_its_own_fingerprint(ran):
    tree, commit = ran
    stamp(lambda record: record.update(code="0123456789abcdef"))
    done = tree.encore("carry", "toy", "--from", commit)
    assert done.returncode == 1
    assert "no commit is known at which it was fresh" in done.stderr


def test_a_unit_that_does_not_run_in_the_base_is_said_and_nothing_is_carried(ran):
    tree, _ = ran
    claims = (tree.root / CLAIMS).read_text()
    broken = claims.replace("    run.dir.mkdir", '    raise FileNotFoundError("no such set")\n    run.dir.mkdir')
    tree.write(CLAIMS, broken)
    base = tree.commit("broken")

    def of_base(record):
        record.update(identity(catalog.load_one("toy").claims[0]))
        for unit in record["units"]:
            unit["provenance"]["commit"] = base[:12]

    stamp(of_base)
    tree.write(CLAIMS, claims)
    done = tree.encore("carry", "toy")
    assert done.returncode == 1
    assert f"seed 0 does not run in {base[:12]}: FileNotFoundError: no such set" in done.stderr
    assert "carried" not in read_record("toy", "better")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_half_way_it_leaves_the_record_as_it_was_and_no_tree(ran, tmp_path, monkeypatch, number):
    tree, _ = ran
    before = record_file("toy", "better").read_text()
    tree.edit(OFFSET, REFACTORED, CLAIMS)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setenv("TOY_SECONDS", "1")
    calls = len(tree.calls())
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(**tree.command("carry", "toy"), **silent)
    wait_until(lambda: len(tree.calls()) >= calls + 3)
    assert list(scratch.iterdir())
    process.send_signal(number)
    assert process.wait(20) in (-signal.SIGKILL, 128 + signal.SIGTERM)
    assert record_file("toy", "better").read_text() == before
    wait_until(lambda: not list(scratch.iterdir()))
    wait_until(lambda: not _alive(scratch))
    monkeypatch.setenv("TOY_SECONDS", "0")
    assert tree.encore("carry", "toy").returncode == 0
    assert same_identity(read_record("toy", "better"), identity(catalog.load_one("toy").claims[0]))


def _alive(folder: Path) -> list[str]:
    """Processes that work below the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder) in (process / "cmdline").read_text():
                found.append(process.name)
        except OSError:
            continue
    return [name for name in found if int(name) != os.getpid()]


def test_differences_are_exact_and_name_arm_seed_and_metric():
    then = {"metrics": {"a": 1.0, "b": 0.1}, "losses": {"x": {"1": 2.0}, "only then": {"1": 1.0}}}
    assert differences(then, json.loads(json.dumps(then)), "m seed 0") == []
    now = {"metrics": {"a": 1.0000000000000002, "c": 0.1}, "losses": {"x": {"1": 2.0, "2": 9.0}}}
    assert differences(then, now, "m seed 0") == [
        "m seed 0: a was 1.0 and is 1.0000000000000002",
        "m seed 0: b is there only before",
        "m seed 0: c is there only now",
    ]


@pytest.mark.parametrize("rooms", [{"catalog": "paper", "units": "run"}, {}])
def test_a_tree_is_asked_through_its_own_harness_of_whatever_layout(tmp_path, rooms):
    """Not through the present one, which an editable install offers for every module that the tree does not have."""
    files = {
        "catalog": "class Claim:\n    all_arms = ['b', 'a']\n\n    def model_dump(self, mode):\n"
        "        return {'metric': 'old'}\n\n\n"
        "class Paper:\n    def experiment(self, claim):\n        return Claim()\n\n\n"
        "def load_one(slug):\n    return Paper()\n",
        "units": "def identity(experiment):\n    return {'code': 'of this tree'}\n",
    }
    for name, text in files.items():
        file = tmp_path.joinpath("benchmarks", rooms.get(name, ""), f"{name}.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "benchmarks/__init__.py").write_text("")
    command = [sys.executable, "-P", elsewhere.__file__, "identities", '[["a", "b"]]']
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    asked = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(asked.stdout) == [
        {"identity": {"code": "of this tree"}, "definition": {"metric": "old", "arms": ["a", "b"]}}
    ]

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from benchmarks.paper import catalog
from benchmarks.paper.files import write_atomic
from benchmarks.run import agreement
from benchmarks.run.records import dump, gather, read_curves, read_record, record_file
from benchmarks.run.unit import check_metrics, run_unit
from benchmarks.run.units import Unit, identity
from common.errors import EncoreError

UNIT = Unit("toy", "better", "method", 0, "cpu")
CLAIMS = "papers/toy/claims.py"


def run_of(claim="better", scale="cpu"):
    """What runs/ has of it, None when nothing."""
    paper = catalog.load_one("toy")
    return gather(paper, paper.experiment(claim), scale)


def metrics(tree):
    return {(unit["arm"], unit["seed"]): unit["metrics"] for unit in run_of()["units"]}


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pattern):
    """Processes whose command line mentions the pattern."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if pattern in line and "ps -eo" not in line]


def test_a_run_is_kept_in_runs_and_skipped_the_second_time_and_record_takes_it_into_the_results(tree):
    first = tree.encore("reproduce", "toy")
    assert first.returncode == 0, first.stderr
    assert "reproduced" in first.stdout
    assert "reports/index.html" in first.stdout
    assert (tree.root / "reports/index.html").is_file()
    assert metrics(tree)["method", 1] == {"score": 11.25}
    assert not (tree.root / "benchmarks/results").exists()
    assert "encore record toy" in first.stdout

    taken = tree.encore("record", "toy")
    assert (taken.returncode, taken.stdout) == (0, "benchmarks/results/toy/better.json\n"), taken.stderr
    record = json.loads((tree.root / "benchmarks/results/toy/better.json").read_text())
    assert record == read_record("toy", "better") == run_of()
    assert record["data"] == {"generated": "generated"}
    unit = record["units"][0]
    assert read_curves("toy", "better")["method-1"] == {"fit: train/loss": [[i, 5.0 - i] for i in range(5)]}
    assert {"commit", "versions", "machine", "started"} <= unit["provenance"].keys()
    assert unit["provenance"]["machine"]["threads"] >= 1
    assert unit["peak_memory_mb"] > 1

    assert len(tree.calls()) == 6
    second = tree.encore("reproduce", "toy")
    assert second.returncode == 0
    assert "6 units have a fresh result" in second.stdout
    assert len(tree.calls()) == 6

    tree.edit("LARGE = 10.0", "LARGE = 20.0", "common/numbers.py")
    assert run_of() is None
    tree.encore("reproduce", "toy", "--seeds", "0")
    assert len(tree.calls()) == 8
    refused = tree.encore("record", "toy", "better")
    assert refused.returncode == 1
    assert "runs/ has 2 of its 6 units of the present code; run encore reproduce toy --claim better" in refused.stderr
    assert read_record("toy", "better") == record, "an incomplete rerun must not replace the record"
    assert "A toy" in tree.encore("show", "toy").stdout


def test_units_that_only_the_record_has_stay_in_it_when_seeds_are_added(tree):
    tree.edit("seeds: [0, 1, 2]", "seeds: [0]")
    tree.encore("reproduce", "toy")
    assert tree.encore("record", "toy").returncode == 0
    shutil.rmtree(tree.root / "runs")
    tree.edit("seeds: [0]", "seeds: [0, 1]")
    tree.encore("reproduce", "toy", "--seeds", "1")
    assert tree.encore("record", "toy").returncode == 0
    units = [(unit["arm"], unit["seed"]) for unit in read_record("toy", "better")["units"]]
    assert units == [(arm, seed) for seed in (0, 1) for arm in ("method", "baseline")]
    assert list(read_curves("toy", "better")) == ["method-0", "baseline-0", "method-1", "baseline-1"]


def test_a_run_ends_with_where_it_agrees_with_the_committed_results(tree, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    tree.encore("reproduce", "toy", "--measurements")
    tree.encore("record", "toy")
    shutil.rmtree(tree.root / "runs")
    record = record_file("toy", "better").read_text()

    again = tree.encore("reproduce", "toy", "--measurements")
    assert "this run agrees with the committed results in 2 of 2 lines" in again.stdout, again.stdout
    shown = agreement.lines(catalog.load_one("toy"), catalog.load_one("toy").experiments, "cpu", None)
    assert [(line.what, line.reported) for line in shown] == [("better", "9% (T1)"), ("row-measured", "11%")]
    assert [line.committed for line in shown] == [line.run for line in shown]
    assert shown[0].run.startswith("+5 [")

    tree.edit("LARGE = 10.0", "LARGE = -10.0", "common/numbers.py")
    other = tree.encore("reproduce", "toy")
    assert "nothing to compare" in other.stdout, "the committed result is of other code"
    stamped = json.loads(record) | identity(catalog.load_one("toy").claims[0])
    write_atomic(record_file("toy", "better"), dump(stamped))
    other = tree.encore("reproduce", "toy")
    assert "in 0 of 1 lines" in other.stdout
    outcome = agreement.lines(catalog.load_one("toy"), catalog.load_one("toy").claims, "cpu", None)[0].outcome
    assert outcome == "differs: other gap"


def test_the_blocks_of_the_readmes_are_up_to_date_after_a_run(tree):
    """The README's two commands, in this order: `make reproduce`, then the tests, of which this check is one."""
    tree.write("README.md", "<!-- encore:begin papers -->\n<!-- encore:end -->\n")
    tree.write("papers/toy/README.md", "# A toy\n<!-- encore:begin results -->\n<!-- encore:end -->\n")
    tree.encore("reproduce", "toy")
    tree.encore("record", "toy")
    tree.encore("readme")
    assert tree.encore("readme", "--check").returncode == 0
    tree.edit('"baseline": 5.0}', '"baseline": 50.0 if False else 5.0}', CLAIMS)
    tree.encore("readme")
    committed = record_file("toy", "better").read_text()
    for scale in ("smoke", "cpu"):
        assert tree.encore("reproduce", "toy", "--scale", scale).returncode == 0
        assert tree.encore("readme", "--check").returncode == 0
    assert record_file("toy", "better").read_text() == committed


def test_killed_outright_it_goes_on_and_gives_the_same_numbers(tree, monkeypatch):
    tree.encore("reproduce", "toy", "--workers", "2")
    expected = metrics(tree)
    monkeypatch.setenv("ENCORE_RUNS", str(tree.root / "runs2"))
    monkeypatch.setenv("TOY_SECONDS", "1")
    before = len(tree.calls())
    engine = subprocess.Popen(**tree.command("reproduce", "toy", "--workers", "2"), stdout=subprocess.PIPE)
    wait_until(lambda: len(tree.calls()) >= before + 4)  # two units finished, two running
    time.sleep(0.4)
    engine.kill()
    engine.communicate()
    finished = sorted(path.parent.name for path in (tree.root / "runs2").rglob("result.json"))
    interrupted = [path for path in (tree.root / "runs2").rglob("state.json") if path.parent.name not in finished]
    assert 2 <= len(finished) < 6
    assert interrupted
    monkeypatch.setenv("TOY_SECONDS", "0")
    again = tree.encore("reproduce", "toy")
    assert again.returncode == 0, again.stderr
    assert metrics(tree) == expected
    called = [call.split()[1:] for call in tree.calls()[before:]]
    for name in finished:
        assert called.count(name.rsplit("-", 1)) == 1, "a finished unit was run again"
    attempts = json.loads((interrupted[0].parent / "result.json").read_text())["provenance"]["attempts"]
    assert attempts == 2, "the interrupted unit was not continued"
    assert not alive("benchmarks.run.unit toy")


def test_sigterm_stops_the_children_and_says_how_to_continue(tree, monkeypatch):
    monkeypatch.setenv("TOY_SECONDS", "30")
    engine = subprocess.Popen(
        **tree.command("reproduce", "toy", "--workers", "1"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_until(lambda: tree.calls())
    engine.send_signal(signal.SIGTERM)
    _, error = engine.communicate(timeout=20)
    assert engine.returncode == 128 + signal.SIGTERM
    assert "Continue with: encore reproduce toy" in error
    assert not alive("benchmarks.run.unit toy")
    assert run_of() is None


def test_a_unit_over_its_time_limit_fails_and_the_others_are_kept(tree):
    tree.edit("    data: generated\n    entry", "    data: generated\n    minutes: 0.03\n    entry")
    tree.edit(
        "    state_file = run", '    time.sleep(60 if run.arm == "baseline" else 0)\n    state_file = run', CLAIMS
    )
    done = tree.encore("reproduce", "toy", "--seeds", "0")
    assert done.returncode == 1
    assert "error: toy better baseline seed 0: stopped after its time limit of 0.03 minutes" in done.stderr
    assert UNIT.result()["metrics"] == {"score": 11.6667}
    assert not alive("benchmarks.run.unit toy")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            '    from common.errors import EncoreError\n    raise EncoreError("no such file: x.csv")\n',
            "no such file: x.csv",
        ),
        ('    raise ValueError("boom")\n', "ValueError: boom; see runs/toy/cpu/better/method-0.log"),
        ("    os.kill(os.getpid(), 9)\n", "was ended by SIGKILL without a result; see runs/"),
        ('    return {"score": float("nan")}\n', "metric 'score' is nan"),
        ('    return {"other": 1.0}\n', "the entry gave no metric score; it gave other"),
    ],
)
def test_a_failing_unit_is_one_clear_error_and_no_result(tree, body, says):
    tree.edit("    state_file = run", f"{body}    state_file = run", CLAIMS)
    tree.edit("seeds: [0, 1, 2]", "seeds: [0]")
    tree.edit("baseline: baseline", "baseline: 3")
    done = tree.encore("reproduce", "toy")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: toy better method seed 0: {says}")
    assert len(done.stderr.splitlines()) == 1
    assert UNIT.result() is None
    assert run_of() is None


def test_a_half_written_result_counts_as_none(tree):
    wanted = identity(catalog.load_one("toy").claims[0])
    origin = {**wanted, "commit": "abc", "started": "2026", "machine": {}}
    whole = json.dumps({"metrics": {"score": 1.0}, "seconds": 1.0, "curves": {}, "provenance": origin})
    write_atomic(UNIT.dir / "result.json", whole)
    assert UNIT.fresh_result(wanted)
    (UNIT.dir / "result.json").write_text(whole[: len(whole) // 2])
    assert UNIT.fresh_result(wanted) is None
    assert UNIT.result() is None


def test_checkpoints_of_other_code_are_not_continued(tree, monkeypatch):
    monkeypatch.syspath_prepend(str(tree.root))
    wanted = identity(catalog.load_one("toy").claims[0])
    leftover = UNIT.dir / "leftover.bin"
    for code, survives in ((wanted["code"], True), ("other", False)):
        write_atomic(leftover, "x")
        write_atomic(UNIT.dir / "unit.json", json.dumps({**wanted, "code": code, "attempts": 1}))
        (UNIT.dir / "result.json").unlink(missing_ok=True)
        monkeypatch.setattr("benchmarks.run.unit.call_entry", lambda unit, entry: ({"score": 1.0}, {}))
        run_unit(UNIT)
        assert leftover.exists() == survives
    run_unit(UNIT, force=True)
    assert UNIT.result()["provenance"]["attempts"] == 1


def test_other_scales_stay_out_of_the_committed_results(tree):
    tree.edit("seeds: [0, 1, 2]", "seeds: [0]")
    tree.edit("seeds: [0, 1]", "seeds: [0]")
    done = tree.encore("reproduce", "toy", "--scale", "smoke", "--measurements")
    assert done.returncode == 0, done.stderr
    assert not (tree.root / "benchmarks/results").exists()
    assert len(run_of(scale="smoke")["units"]) == 2
    assert len(run_of("values", "smoke")["units"]) == 1


def test_metrics_are_rounded_to_six_digits_and_must_be_numbers():
    assert check_metrics({"a": 1 / 3, "b": 2}, {"a"}) == {"a": 0.333333, "b": 2.0}
    for wrong in ({}, None, {"a": "x"}, {"a": True}, {"a": float("inf")}):
        with pytest.raises(EncoreError):
            check_metrics(wrong, set())


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    write_atomic(file, "older")
    with file.open() as reader:
        write_atomic(file, "old")
        assert reader.read() == "older", "who reads while it is written sees one file or the other"

    def broken(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(file, "new and longer")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_records_have_one_line_a_unit():
    record = {"paper": "toy", "units": [{"arm": "a"}, {"arm": "b"}]}
    assert json.loads(dump(record)) == record
    assert len(dump(record).splitlines()) == 7


def test_code_edited_during_the_run_is_noticed(tree, monkeypatch):
    """A result of the code before the edit is neither kept nor passed off as fresh."""
    monkeypatch.setenv("TOY_SECONDS", "2")
    tree.edit("seeds: [0, 1, 2]", "seeds: [0]")
    engine = subprocess.Popen(
        **tree.command("reproduce", "toy", "--workers", "2"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_until(lambda: len(tree.calls()) == 2)
    tree.edit("LARGE = 10.0", "LARGE = 20.0", "common/numbers.py")
    _, error = engine.communicate(timeout=30)
    assert engine.returncode == 1
    assert "error: toy better method seed 0: the code changed while it ran: run again" in error
    assert run_of() is None


@pytest.mark.parametrize(("limit", "threads"), [("", 1), ("3", 3)])
def test_threads_of_a_unit_do_not_depend_on_how_many_units_are_left(tree, monkeypatch, limit, threads):
    """Sums over another number of threads round differently: a continued run would give other numbers."""
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    tree.edit("seeds: [0, 1]\n", "seeds: [0]\n")
    assert tree.encore("reproduce", "toy", "--claim", "values").returncode == 0
    (unit,) = run_of("values")["units"]
    assert unit["provenance"]["machine"]["threads"] == threads

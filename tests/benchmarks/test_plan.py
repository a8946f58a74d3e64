"""`--plan` and `--budget`: what would run, what it costs, and what is worth most of it."""

import json

import pytest

from benchmarks.paper import catalog
from benchmarks.paper.files import write_atomic
from benchmarks.paper.schema import Needs
from benchmarks.run.engines import Job
from benchmarks.run.plan import Entry, duration, entries_of, summary, wall_seconds, within
from benchmarks.run.records import dump, record_file
from benchmarks.run.standing import spoken
from benchmarks.run.units import Unit, identity
from common.errors import EncoreError
from tests.benchmarks.test_cli import put_record

ORIGIN = {"commit": "abc", "versions": {}, "machine": {"cpu": "x", "cores": 2, "threads": 1}, "started": "2026"}


def entry(seconds, arm="a", state="missing", **needs):
    return Entry(Job(Unit("toy", "better", arm, 0, "cpu"), 60.0, Needs(**needs)), state, seconds, "arm")


def put(tree, claim, values, seconds, **changes):
    """A committed record of a toy experiment: {arm: values}, every unit so many seconds."""
    experiment = catalog.load_one("toy").experiment(claim)
    units = [
        {"arm": arm, "seed": seed, "metrics": {"score": value}, "seconds": seconds, "provenance": ORIGIN}
        for arm, found in values.items()
        for seed, value in enumerate(found)
    ]
    head = {"paper": "toy", "claim": claim, "scale": "cpu", **identity(experiment), **changes}
    write_atomic(record_file("toy", claim), dump({**head, "units": units}))


def states(tree):
    paper = catalog.load_one("toy")
    return [(e.job.unit.arm, e.job.unit.seed, e.state) for e in entries_of(paper, paper.claims[0], "cpu", None)]


def test_a_unit_is_missing_stale_kept_or_fresh(tree):
    assert {state for _, _, state in states(tree)} == {"missing"}
    put_record(tree, code="other")
    assert {state for _, _, state in states(tree)} == {"stale"}
    put_record(tree)
    assert {state for _, _, state in states(tree)} == {"kept"}
    assert tree.encore("reproduce", "toy", "--seeds", "1").returncode == 0
    assert states(tree)[:4] == [
        ("method", 0, "kept"),
        ("baseline", 0, "kept"),
        ("method", 1, "fresh"),
        ("baseline", 1, "fresh"),
    ]


def test_the_time_of_a_unit_is_judged_by_its_arm_then_its_claim_then_its_limit(tree):
    paper = catalog.load_one("toy")
    assert {(e.seconds, e.basis) for e in entries_of(paper, paper.claims[0], "cpu", None)} == {(900.0, "limit")}
    put(tree, "better", {"method": [1.0, 2.0]}, 7.0)
    found = {e.job.unit.arm: (e.seconds, e.basis) for e in entries_of(paper, paper.claims[0], "cpu", None)}
    assert found == {"method": (7.0, "arm"), "baseline": (7.0, "claim")}


def test_the_longest_start_first_on_the_workers_there_are():
    entries = [entry(seconds) for seconds in (3.0, 5.0, 2.0, 4.0)]
    assert wall_seconds(entries, 1) == 14.0
    assert wall_seconds(entries, 2) == 7.0
    assert wall_seconds([], 2) == 0.0
    total = summary([entry(1800.0, cores=4, gpus=1), entry(3600.0)], 2)
    assert (total["units"], total["wall_seconds"], total["core_hours"], total["gpu_hours"]) == (2, 3600.0, 3.0, 0.5)


@pytest.fixture
def night(tree):
    """Claims without a result, with an inconclusive and a decided stale one, and a measurement; 60 s a unit."""
    text = (tree.root / "papers/toy/paper.yaml").read_text()
    claim = text[text.index("  - id: better\n") : text.index("measurements:\n")]
    more = "".join(claim.replace("id: better", f"id: {name}") for name in ("open", "decided"))
    tree.edit("measurements:\n", more + "measurements:\n")
    put(tree, "open", {"method": [1.0, 9.0, 2.0], "baseline": [4.0, 4.0, 4.0]}, 60.0, code="other")
    put(tree, "decided", {"method": [9.0, 9.1, 9.2], "baseline": [4.0, 4.0, 4.0]}, 60.0, code="other")
    paper = catalog.load_one("toy")
    experiments = {("toy", e.id): e for e in paper.experiments}
    entries = [e for x in paper.experiments for e in entries_of(paper, x, "cpu", None)]
    return entries, experiments


def chosen(night, minutes):
    entries, experiments = night
    taken = [e.job.unit.claim for e in within(minutes * 60.0, entries, experiments, workers=2)]
    return [(claim, taken.count(claim)) for claim in dict.fromkeys(taken)]


def test_a_budget_takes_claims_without_a_result_then_open_ones_then_decided_ones_then_measurements(night):
    assert chosen(night, 0.5) == []
    assert chosen(night, 45) == [("better", 6)]
    assert chosen(night, 48) == [("better", 6), ("open", 6)]
    assert chosen(night, 51) == [("better", 6), ("open", 6), ("decided", 6)]
    assert chosen(night, 1000) == [("better", 6), ("open", 6), ("decided", 6), ("values", 2)]


def test_what_is_left_of_a_budget_begins_the_first_claim_that_did_not_fit(night):
    assert chosen(night, 3) == [("open", 6)], "the claim without a result takes 45 minutes as far as anybody knows"
    assert chosen(night, 14) == [("open", 6), ("decided", 6)]
    assert chosen(night, 16) == [("open", 6), ("decided", 6), ("better", 1)]
    assert chosen(night, 22) == [("open", 6), ("decided", 6), ("values", 2)], "what fits whole goes before a part"


def test_the_plan_is_shown_and_nothing_is_run(tree):
    put_record(tree, code="other")
    done = tree.encore("reproduce", "toy", "--plan", "--measurements", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "6 stale" in done.stdout
    assert "2 missing" in done.stdout
    assert "8 units to run, 2 at a time: at most 15 min" in done.stdout
    found = json.loads(tree.encore("reproduce", "toy", "--plan", "--json", "--budget", "10s").stdout)
    assert list(found) == ["units", "total"]
    assert found["total"]["units"] == sum(unit["run"] for unit in found["units"]) == 6
    assert found["units"][0] == {
        **{"paper": "toy", "claim": "better", "arm": "method", "seed": 0, "scale": "cpu"},
        **{"state": "stale", "run": True, "seconds": 1.0, "basis": "arm", "cores": 1, "gpus": 0, "memory_gb": 4.0},
    }
    assert tree.calls() == []
    assert not list((tree.root / "runs").rglob("*.log"))


def test_a_budget_runs_what_fits_and_the_next_one_goes_on(tree):
    put(tree, "better", {"method": [1.0, 2.0, 3.0], "baseline": [1.0, 2.0, 3.0]}, 10.0, code="other")
    first = tree.encore("reproduce", "toy", "--budget", "25s", "--workers", "1")
    assert first.returncode == 0, first.stderr
    assert "2 units fit into 25 s" in first.stdout
    assert len(tree.calls()) == 2
    second = tree.encore("reproduce", "toy", "--budget", "1h", "--workers", "1")
    assert second.returncode == 0, second.stderr
    assert len(set(tree.calls())) == len(tree.calls()) == 6


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("1h30m", 5400), ("90s", 90), ("0.5h", 1800)])
def test_a_budget_is_a_time(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["30", "m", "30 minutes", "-5m", "1e3s", "30m!"])
def test_a_budget_that_is_no_time_is_an_error(text):
    with pytest.raises(EncoreError, match="give a time such as 30m"):
        duration(text)


def test_durations_are_spoken_as_people_do():
    assert [spoken(seconds) for seconds in (40, 119, 720, 12600)] == ["40 s", "119 s", "12 min", "3.5 h"]

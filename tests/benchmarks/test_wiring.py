"""The harness notices claims that are wired wrongly: equal arms, other splits, one seed for all, unnamed settings."""

import copy
import json

import pytest

from benchmarks.paper import catalog
from benchmarks.run.records import read_record
from benchmarks.run.wiring import MOST_BYTES, compact, problems, settings_of
from common.errors import EncoreError
from tests.benchmarks.test_run import CLAIMS

FIT = {"module": "Toy", "steps": 5, "batch_size": 4, "examples": 20, "lr": 0.1, "parameters": 8, "data": "train"}


def wired(arm, seed):
    """Two arms of other objectives from the same weights, on the same examples."""
    fit = {**FIT, "start": f"start{seed}", "end": f"end-{arm}-{seed}", "handed_over": None}
    splits = {"train": {"examples": 9, "digest": f"train{seed}"}, "test": {"examples": 5, "digest": "test"}}
    return {"splits": splits, "settings": {"objective": arm}, "fits": {"fit": fit}}


@pytest.fixture
def units():
    found = [(arm, seed) for seed in (0, 1) for arm in ("method", "baseline")]
    return [{"arm": arm, "seed": seed, "wiring": copy.deepcopy(wired(arm, seed))} for arm, seed in found]


@pytest.fixture
def claim(tree):
    tree.edit(
        "    baseline: baseline\n",
        "    baseline: baseline\n    same_start: true\n"
        "    arms: {method: {objective: method}, baseline: {objective: baseline}}\n",
    )
    return catalog.load_one("toy").claims[0]


def test_a_claim_wired_as_it_says_has_no_problems(claim, units):
    assert problems(claim, units) == []
    assert problems(claim, units[:1]) == [], "half a claim is no problem yet"
    assert problems(claim, [{"arm": "method", "seed": 0}]) == [], "nor is a result from before"


def change(units, arm, seed, section, key, **values):
    unit = next(unit for unit in units if (unit["arm"], unit["seed"]) == (arm, seed))
    unit["wiring"][section][key] |= values


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            lambda units: change(units, "baseline", 0, "splits", "test", digest="other"),
            ["arms method and baseline of seed 0 have other examples in split 'test'"],
        ),
        (
            lambda units: change(units, "baseline", 1, "splits", "train", examples=8),
            ["arms method and baseline of seed 1 have other examples in split 'train'"],
        ),
        (
            lambda units: [change(units, arm, 1, "fits", "fit", start="start0") for arm in ("method", "baseline")],
            ["arm METHOD_OR_BASELINE starts from the same weights for seeds 0 and 1: the seed does not reach it"],
        ),
        (
            lambda units: change(units, "method", 1, "fits", "fit", end="end-method-0"),
            ["arm method ends with the same weights for seeds 0 and 1: the seed does not reach it"],
        ),
        (
            lambda units: change(units, "baseline", 0, "fits", "fit", start="start7"),
            ["arms of seed 0 start from different weights (method start0, baseline start7), though paper.yaml has"],
        ),
        (
            lambda units: change(units, "baseline", 0, "fits", "fit", end="end-method-0"),
            ["arms method and baseline of seed 0 end with the same weights: they are one arm"],
        ),
        (
            lambda units: [change(units, "baseline", seed, "fits", "fit", lr=0.01) for seed in (0, 1)],
            ["arms differ in fit.lr (method 0.1, baseline 0.01), which paper.yaml does not say"],
        ),
        (
            lambda units: [change(units, "baseline", seed, "fits", "fit", steps=3) for seed in (0, 1)],
            ["arms differ in fit.steps (method 5, baseline 3), which paper.yaml does not say"],
        ),
        (
            lambda units: [unit["wiring"].update(settings={"objective": "method"}) for unit in units],
            ["arms do not differ in objective, though paper.yaml says so"],
        ),
        (
            lambda units: [unit["wiring"].update(settings={"objective": unit["arm"] + "!"}) for unit in units],
            ["arm method has objective method!, paper.yaml says method"],
        ),
        (
            lambda units: [change(units, "method", seed, "fits", "fit", handed_over="abc") for seed in (0, 1)],
            ["arms differ in fit.handed_over (method True, baseline False), which paper.yaml does not say"],
        ),
    ],
    ids=[
        "test split",
        "train split",
        "one start",
        "one end",
        "other starts",
        "equal arms",
        "rate",
        "compute",
        "setting not applied",
        "setting of another name",
        "hand-over",
    ],
)
def test_each_fault_is_one_line_that_names_it(claim, units, fault, says):
    fault(units)
    found = problems(claim, units)
    assert len(found) == 1, found
    assert found[0].startswith(says[0]) or says[0].replace("METHOD_OR_BASELINE", found[0].split()[1]) == found[0]


def test_a_hand_over_that_does_not_happen_is_a_problem(tree, units):
    tree.edit(
        "    baseline: baseline\n",
        "    baseline: baseline\n"
        "    arms: {method: {objective: null, fit.handed_over: true}, baseline: {fit.handed_over: false}}\n",
    )
    claim = catalog.load_one("toy").claims[0]
    assert problems(claim, units) == ["arms do not differ in fit.handed_over, though paper.yaml says so"]
    for seed in (0, 1):
        change(units, "method", seed, "fits", "fit", handed_over="abcd")
    assert problems(claim, units) == []


def test_arms_that_share_the_training_may_end_alike_where_paper_yaml_says_so(tree, units):
    for unit in units:
        unit["wiring"]["fits"]["fit"]["end"] = f"end{unit['seed']}"
    tree.edit("    metric: score\n    method", "    metric: score\n    same_training: true\n    method")
    assert problems(catalog.load_one("toy").claims[0], units) == []


def test_a_training_that_an_arm_lacks_is_named_as_a_whole(tree, units):
    tree.edit(
        "    baseline: baseline\n",
        "    baseline: baseline\n    arms: {method: {objective: null}, baseline: {fit: null}}\n",
    )
    for unit in units:
        if unit["arm"] == "baseline":
            unit["wiring"]["fits"] = {}
    assert problems(catalog.load_one("toy").claims[0], units) == []


def test_numbered_trainings_are_one_unless_they_differ():
    fits = {f"fold-{i}": {**FIT, "start": str(i), "end": str(i), "handed_over": "a"} for i in range(3)}
    settings = settings_of({"fits": fits})
    assert settings["fold.lr"] == 0.1
    assert settings["fold.handed_over"] is True
    assert "fold.start" not in settings
    fits["fold-1"]["lr"] = 0.2
    assert settings_of({"fits": fits})["fold.lr"] == [0.1, 0.2, 0.1]


def test_the_wiring_in_a_record_is_short():
    one = wired("method", 0)
    assert compact(one)["splits"] == {"train": "9:train0", "test": "5:test"}
    assert compact(one)["fits"] == {"fit": "Toy 5x4 lr 0.1 of 8 start0>end-method-0"}
    one["fits"] = {f"fold{i}": one["fits"]["fit"] for i in range(20)}
    short = compact(one)
    assert len(json.dumps(short)) <= MOST_BYTES
    assert len(short["fits"]) == 8
    assert short["settings"] == {"objective": "method"}
    one["fits"]["fold3"]["lr"] = 7
    assert compact(one)["fits"] != short["fits"]


def test_reproduce_fails_a_claim_that_is_wired_wrongly_and_keeps_no_result(tree):
    wiring = '    run.record["settings"] = {"rate": 1 if run.arm == "method" else RATE}\n    state_file = run'
    tree.edit("    state_file = run", wiring, CLAIMS)
    tree.edit("LARGE\n", "LARGE\n\nRATE = 1\n", CLAIMS)
    tree.edit(
        "    baseline: baseline\n", "    baseline: baseline\n    arms: {method: {rate: 1}, baseline: {rate: 2}}\n"
    )
    done = tree.encore("reproduce", "toy")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: toy better: arms do not differ in rate, though paper.yaml says so; "
        "correct claims.py or paper.yaml, no such run is recorded"
    ]
    refused = tree.encore("record", "toy")
    assert refused.returncode == 1
    assert "arms do not differ in rate" in refused.stderr
    assert read_record("toy", "better") is None
    tree.edit("RATE = 1", "RATE = 2", CLAIMS)
    done = tree.encore("reproduce", "toy")
    assert done.returncode == 0, done.stderr
    assert tree.encore("record", "toy").returncode == 0
    assert read_record("toy", "better")["units"][0]["wiring"] == {"settings": {"rate": 1}}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("arms: {method: {a: 1}}", "but nothing of baseline"),
        ("gate: {at_least: 1}", "name either untrained"),
        ("gate: {chance: 1}", "claims[0].gate.at_least: is required"),
    ],
)
def test_a_mapping_of_arms_is_whole_and_a_gate_has_one_floor(tree, line, says):
    tree.edit("    baseline: baseline\n", f"    baseline: baseline\n    {line}\n")
    with pytest.raises(EncoreError) as caught:
        catalog.load_one("toy")
    assert says in str(caught.value)

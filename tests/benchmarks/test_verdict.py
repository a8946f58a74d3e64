import math

import pytest

from benchmarks.paper import catalog
from benchmarks.run.verdict import decide, judge, t_interval, t_quantile

IDENTITY = {"code": "c", "config": "f", "data": {"generated": "generated"}}


def record(method, baseline, **extra):
    origin = {"started": "2026", "commit": "abc", "machine": {}}
    units = [
        {"arm": arm, "seed": seed, "metrics": {"score": value, **extra}, "seconds": 2.0, "provenance": origin}
        for arm, values in (("method", method), ("baseline", baseline))
        for seed, value in enumerate(values)
    ]
    return {**IDENTITY, "units": units}


@pytest.fixture
def claim(tree):
    return catalog.load_one("toy").claims[0]


def test_t_interval_of_three_samples_by_hand():
    mean, (low, high) = t_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(4.302652729911275 / math.sqrt(3), rel=1e-5)
    assert mean - low == pytest.approx(high - mean)
    assert t_interval([5.0]) == (5.0, None)


@pytest.mark.parametrize("freedom", [1, 2, 5, 9, 29, 30, 31, 60, 1000])
def test_t_quantiles_are_those_of_scipy(freedom):
    from scipy.stats import t

    assert t_quantile(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=2e-5)


def test_verdict_follows_the_side_of_zero_the_interval_lies_on(claim):
    assert judge(claim, record([9, 9.1, 9.2], [5, 5, 5]), IDENTITY).verdict == "reproduced"
    assert judge(claim, record([5, 5, 5], [9, 9.1, 9.2]), IDENTITY).verdict == "not reproduced"
    assert judge(claim, record([5, 7, 3], [5, 5, 5]), IDENTITY).verdict == "inconclusive"
    assert judge(claim, record([5, 5, 5], [5, 5, 5]), IDENTITY).verdict == "inconclusive"


def test_gaps_are_paired_by_seed(claim):
    """Unpaired, the spread between seeds would hide a gap that is exactly 1 for each."""
    verdict = judge(claim, record([2, 102, 1002], [1, 101, 1001]), IDENTITY)
    assert (verdict.gap, verdict.interval, verdict.n) == (1.0, (1.0, 1.0), 3)
    assert verdict.verdict == "reproduced"
    assert verdict.seconds == 12.0


def test_lower_is_better_flips_the_gap(tree):
    tree.edit("higher_is_better: true", "higher_is_better: false")
    claim = catalog.load_one("toy").claims[0]
    verdict = judge(claim, record([1, 1, 1], [3, 3, 3]), IDENTITY)
    assert (verdict.gap, verdict.verdict) == (2.0, "reproduced")


def test_margin_allows_that_much_loss_and_no_more(tree):
    tree.edit("higher_is_better: true", "higher_is_better: true\n    margin: 0.5")
    claim = catalog.load_one("toy").claims[0]
    assert judge(claim, record([4.6, 4.6, 4.6], [5, 5, 5]), IDENTITY).verdict == "reproduced"
    assert judge(claim, record([4.4, 4.4, 4.4], [5, 5, 5]), IDENTITY).verdict == "not reproduced"
    assert decide((-0.6, 0.1), 0.5) == "inconclusive"


def test_a_fixed_number_or_another_metric_may_be_the_baseline(tree):
    tree.edit("baseline: baseline", "baseline: 4")
    claim = catalog.load_one("toy").claims[0]
    assert judge(claim, record([5, 6, 7], []), IDENTITY).gap == 2.0
    tree.edit("baseline: 4", "baseline: {arm: method, metric: other}")
    claim = catalog.load_one("toy").claims[0]
    assert judge(claim, record([5, 6, 7], [], other=1.0), IDENTITY).gap == 5.0


def test_other_code_config_or_data_make_a_result_stale(claim):
    good = record([9, 9.1, 9.2], [5, 5, 5])
    for key, value in (("code", "x"), ("config", "x"), ("data", {"generated": "x"})):
        assert judge(claim, good, {**IDENTITY, key: value}).verdict == "stale"


def test_a_planned_seed_without_result_is_missing(claim):
    assert judge(claim, None, IDENTITY).verdict == "missing"
    assert judge(claim, record([9, 9], [5, 5]), IDENTITY).verdict == "missing"
    assert judge(claim, record([9], [5]), IDENTITY, seeds=[0]).verdict == "inconclusive"


@pytest.fixture
def gated(tree):
    tree.edit("    baseline: baseline\n", "    baseline: baseline\n    gate: {untrained: random, at_least: 2}\n")
    return catalog.load_one("toy").claims[0]


def with_untrained(record, *values):
    origin = record["units"][0]["provenance"]
    record["units"] += [
        {"arm": "random", "seed": seed, "metrics": {"score": value}, "seconds": 1.0, "provenance": origin}
        for seed, value in enumerate(values)
    ]
    return record


def test_a_gap_is_read_when_both_sides_clear_the_untrained_model(gated):
    def verdict(method, baseline):
        return judge(gated, with_untrained(record(method, baseline), 1, 3, 5), IDENTITY)  # untrained: 3 in the mean

    assert gated.all_arms == ["method", "baseline", "random"]
    assert gated.metrics_of("random") == {"score"}
    assert verdict([9, 9.1, 9.2], [5, 5, 5]).verdict == "reproduced"
    low = verdict([9, 9.1, 9.2], [5, 4.9, 4.9])
    assert low.verdict == "undertrained"
    assert low.below == "baseline score must be 2 better than random score: 4.933 against 3"
    assert verdict([4.9, 4.9, 4.9], [9, 9.1, 9.2]).verdict == "undertrained"
    assert judge(gated, record([9, 9, 9], [5, 5, 5]), IDENTITY).verdict == "missing", "the untrained arm must run too"
    assert judge(gated, with_untrained(record([3, 3, 3], [3, 3, 3]), 1, 3, 5), {**IDENTITY, "code": "x"}).verdict == (
        "stale"
    )


def test_the_gate_has_the_direction_of_the_metric_and_may_be_chance(tree):
    tree.edit("higher_is_better: true", "higher_is_better: false\n    gate: [{chance: 10, at_least: 1}]")
    claim = catalog.load_one("toy").claims[0]
    assert judge(claim, record([5, 5.1, 5.2], [9, 9, 9]), IDENTITY).verdict == "reproduced"
    assert judge(claim, record([5, 5.1, 5.2], [9.5, 9.5, 9.5]), IDENTITY).verdict == "undertrained"
    assert judge(claim, record([12, 12, 12], [15, 15, 15]), IDENTITY).verdict == "undertrained"


def test_a_side_that_is_the_untrained_model_has_no_gate(tree):
    tree.edit("    baseline: baseline\n", "    baseline: baseline\n    gate: {untrained: baseline, at_least: 2}\n")
    claim = catalog.load_one("toy").claims[0]
    assert judge(claim, record([9, 9.1, 9.2], [5, 5, 5]), IDENTITY).verdict == "reproduced"
    assert judge(claim, record([6, 6.1, 6.2], [5, 5, 5]), IDENTITY).verdict == "undertrained"

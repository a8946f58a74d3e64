"""The claims and measurements of Pointer Networks."""

import pytest
import torch

from benchmarks.paper import paths, recipe
from common.errors import EncoreError
from common.training.run import Run
from papers.pointer_networks import claims, solvers
from papers.pointer_networks import geometry as g
from papers.pointer_networks.measurements import solver_lengths
from papers.pointer_networks.model import build


def test_claim_arms_differ_in_architecture_alone_and_are_of_comparable_size(tmp_path):
    size = {}
    for arm in ("pointer", "attention", "lstm"):
        scores = claims.hull_architectures(Run("pointer_networks", "c", arm, 0, "smoke", tmp_path / arm))
        assert 0 <= scores["accuracy"] <= 100
        size[arm] = scores["parameters"]
    plan = claims.HULL["cpu"]
    full = {
        arm: sum(p.numel() for p in build(arm, h, 10).parameters())
        for arm, h in (
            ("pointer", plan.hidden_dim),
            ("attention", plan.hidden_dim),
            ("lstm", plan.hidden_dim * 9 // 8),
        )
    }
    assert abs(full["lstm"] / full["pointer"] - 1) < 0.1
    assert full["attention"] > full["pointer"]


def test_claims_on_length_and_tours_report_every_size(tmp_path):
    lengths = claims.any_length(Run("pointer_networks", "c", "pointer", 0, "smoke", tmp_path / "a"))
    assert {f"{name}_{n}" for n in (5, 10, 12, 16, 24) for name in ("accuracy", "area_all")} <= lengths.keys()
    tours = claims.tour_constraint(Run("pointer_networks", "c", "pointer", 0, "smoke", tmp_path / "b"))
    assert all(tours[f"excess_{n}"] >= 0 for n in (5, 8, 10))  # nothing is shorter than the optimum
    assert tours["length_5"] == pytest.approx(tours["optimal_5"] * (1 + tours["excess_5"] / 100))


def test_the_cpu_config_is_what_claim_2_trains():
    config = recipe.merged(paths.room("pointer_networks") / "configs" / "cpu.yaml")
    plan, model, data = claims.ANY_LENGTH["cpu"], config["model"]["init_args"], config["data"]["init_args"]
    assert (model["hidden_dim"], config["trainer"]["max_steps"]) == (plan.hidden_dim, plan.steps)
    ours = claims.claim_optim(plan.lr, plan.steps)
    for name in ("name", "lr", "schedule", "warmup", "decay_all", "weight_decay"):
        assert model["optim"][name] == getattr(ours, name), name
    assert data["batch_size"] == plan.batch_size
    assert (data["problem"], data["min_points"], data["max_points"]) == ("hull", 5, 12)


def test_measured_solver_lengths_are_means_over_the_same_sets_for_every_solver(tmp_path):
    def lengths(arm):
        return solver_lengths(Run("pointer_networks", "m", arm, 0, "smoke", tmp_path / arm))

    optimal, greedy = lengths("optimal"), lengths("a1")
    sets = g.uniform_points(2, 10, torch.Generator().manual_seed(2**40 + 10))
    assert optimal["length_10"] == pytest.approx(g.tour_length(sets, g.held_karp(sets)).mean())
    assert greedy["length_10"] == pytest.approx(g.tour_length(sets, solvers.a1(sets)).mean())
    assert optimal["length_5"] <= greedy["length_5"]
    with pytest.raises(EncoreError, match="unknown solver 'a4'"):
        lengths("a4")

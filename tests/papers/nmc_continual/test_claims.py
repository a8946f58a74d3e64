"""The claims: one encoder serves all learners of a unit, and a stopped unit ends as if it had not been stopped."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from common.training.run import Run
from papers.nmc_continual import claims, module
from tests.helpers import requires_mirror


@pytest.fixture
def quick_grid(monkeypatch):
    """1 or 2 passes, the first try of every learner; the linear head keeps two."""
    monkeypatch.setattr(claims, "PASSES", (1, 2))
    for learner, (kind, choices) in claims.LEARNERS.items():
        assert len(choices) == (2 if learner == "joint" else 4)
        monkeypatch.setitem(claims.LEARNERS, learner, (kind, choices[-2:] if learner == "linear_head" else choices[:1]))


def unit(entry: str, folder: Path, arm: str = "learners") -> dict[str, float]:
    """The metrics of one unit of a claim at smoke scale."""
    return getattr(claims, entry)(Run("nmc_continual", entry, arm, 0, "smoke", folder))


@requires_mirror("omniglot")
@requires_mirror("mnist")
def test_one_encoder_serves_every_learner_of_a_unit_and_a_trained_one_keeps_its_best_try(
    quick_grid, tmp_path, monkeypatch
):
    started: dict[str, torch.Tensor] = {}

    def watched(run, kind, options, encoder, data, name, real=claims.follow):
        started[name] = parameters_to_vector(encoder.parameters()).detach().clone()
        return real(run, kind, options, encoder, data, name)

    monkeypatch.setattr(claims, "follow", watched)
    found = unit("on_digits", tmp_path)
    assert all(np.isfinite(value) for value in found.values())
    tries = {f"{name}-{passes}-0" for name in claims.LEARNERS for passes in (1, 2)}
    tries |= {"nmc", "linear_head-1-1", "linear_head-2-1"}
    assert started.keys() == tries
    assert {path.parent.name for path in tmp_path.rglob("done.ckpt")} == {"pretraining", *tries}
    kept = torch.load(tmp_path / "pretraining" / "done.ckpt", weights_only=True)["state_dict"]
    trained = torch.cat([v.flatten() for k, v in kept.items() if k.startswith("backbone.")])
    assert all(torch.equal(weights, trained) for weights in started.values())
    for learner in claims.LEARNERS:
        best = [found[f"{learner}_final_accuracy_{passes}"] for passes in (1, 2)]
        assert found[f"{learner}_final_accuracy"] == max(best)
        assert found[f"{learner}_passes"] == (1 if best[0] >= best[1] else 2)
    assert found["nmc_restricted_drift"] == 0
    assert found["nmc_final_accuracy"] == unit("representation", tmp_path / "full", "full")["final_accuracy"]
    variants = unit("variants", tmp_path / "variants", "nmc")
    assert variants.keys() == {f"{s}_{v}" for s in ("digits", "characters") for v in module.VARIANTS}
    assert variants["digits_nearest_mean"] == pytest.approx(found["nmc_final_accuracy"])


@requires_mirror("omniglot")
@requires_mirror("mnist")
def test_without_pretraining_the_encoder_is_the_initial_one(tmp_path, monkeypatch):
    untrained = unit("representation", tmp_path / "random", "random")
    assert {path.parent.name for path in tmp_path.rglob("done.ckpt")} == {"characters", "digits"}
    monkeypatch.setitem(claims.PLANS, "smoke", replace(claims.PLANS["smoke"], pretraining_steps=8))
    steps = []
    monkeypatch.setattr(
        claims, "fit", lambda *args, real=claims.fit, **how: steps.append(how["max_steps"]) or real(*args, **how)
    )
    partly = unit("representation", tmp_path / "partly", "partly")
    assert steps[0] == 2
    assert untrained.keys() == partly.keys()


@requires_mirror("omniglot")
@requires_mirror("mnist")
def test_a_unit_stopped_between_two_learners_ends_as_if_it_had_not_been_stopped(quick_grid, tmp_path, monkeypatch):
    expected = unit("on_characters", tmp_path / "whole")
    fitted: list[str] = []

    def stops(*args, real=claims.fit, **how):
        fitted.append(how["name"])
        if len(fitted) == 4:
            raise KeyboardInterrupt
        return real(*args, **how)

    monkeypatch.setattr(claims, "fit", stops)
    with pytest.raises(KeyboardInterrupt):
        unit("on_characters", tmp_path / "stopped")
    assert fitted == ["pretraining", "nmc", "scale_shift-1-0", "scale_shift-2-0"]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").rglob("done.ckpt")}
    assert unit("on_characters", tmp_path / "stopped") == expected
    assert len(written) == 3
    assert all(path.stat().st_mtime_ns == at for path, at in written.items())

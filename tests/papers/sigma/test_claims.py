"""SIGMA: what its claims compare."""

import torch

from common.training.run import Run
from papers.sigma import claims


def test_arms_train_on_the_same_clips_and_the_pixel_arm_for_the_same_work(tmp_path):
    runs = {arm: Run("sigma", "claim", arm, 0, "smoke", tmp_path / arm) for arm in ("sinkhorn", "pixels", "untrained")}
    found = {arm: claims.features(run) for arm, run in runs.items()}
    assert claims.features(runs["sinkhorn"]) == found["sinkhorn"], "a finished unit is loaded, not trained again"
    assert found["pixels"]["steps"] > claims.PLANS["smoke"].steps, "equal multiply-adds: no phi to pay for"
    splits = [{name: split["digest"] for name, split in run.record.splits.items()} for run in runs.values()]
    assert splits[0] == splits[1]
    assert splits[0].keys() == {"train:unlabelled", "train:labelled", "test"}
    assert not runs["untrained"].record.fits
    assert found["untrained"]["glyph_top1"] > 0


def test_all_sigma_arms_of_a_seed_start_alike_and_pay_for_phi(tmp_path):
    starts = [claims.sigma(Run("sigma", "claim", arm, 3, "smoke", tmp_path)) for arm in ("sinkhorn", "l2", "soft")]
    states = [model.state_dict() for model, _ in starts]
    assert all(torch.equal(value, state[name]) for state in states for name, value in states[0].items())
    assert [(module.objective, module.hard) for _, module in starts] == [
        ("sinkhorn", True), ("l2", True), ("sinkhorn", False)
    ]  # fmt: skip
    ratio = claims.clip_cost(starts[0][0]) / claims.clip_cost(claims.pretrain_videomae_tiny_patch8_32())
    assert 1.1 < ratio < 1.6

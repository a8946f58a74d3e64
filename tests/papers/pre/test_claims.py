"""PRE's claims: one frozen CLIP for every kind of prompt, and what a step costs."""

import pytest
import torch

from common.training.run import Run
from papers.pre import claims
from papers.pre.prompts import harmonic_mean


def test_a_unit_learns_every_kind_of_prompt_on_one_clip_and_repeats_exactly(tmp_path):
    runs = [Run("pre", "claim", "prompts", 0, "smoke", tmp_path / name) for name in ("a", "b")]
    results = [claims.on_emoji(runs[0]), claims.on_shapes(runs[1])]  # at smoke scale both are shapes
    assert results[0] == results[1]
    kinds = ["zero_shot", *claims.KINDS]
    for kind in kinds:
        base, new = results[0][f"{kind}_base"], results[0][f"{kind}_new"]
        assert results[0][f"{kind}_harmonic_mean"] == pytest.approx(harmonic_mean(base, new))
    assert results[0]["backbone_multiply_adds_g"] > 0
    assert claims.on_emoji(runs[0]) == results[0]  # from what a finished unit has left behind
    kinds_used = [
        {key: runs[0].record.fits[f"{kind}-0"][key] for key in ("module", "steps", "batch_size", "lr")}
        for kind in claims.KINDS
    ]
    assert all(used == kinds_used[0] for used in kinds_used), "every kind is trained alike"
    frozen = [torch.load(path, weights_only=True)["state_dict"] for path in sorted(tmp_path.glob("a/*-0/done.ckpt"))]
    assert len(frozen) == len(claims.KINDS)
    backbone = torch.load(tmp_path / "a" / "backbone" / "done.ckpt", weights_only=True)["state_dict"]
    for state in frozen:
        for name, value in state.items():
            if name.startswith("model.clip."):
                assert torch.equal(value, backbone[name.replace("model.clip.", "model.")]), name


def test_step_time_compares_pre_with_coop(tmp_path):
    metrics = claims.step_time(Run("pre", "cost", "step", 0, "smoke", tmp_path))
    assert metrics["step_time_ratio"] == pytest.approx(metrics["pre_ms"] / metrics["coop_ms"])
    assert metrics["coop_ms"] > 0

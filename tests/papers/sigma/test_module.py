"""SIGMA: targets, gradients, optimizer, collapse and its prevention."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from common.formats.video_clips import IMAGENET_MEAN, IMAGENET_STD
from common.layers.attention import take_tokens
from common.training.recipe import Optim
from common.worlds.moving_digits import STD, LabelledDigits
from papers.sigma.collapse import effective_rank, spread
from papers.sigma.downstream import FineTuning
from papers.sigma.model import SIGMA, projection_mlp
from papers.sigma.module import Pretraining, standardise_channels
from papers.videomae_v2.data import DigitsPretraining
from papers.videomae_v2.fixtures import CLIP, DECODER, SIZES
from papers.videomae_v2.model import VideoClassifier, VideoMAE
from tests import tiny
from tests.papers.sigma.conftest import tiny_dino_sigma, tiny_mlp_sigma

# Targets


def test_the_mlp_sees_the_normalised_pixels_of_masked_cubes_only(batch):
    net = tiny_mlp_sigma()
    x_phi, x_psi = Pretraining(net, Optim(1e-3)).features(batch)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    cubes = rearrange(batch["video"] * std + mean, "b c (t u) (h p) (w q) -> b (t h w) (u p q) c", u=2, p=4, q=4)
    cubes = (cubes - cubes.mean(2, keepdim=True)) / (cubes.var(2, unbiased=True, keepdim=True).sqrt() + 1e-6)
    y = cubes.flatten(2)[batch["hidden"]]
    for index in (0, 2):
        y = F.gelu(F.linear(y, net.phi[index].weight, net.phi[index].bias))
    torch.testing.assert_close(x_phi, F.linear(y, net.phi[4].weight, net.phi[4].bias), atol=1e-5, rtol=1e-4)
    assert x_phi.shape == x_psi.shape == (3 * 48, 10)


def test_psi_predicts_the_tubes_that_phi_describes(batch, monkeypatch):
    net = tiny_mlp_sigma()
    module = Pretraining(net, Optim(1e-3))
    order = torch.tensor([2, 0, 1])
    shuffled = {name: value[order] for name, value in batch.items()}
    for one, other in zip(module.features(batch), module.features(shuffled)):
        torch.testing.assert_close(one.view(3, 48, -1)[order], other.view(3, 48, -1), atol=1e-5, rtol=1e-4)
    positions = net.video.positions[batch["hidden"][0].nonzero()[:, 0]]
    assert len(positions) == 48
    # each output then tells its mask token's position
    monkeypatch.setattr(net.video.decoder.blocks, "forward", lambda x, read: take_tokens(x, read))
    with torch.no_grad():
        _, x_psi = module.features(batch)
        queries = net.video.mask_token[0] + positions
        expected = net.video.decoder.head(net.video.decoder.norm(queries))
    torch.testing.assert_close(x_psi[:48], expected, atol=1e-5, rtol=1e-4)


def test_dino_targets_are_patches_of_every_second_frame_standardised_over_the_clip(batch, dino_folder):
    net = tiny_dino_sigma()
    module = Pretraining(net, Optim(1e-3), dino_weights=dino_folder)
    vit = net.phi.vit
    clips = []
    for clip in batch["video"]:
        frames = [vit.norm(vit.tokens(clip[:, t][None]))[0, 1:] for t in (0, 2, 4, 6)]
        tokens = torch.cat(frames)
        clips.append((tokens - tokens.mean(0)) / (tokens.std(0, unbiased=True) + 1e-6))
    expected = torch.stack(clips)[batch["hidden"]]
    x_phi, _ = module.features(batch)
    torch.testing.assert_close(x_phi, expected, atol=1e-4, rtol=1e-3)
    assert not x_phi.requires_grad
    later = batch["video"].clone()
    later[:, :, 1::2] += 1
    torch.testing.assert_close(module.features(batch | {"video": later})[0], x_phi)


def test_channels_are_standardised_clip_by_clip():
    torch.manual_seed(0)
    features = 3 + torch.tensor([1.0, 9.0]).view(2, 1, 1) * torch.randn(2, 50, 4)
    found = standardise_channels(features)
    torch.testing.assert_close(found.mean(1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(1), torch.ones(2, 4), atol=1e-5, rtol=0)
    assert float(standardise_channels(torch.ones(1, 5, 2)).abs().max()) == 0


# Gradients


def test_a_frozen_target_trains_prototypes_by_phi_and_the_video_model_by_psi(batch, dino_folder):
    net = tiny_dino_sigma()
    module = Pretraining(net, Optim(1e-3), dino_weights=dino_folder)
    module.loss(batch)["loss"].backward()
    assert all(parameter.grad is None for parameter in net.phi.parameters())
    assert all(float(p.grad.abs().max()) > 0 for name, p in net.video.named_parameters() if "k_bias" not in name)
    x_phi, x_psi = (x.detach() for x in module.features(batch))
    total = net.prototypes.weight.grad.clone()
    net.zero_grad()
    module.feature_loss(x_phi, x_psi)["loss"].backward()
    torch.testing.assert_close(net.prototypes.weight.grad, total)
    trainable = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trainable == {"video", "prototypes"}


def test_a_trained_target_gets_gradient_in_both_objectives(batch):
    for objective in ("sinkhorn", "l2"):
        net = tiny_mlp_sigma()
        module = Pretraining(net, Optim(1e-3), objective=objective)
        x_phi, x_psi = module.features(batch)
        loss = module.feature_loss(x_phi, x_psi)["loss"]
        loss.backward()
        assert all(float(p.grad.abs().max()) > 0 for p in net.phi.parameters())
        assert (net.prototypes.weight.grad is None) == (objective == "l2")
        if objective == "l2":
            assert float(loss.detach()) == pytest.approx(float((x_phi - x_psi).square().mean().detach()), rel=1e-5)
            assert not net.prototypes.weight.requires_grad, "DDP would wait for a gradient"


def test_the_loss_uses_unit_prototypes_and_leaves_them_so(batch):
    net = tiny_mlp_sigma()
    module = Pretraining(net, Optim(1e-3))
    logged = module.loss(batch)
    loss = logged["loss"]
    torch.testing.assert_close(net.prototypes.weight.norm(dim=1), torch.ones(5))
    with torch.no_grad():
        net.prototypes.weight.mul_(3.0)
    torch.testing.assert_close(module.loss(batch)["loss"], loss)
    assert 0 < float(logged["usage_entropy"]) <= 1
    soft = Pretraining(net, Optim(1e-3), assignment="soft")
    assert not torch.allclose(soft.loss(batch)["loss"], loss)


# Collapse


def trained(objective: str, steps: int) -> dict[str, float]:
    """Loss, spread and rank of x_phi on held-out clips after some steps on moving digits."""
    torch.manual_seed(0)
    video = VideoMAE(**(SIZES | CLIP | {"num_frames": 8, "in_channels": 1, "depth": 1}), **DECODER)
    model = SIGMA(video, projection_mlp(2 * 8 * 8, (32,), 16), 16)
    module = Pretraining(model, Optim(3e-3), objective=objective, std=STD)
    clips = DigitsPretraining(train_clips=512, batch_size=16, decoder="none")
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=module.optim.lr)
    loader = clips.train_dataloader()
    batches = [next(iter(loader)) for _ in range(8)]
    for step in range(steps):
        loss = module.loss(batches[step % 8])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x_phi, x_psi = module.features(next(iter(loader)))
        loss = module.feature_loss(x_phi, x_psi)["loss"]
    return {"loss": float(loss), "spread": float(spread(x_phi)), "rank": effective_rank(x_phi)}


def test_feature_regression_collapses_and_sinkhorn_prevents_it():
    before, l2, sinkhorn = trained("l2", 0), trained("l2", 120), trained("sinkhorn", 120)
    assert l2["loss"] < 0.02 * before["loss"]
    assert l2["spread"] < 0.5 * before["spread"]
    assert l2["rank"] < 1 + 0.5 * (before["rank"] - 1)
    assert sinkhorn["spread"] > 3 * l2["spread"]
    assert sinkhorn["rank"] - 1 > 5 * (l2["rank"] - 1)
    assert 0.5 < sinkhorn["loss"] < 2 * math.log(16)


# Training


def test_prototypes_are_decayed_and_frozen_parts_are_not_optimised(dino_folder):
    optim = Optim(1e-3, weight_decay=0.05, no_decay=("mask_token",), total=100)
    module = Pretraining(tiny_dino_sigma(), optim, dino_weights=dino_folder)
    groups = module.configure_optimizers()["optimizer"].param_groups
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert decay[id(module.model.prototypes.weight)] == 0.05
    assert decay[id(module.model.video.mask_token)] == decay[id(module.model.video.decoder.head.bias)] == 0
    assert not any(id(p) in decay for p in module.model.phi.parameters())


def test_linear_probe_trains_the_pooling_norm_and_the_head_alone():
    torch.manual_seed(0)
    sizes = SIZES | CLIP | {"num_frames": 8, "in_channels": 1, "num_classes": 8}
    optim = Optim(1e-2, layer_decay=0.75)
    module = FineTuning(VideoClassifier(**sizes, drop_path=0.2), optim, frozen=True)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    trainer = tiny.quiet(3, limit_val_batches=0)
    trainer.fit(module, datamodule=LabelledDigits(train_clips=40, test_clips=9, batch_size=8))
    changed = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    (optimizer,) = trainer.optimizers
    assert {round(group["initial_lr"], 9) for group in optimizer.param_groups} == {1e-2}, "no layer decay at the top"
    assert all(p.requires_grad for p in FineTuning(VideoClassifier(**sizes), optim).parameters())

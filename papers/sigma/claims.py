"""The claims at a small scale. Each function is one unit: (arm, seed) -> metrics; accuracies in percent.

Arms differ in what the video model predicts of the masked tubes of moving digits: their pixels, the output of a trained
MLP by regression (l2), or the MLP's prototype assignment (sinkhorn: hard targets; soft: distributions). Data order,
masks, learning rate and the video model's initial weights are the same. untrained is not pre-trained.
"""

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from common.eval.linear_probe import logistic_probe
from common.fast.flops import multiply_adds
from common.training.recipe import Optim
from common.training.run import Run, fit, hand_over
from common.worlds.moving_digits import DIRECTIONS, STD, DigitClips
from papers.sigma.collapse import effective_rank, spread, usage_entropy
from papers.sigma.model import SIGMA, sigma_tiny_patch8_32
from papers.sigma.module import Pretraining
from papers.videomae_v2.data import DigitsPretraining
from papers.videomae_v2.masking import DualMasking
from papers.videomae_v2.model import VideoMAE, pretrain_videomae_tiny_patch8_32, true_indices, vit_tiny_patch8_32
from papers.videomae_v2.module import Pretraining as PixelPretraining

OTHER_SEED = 999  # of the batch and masks on which collapse is measured


def adamw(steps: int) -> Optim:
    """The optimizer of all arms: a rate of 2e-3 that warms up over a tenth of `steps` and falls to 0."""
    shape: Any = {"schedule": "cosine", "warmup": int(0.1 * steps), "no_decay": ("mask_token",)}
    return Optim(2e-3, weight_decay=0.05, betas=(0.9, 0.95), **shape)


@dataclass(frozen=True)
class Plan:
    """Optimizer steps of the SIGMA arms, and numbers of clips, of a scale."""

    steps: int
    batch_size: int
    clips: int
    probe_clips: int
    test_clips: int


PLANS = {
    "smoke": Plan(steps=4, batch_size=8, clips=64, probe_clips=64, test_clips=32),
    "cpu": Plan(steps=300, batch_size=32, clips=4000, probe_clips=2000, test_clips=1000),
    "gpu": Plan(steps=20000, batch_size=256, clips=40000, probe_clips=4000, test_clips=4000),
}


def collapse(run: Run) -> dict[str, float]:
    """Claim 1, arms sinkhorn, l2, soft: how far the target features x_phi have collapsed, on a batch of training clips
    under other masks than it was trained with."""
    plan = PLANS[run.scale]
    model, module = sigma(run)
    pretrain(run, plan, module, plan.steps)
    batch = next(iter(clips(plan, OTHER_SEED).train_dataloader()))
    with torch.no_grad():
        x_phi, x_psi = module.features(batch)
        loss = module.feature_loss(x_phi, x_psi)["loss"]
        codes = model.prototypes(x_phi, detach=True).argmax(1)
    return {
        "effective_rank": effective_rank(x_phi),
        "target_spread": float(spread(x_phi)),
        "nearest_usage_entropy": float(usage_entropy(codes, len(model.prototypes.weight))),
        "loss": float(loss),
    } | probe(run, model.video, plan)


def features(run: Run) -> dict[str, float]:
    """Claim 2, arms sinkhorn, pixels, untrained: frozen features. The pixel arm trains for as many multiply-adds."""
    plan = PLANS[run.scale]
    if run.arm == "sinkhorn":
        model, module = sigma(run)
        pretrain(run, plan, module, plan.steps)
        return {"steps": float(plan.steps)} | probe(run, model.video, plan)
    L.seed_everything(run.seed, verbose=False)
    video = pretrain_videomae_tiny_patch8_32()
    steps = 0
    if run.arm == "pixels":
        steps = round(plan.steps * clip_cost(sigma_tiny_patch8_32()) / clip_cost(video))
        pretrain(run, plan, PixelPretraining(video, adamw(steps), std=STD), steps)
    return {"steps": float(steps)} | probe(run, video, plan)


def sigma(run: Run) -> tuple[SIGMA, Pretraining]:
    """The model as every arm of a seed starts, and its training."""
    L.seed_everything(run.seed, verbose=False)
    model = sigma_tiny_patch8_32()
    objective: Any = "l2" if run.arm == "l2" else "sinkhorn"
    assignment: Any = "soft" if run.arm == "soft" else "hard"
    run.settings(objective=objective, assignment=assignment)
    optim = adamw(PLANS[run.scale].steps)
    return model, Pretraining(model, optim, objective=objective, assignment=assignment, std=STD)


def pretrain(run: Run, plan: Plan, module: Pretraining | PixelPretraining, steps: int) -> None:
    """Train in place on moving digits."""
    data = clips(plan, run.seed)
    run.split("train:unlabelled", data.train)
    fit(module, data, run=run, name="pretraining", max_steps=steps)


def clips(plan: Plan, seed: int) -> DigitsPretraining:
    """Moving digits with 75 % of the tubes masked; all masked ones are decoded."""
    return DigitsPretraining(train_clips=plan.clips, batch_size=plan.batch_size, decoder="none", seed=seed)


def clip_cost(model: SIGMA | VideoMAE) -> int:
    """Multiply-adds of the forward pass on one clip: the video model's, and phi's on the masked tubes."""
    video = model.video if isinstance(model, SIGMA) else model
    hidden, _ = DualMasking(video.encoder.grid, encoder_ratio=0.75, decoder="none")(1)
    masked = true_indices(hidden)
    clip = torch.zeros(1, *video.encoder.input_shape)
    cost = multiply_adds(video.reconstruct, clip, true_indices(~hidden), masked)
    if isinstance(model, SIGMA):
        cubes = video.encoder.embed.cubes(clip)[:, : masked.shape[1]]
        cost += multiply_adds(model.phi, cubes)
        cost += 2 * masked.shape[1] * model.prototypes.weight.numel()
    return cost


def probe(run: Run, video: VideoMAE, plan: Plan) -> dict[str, float]:
    """Accuracy of logistic regression on frozen features (mean over all tubes, LayerNorm): the digit's glyph, 10
    classes, and its direction, 8. Test clips show digits drawn by other hands."""
    encoder = vit_tiny_patch8_32(num_classes=len(DIRECTIONS)).eval()
    hand_over(video, encoder, fresh=("fc_norm", "head"))
    labelled = run.split("train:labelled", DigitClips("train", plan.probe_clips, seed=1 + run.seed))
    train, labels = embed(encoder.features, labelled)
    test, truth = embed(encoder.features, run.split("test", DigitClips("test", plan.test_clips)))
    mean, std = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    return {
        f"{name}_top1": logistic_probe((train, labels[name]), (test, truth[name]), c=10.0, max_iter=300).accuracy
        for name in ("glyph", "direction")
    }


@torch.no_grad()
def embed(encode: Any, data: DigitClips) -> tuple[Tensor, dict[str, Tensor]]:
    """Features (N, D) of all clips, and their labels glyph and direction (N,)."""
    video = torch.cat([data[i]["video"] for i in range(len(data))])
    found = torch.cat([encode(part) for part in video.split(250)])
    return found, {"glyph": data.clips.glyph, "direction": data.clips.direction}

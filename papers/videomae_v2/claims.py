"""The claims at a small scale. Each function is one unit: (arm, seed) -> metrics; accuracies in percent.

quality: pre-train on moving digits without labels, fine-tune on labelled ones to name the direction of motion, test on
clips of digits drawn by other hands. Arms differ in the decoder mask alone: same data order, initial weights, learning
rates and fine-tuning.
cost: a full-size ViT-B step with and without the decoder mask, in alternation.
"""

import time
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from common.eval.classification import top_scores
from common.fast.flops import multiply_adds
from common.training.recipe import Optim
from common.training.run import Run, fit, hand_over
from common.worlds.moving_digits import DIRECTIONS, STD, LabelledDigits
from papers.videomae_v2.data import DigitsPretraining
from papers.videomae_v2.masking import DualMasking
from papers.videomae_v2.model import (
    VideoMAE,
    pretrain_videomae_base_patch16_224,
    pretrain_videomae_tiny_patch8_32,
    true_indices,
    vit_tiny_patch8_32,
)
from papers.videomae_v2.module import FineTuning, Pretraining

DECODER = {"encoder_only": "none", "dual": "running_cell", "dual_equal_cost": "running_cell", "random": "random"}


def adamw(steps: int, **options: Any) -> Optim:
    """The claims' optimizer: a rate of 2e-3 that warms up over a tenth of `steps` and falls to 0."""
    return Optim(2e-3, weight_decay=0.05, schedule="cosine", warmup=int(0.1 * steps), **options)


@dataclass(frozen=True)
class Plan:
    """Optimizer steps, batch sizes and numbers of clips of a scale; fine-tuning is repeated on other labelled clips."""

    pretraining_steps: int
    pretraining_clips: int
    fine_tunings: int
    fine_tuning_steps: int
    labelled_clips: int
    test_clips: int
    batch_size: int = 16


PLANS = {
    "smoke": Plan(4, 64, 2, 3, 40, 20, batch_size=8),
    "cpu": Plan(2000, 4000, 4, 40, 96, 500),
    "gpu": Plan(8000, 40000, 4, 200, 96, 2000, batch_size=64),
}


def quality(run: Run) -> dict[str, float]:
    """Arms encoder_only, dual and random differ in what is decoded; dual_equal_cost trains for encoder_only's FLOPs;
    scratch is not pre-trained (it shows that the metric notices pre-training at all)."""
    plan = PLANS[run.scale]
    L.seed_everything(run.seed, verbose=False)
    model = pretrain_videomae_tiny_patch8_32()
    run.settings(decoder=DECODER.get(run.arm))
    metrics = pretrain(run, plan, model) if run.arm != "scratch" else {}
    scores = [fine_tune(run, plan, model, repeat) for repeat in range(plan.fine_tunings)]
    return metrics | {f"direction_{name}": sum(score[name] for score in scores) / len(scores) for name in scores[0]}


def fine_tune(run: Run, plan: Plan, model: VideoMAE, repeat: int) -> dict[str, float]:
    """top1 and top5 on the test clips after fine-tuning on the repeat-th set of labelled clips."""
    seed = 100 * run.seed + repeat
    L.seed_everything(seed, verbose=False)
    classifier = vit_tiny_patch8_32(num_classes=len(DIRECTIONS))
    if run.arm != "scratch":
        hand_over(model, classifier, fresh=("fc_norm", "head"))
    labelled = LabelledDigits(
        train_clips=plan.labelled_clips, test_clips=plan.test_clips, batch_size=2 * plan.batch_size, seed=seed
    )
    run.split(f"train:labelled{repeat}", labelled.train)
    run.split("test", labelled.test)
    steps = plan.fine_tuning_steps
    module = FineTuning(classifier, adamw(steps, layer_decay=0.9))
    fit(module, labelled, run=run, name=f"fine_tuning_{repeat}", max_steps=steps, limit_val_batches=0)
    return test(module, labelled)


def pretrain(run: Run, plan: Plan, model: VideoMAE) -> dict[str, float]:
    """Pre-train in place; returns steps, seconds a step in this process, and GFLOPs (multiply-adds) of a clip."""
    data = DigitsPretraining(
        train_clips=plan.pretraining_clips, batch_size=plan.batch_size, decoder=DECODER[run.arm], seed=run.seed
    )
    run.split("train:unlabelled", data.train)
    gflops = {arm: clip_gflops(model, decoder) for arm, decoder in DECODER.items()}
    steps = plan.pretraining_steps
    if run.arm == "dual_equal_cost":
        steps = round(steps * gflops["encoder_only"] / gflops["dual"])
    module = Pretraining(model, adamw(steps, betas=(0.9, 0.95), no_decay=("mask_token",)), std=STD)
    fit(module, data, run=run, name="pretraining", max_steps=steps)
    return {
        "pretraining_steps": float(steps),
        "clip_gflops": gflops[run.arm],
        "total_tflops": total(steps, plan, gflops[run.arm]),
    }


def total(steps: int, plan: Plan, gflops: float) -> float:
    """Trillions of multiply-adds of all pre-training steps; the backward pass costs twice the forward pass."""
    return 3 * steps * plan.batch_size * gflops / 1000


def clip_gflops(model: VideoMAE, decoder: str) -> float:
    """Billions of multiply-adds of the forward pass on one clip."""
    hidden, decoded = DualMasking(model.encoder.grid, encoder_ratio=0.75, decoder=decoder)(1)
    video = torch.zeros(1, *model.encoder.input_shape)
    return multiply_adds(model.reconstruct, video, true_indices(~hidden), true_indices(decoded)) / 1e9


@torch.no_grad()
def test(module: FineTuning, data: LabelledDigits) -> dict[str, float]:
    """top1 and top5 on the test clips."""
    parts = [(module.model(batch["video"]), batch["label"]) for batch in data.test_dataloader()]
    logits, label = (torch.cat(column) for column in zip(*parts))
    return top_scores(logits, label)


def cost(run: Run) -> dict[str, float]:
    """Forward and backward pass of one 16 x 224 x 224 clip, decoding all hidden cubes against a running half.

    speedup: ratio of the summed times, the two taken in alternation in one process; memory_ratio: ratio of the bytes of
    activations kept for the backward pass; gflops_ratio: ratio of multiply-adds. At smoke scale a small model.
    """
    torch.manual_seed(run.seed)
    small = {"dim": 48, "depth": 1, "num_heads": 3, "mlp_dim": 96, "patch_size": 4, "num_frames": 8, "image_size": 32}
    small |= {"decoder_dim": 32, "decoder_heads": 2, "decoder_mlp_dim": 64, "decoder_depth": 2}
    model = VideoMAE(**small) if run.scale == "smoke" else pretrain_videomae_base_patch16_224()
    module = Pretraining(model, Optim(1e-3))
    batches = {}
    for decoder in ("none", "running_cell"):
        hidden, decoded = DualMasking(model.encoder.grid, decoder=decoder)(1)
        batches[decoder] = {"video": torch.randn(1, *model.encoder.input_shape), "hidden": hidden, "decoded": decoded}
    seconds, kept, gflops = dict.fromkeys(batches, 0.0), {}, {}
    for repeat in range(2 if run.scale == "smoke" else 4):
        for decoder, batch in batches.items():
            begin = time.perf_counter()
            step(module, batch)
            if repeat:  # the first pair warms up
                seconds[decoder] += time.perf_counter() - begin
    for decoder, batch in batches.items():
        kept[decoder] = kept_bytes(module, batch)
        indices = true_indices(~batch["hidden"]), true_indices(batch["decoded"])
        gflops[decoder] = multiply_adds(model.reconstruct, batch["video"], *indices)
    return {
        "speedup": seconds["none"] / seconds["running_cell"],
        "memory_ratio": kept["none"] / kept["running_cell"],
        "gflops_ratio": gflops["none"] / gflops["running_cell"],
    }


def step(module: Pretraining, batch: dict[str, Tensor]) -> None:
    """One forward and backward pass."""
    module.zero_grad()
    module.loss(batch).backward()


def kept_bytes(module: Pretraining, batch: dict[str, Tensor]) -> int:
    """Bytes of the tensors autograd keeps for the backward pass, each storage once, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module.loss(batch)
    del loss
    return sum(storages.values())

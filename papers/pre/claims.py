"""The claims: PRE against CoOp from Base to New classes on a small frozen CLIP, and what a step of each costs.

One unit is one seed. It pre-trains a CLIP (papers/clip), then learns every kind of prompt on that same CLIP, from the
same words, on the same shots in the same order, with the same optimizer and number of steps; for several draws of
classes and shots, over which the metrics are averaged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F

from common.eval.zero_shot import classify
from common.fast.flops import multiply_adds
from common.training.run import Run, fit, sizes
from papers.clip.data import SmallData
from papers.clip.model import CLIP, TextTransformer, small_image_tower
from papers.clip.zero_shot import zero_shot_classifier
from papers.pre.model import PromptedCLIP
from papers.pre.module import PromptTuning, prompt_optim
from papers.pre.prompts import harmonic_mean, prompt_tokens
from papers.pre.tasks import EmojiTask, ShapesTask, SmallTask, pretrain, pretraining_data

KINDS: dict[str, dict[str, Any]] = {  # arguments of PromptedCLIP
    "coop": {"variant": None},
    "pre": {"variant": "lstm1"},
    "no_residual": {"variant": "lstm1", "residual": False},
    "mlp1": {"variant": "mlp1"},
}
LEARNING_RATE = 0.2  # of every kind


@dataclass(frozen=True)
class Plan:
    """Sizes of a scale. draws: tasks (classes, shots) a seed. Of the shapes: size, scenes of the pre-training, and
    test_each, test images a class.
    """

    steps: int
    epochs: int
    draws: int
    shots: int = 16
    size: int = 12_000
    test_each: int = 30


PLANS = {
    "smoke": Plan(steps=4, epochs=2, draws=1, shots=1, size=128, test_each=1),
    "cpu": Plan(steps=1200, epochs=50, draws=2),
}
SHAPES_PLANS = PLANS | {"cpu": Plan(steps=1000, epochs=50, draws=1)}


def on_emoji(run: Run) -> dict[str, float]:
    """Keyword classes of emoji by other vendors than those of pre-training (at smoke scale the shapes stand in)."""
    if run.scale == "smoke":
        return on_shapes(run)
    data = pretraining_data("emoji", run.seed)
    plan = sizes(run, **PLANS)
    return _base_to_new(run, plan, data, lambda seed: EmojiTask(seed=seed, backbone_seed=run.seed, shots=plan.shots))


def on_shapes(run: Run) -> dict[str, float]:
    """Colour and shape under pixel noise that pre-training does not have."""
    plan = sizes(run, **SHAPES_PLANS)
    data = pretraining_data("shapes", run.seed, plan.size)
    task = {"backbone_seed": run.seed, "shots": plan.shots, "pretraining_size": plan.size, "test_each": plan.test_each}
    return _base_to_new(run, plan, data, lambda seed: ShapesTask(seed=seed, **task))


def _base_to_new(run: Run, plan: Plan, data: SmallData, make_task: Callable[[int], SmallTask]) -> dict[str, float]:
    """Base and New accuracy (%) and harmonic mean of the hand-written and of every learned prompt, and the cost of the
    pre-training in 10^9 multiply-adds (a backward pass counts as two forward passes).
    """
    run.split("train", data.train.images)
    clip = pretrain(run, data, plan.steps)
    batch = data.train.__getitems__(list(range(data.batch_size)))
    metrics = {"backbone_multiply_adds_g": 3e-9 * plan.steps * multiply_adds(clip, batch["image"], batch["tokens"])}
    results: dict[str, list[float]] = {}
    for draw in range(plan.draws):
        seed = 100 * run.seed + draw
        task = make_task(seed)
        task.setup("fit")
        run.split(f"train:{draw}", task.train.images)
        run.split(f"test:{draw}", torch.cat([part.images for part in task.tests.values()]))
        task.cache(clip)
        found = {"zero_shot": _zero_shot(clip, task)}
        for kind, arguments in KINDS.items():
            L.seed_everything(seed, verbose=False)
            module = PromptTuning(
                PromptedCLIP(clip, **arguments),
                optim=prompt_optim(LEARNING_RATE),
                words=task.words,
                epochs=plan.epochs,
            )
            steps = plan.epochs * len(task.train_dataloader())
            fit(module, task, run=run, name=f"{kind}-{draw}", max_steps=steps, limit_val_batches=0)
            module.model.prompt.fold()
            found[kind] = _accuracies(module.model, task)
        for kind, (base, new) in found.items():
            for name, value in {"base": base, "new": new, "harmonic_mean": harmonic_mean(base, new)}.items():
                results.setdefault(f"{kind}_{name}", []).append(value)
    return metrics | {name: sum(values) / len(values) for name, values in results.items()}


@torch.no_grad()
def _accuracies(model: PromptedCLIP, task: SmallTask) -> list[float]:
    """Base and New accuracy of a learned prompt, each among its own classes."""
    weights = [
        model.classifier(prompt_tokens(task.tokenizer, names, len(model.prompt), task.words))
        for names in (task.base_names, task.new_names)
    ]
    return [_top1(part.features, w, part.labels) for part, w in zip(task.tests.values(), weights)]


def _zero_shot(clip: CLIP, task: SmallTask) -> list[float]:
    """Base and New accuracy of the hand-written prompt."""
    weights = [
        zero_shot_classifier(clip, task.tokenizer, names, [task.hand_prompt])
        for names in (task.base_names, task.new_names)
    ]
    return [_top1(part.features, w, part.labels) for part, w in zip(task.tests.values(), weights)]


def _top1(features: Any, weights: torch.Tensor, labels: torch.Tensor) -> float:
    return 100 * (classify(features, weights).argmax(dim=1) == labels).double().mean().item()


def step_time(run: Run) -> dict[str, float]:
    """Time of a training step of PRE over one of CoOp, on ViT-B/16's text tower with EuroSAT's five Base classes.

    Steps of the two follow each other in turn and their medians are compared, so that a busy machine slows both. Image
    features are given: with the image tower's share in both, the ratio would be nearer to 1.
    """
    dim, depth, rounds, length = sizes(run, smoke=(64, 1, 3, 8), cpu=(512, 12, 8, 12))
    L.seed_everything(run.seed, verbose=False)
    text = TextTransformer(dim=dim, embed_dim=dim, vocab_size=1000, depth=depth)
    clip = CLIP(small_image_tower(dim), text)
    tokens = torch.randint(1, 998, (5, length))
    tokens[:, -1] = 999
    features, labels = F.normalize(torch.randn(32, dim), dim=1), torch.randint(5, (32,))
    steps = {kind: _timed_step(PromptedCLIP(clip, **KINDS[kind]), tokens, features, labels) for kind in ("coop", "pre")}
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for number in range(rounds + 2):
        for kind, step in steps.items():
            taken = step()
            if number >= 2:  # the first ones allocate
                seconds[kind].append(taken)
    pre, coop = median(seconds["pre"]), median(seconds["coop"])
    return {"step_time_ratio": pre / coop, "pre_ms": 1e3 * pre, "coop_ms": 1e3 * coop}


def _timed_step(
    model: PromptedCLIP, tokens: torch.Tensor, features: torch.Tensor, labels: torch.Tensor
) -> Callable[[], float]:
    """A function that takes one training step and says how long it took."""
    optimizer = torch.optim.SGD(model.prompt.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)

    def step() -> float:
        begin = perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(model.clip.scale * features @ model.classifier(tokens).T, labels)
        loss.backward()
        optimizer.step()
        return perf_counter() - begin

    return step

"""The claims at a small scale. Each function is one unit: (arm, seed) -> metrics, in percent unless said otherwise.

Every arm starts from the same encoder, pre-trained on Omniglot's background characters with labels (the stand-in for
ImageNet-21k; the seed decides weights and order), and meets a stream of classes it has not seen: MNIST's digits, or
Omniglot characters of other alphabets. The seed also shuffles the classes into tasks.
"""

import copy
from dataclasses import dataclass
from typing import Any

import lightning as L
from torch import nn

from common.eval.extract import extract_features
from common.training.run import Run, fit
from papers.nmc_continual.baselines import EWC, FineTuning, LinearHead, ScaleAndShift
from papers.nmc_continual.data import CharacterPretraining, CharacterStream, DigitStream, StreamData
from papers.nmc_continual.model import SmallResNet
from papers.nmc_continual.module import NMC, VARIANTS
from papers.nmc_continual.pretraining import Pretraining

PASSES = (1, 5)
"""The class means pass the data once; a trained arm gets both, and the better of them is its result."""


@dataclass(frozen=True)
class Plan:
    """Sizes of a scale: steps of pre-training (batches of 64), images a digit, characters, images for the Fisher."""

    pretraining_steps: int
    digits: tuple[int, int]
    characters: tuple[int, int]
    fisher_images: int


PLANS = {
    "smoke": Plan(pretraining_steps=2, digits=(16, 8), characters=(2, 2), fisher_images=4),
    "cpu": Plan(pretraining_steps=600, digits=(500, 500), characters=(10, 10), fisher_images=200),
}

LEARNERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "scale_shift": (ScaleAndShift, {"own_task_only": True, "lr": 3e-3}),
    "linear_head": (LinearHead, {"own_task_only": True, "lr": 3e-3}),
    "fine_tuning": (FineTuning, {"own_task_only": True, "lr": 1e-3}),
    "ewc": (EWC, {"own_task_only": True, "lr": 1e-3, "beta": 100.0}),
    "joint": (FineTuning, {"lr": 1e-3}),
}
"""Options of the trained arms, chosen on seeds that no claim uses: see the notes of the README."""


def pretrained(run: Run, share: float = 1.0) -> SmallResNet:
    """The encoder after `share` of the planned steps, on a schedule of that length; share 0: as initialised."""
    steps = round(share * PLANS[run.scale].pretraining_steps)
    L.seed_everything(run.seed, verbose=False)
    module = Pretraining(
        SmallResNet(), num_classes=CharacterPretraining.num_classes, warmup_steps=steps // 20, total_steps=steps
    )
    if steps:
        fit(module, CharacterPretraining(seed=run.seed), run=run, name="pretraining", max_steps=steps)
    return module.backbone.eval()


def digits(run: Run, **options: Any) -> StreamData:
    """MNIST as 5 tasks of 2 digits."""
    data = DigitStream(per_class=PLANS[run.scale].digits, seed=run.seed, **options)
    data.setup()
    return data


def characters(run: Run, **options: Any) -> StreamData:
    """Unseen Omniglot characters, 10 tasks of 10."""
    tasks, each = PLANS[run.scale].characters
    data = CharacterStream(num_tasks=tasks, classes_a_task=each, seed=run.seed, **options)
    data.setup()
    return data


def on_digits(run: Run) -> dict[str, float]:
    """Claim 1: the arm's learner on the digits."""
    return learn(run, pretrained(run), digits)


def on_characters(run: Run) -> dict[str, float]:
    """Claim 2: the arm's learner on the characters."""
    return learn(run, pretrained(run), characters)


def learn(run: Run, encoder: SmallResNet, make: Any) -> dict[str, float]:
    """All metrics of metrics.summarise, and how many passes they took; those of the better number of passes."""
    if run.arm == "nmc":
        return follow(run, NMC, {}, encoder, make(run), "stream") | {"passes": 1.0}
    kind, options = LEARNERS[run.arm]
    if kind is EWC:
        options = options | {"fisher_images": PLANS[run.scale].fisher_images}
    tried = []
    for passes in PASSES:
        data = make(run, epochs=passes, joint=run.arm == "joint")
        found = follow(run, kind, options, encoder, data, f"stream{passes}")
        tried.append(found | {"passes": float(passes)})
    best = max(tried, key=lambda metrics: metrics["final_accuracy"])
    return best | {f"final_accuracy_{int(m['passes'])}": m["final_accuracy"] for m in tried}


def follow(
    run: Run, kind: Any, options: dict[str, Any], encoder: nn.Module, data: StreamData, name: str
) -> dict[str, float]:
    """Stage `name` of the run: a learner on a copy of the encoder, from the first image of the stream to the last."""
    L.seed_everything(run.seed, verbose=False)
    stream = data.stream
    learner = kind(copy.deepcopy(encoder), num_classes=stream.num_classes, num_tasks=len(stream.tasks), **options)
    fit(learner, data, run=run, name=name, max_steps=len(data.batches()))
    return learner.results(stream)


def representation(run: Run) -> dict[str, float]:
    """Claim 3: class means of the digits over an encoder after all ("full"), an eighth ("partly") or none ("random")
    of its pre-training.
    """
    encoder = pretrained(run, {"full": 1.0, "partly": 0.125, "random": 0.0}[run.arm])
    return follow(run, NMC, {}, encoder, digits(run), "stream")


def variants(run: Run) -> dict[str, float]:
    """Claim 4: final accuracy on both streams of the paper's rule and its three variants, on the same features."""
    encoder, metrics = pretrained(run), {}
    for name, data in (("digits", digits(run)), ("characters", characters(run))):
        (x, y), (test_x, test_y) = (
            extract_features(encoder, ((b["image"], b["label"]) for b in data.plain(images, range(len(images)))))
            for images in (data.train_set, data.test_set)
        )
        for variant, kind in VARIANTS.items():
            classifier = kind(x.shape[1], data.stream.num_classes)
            classifier.update(x, y)
            right = classifier.scores(test_x).argmax(dim=1) == test_y
            metrics[f"{name}_{variant}"] = 100 * right.double().mean().item()
    return metrics

"""The claims at a small scale. Each function is one unit: (arm, seed) -> metrics, in percent unless said otherwise.

A unit pre-trains an encoder on Omniglot's background characters with labels (the stand-in for ImageNet-21k; the seed
decides weights and order). All its learners start from copies of it and meet a stream of classes it has not seen:
MNIST's digits, or Omniglot characters of other alphabets. The seed also shuffles the classes into tasks.
"""

import copy
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any

import lightning as L
from torch import nn

from common.eval.extract import extract_features
from common.training.recipe import Optim
from common.training.run import Run, fit
from papers.nmc_continual.baselines import EWC, FineTuning, LinearHead, ScaleAndShift
from papers.nmc_continual.data import CharacterPretraining, CharacterStream, DigitStream, StreamData
from papers.nmc_continual.model import SmallResNet
from papers.nmc_continual.module import NMC, VARIANTS
from papers.nmc_continual.pretraining import Pretraining

PASSES = (1, 5)
"""The class means pass the data once; a trained learner gets both numbers."""


@dataclass(frozen=True)
class Plan:
    """Sizes of a scale: steps of pre-training (batches of 64), training and test images a digit, tasks and characters
    a task, images for the Fisher information.
    """

    pretraining_steps: int
    digits: tuple[int, int]
    characters: tuple[int, int]
    fisher_images: int


PLANS = {
    "smoke": Plan(pretraining_steps=2, digits=(16, 8), characters=(2, 2), fisher_images=4),
    "cpu": Plan(pretraining_steps=500, digits=(200, 300), characters=(10, 10), fisher_images=200),
}


def grid(**choices: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Every combination of the choices."""
    return [dict(zip(choices, values)) for values in product(*choices.values())]


BOTH = (False, True)


def rates(*values: float) -> tuple[Optim, ...]:
    """Adam at these constant rates."""
    return tuple(Optim(lr=value) for value in values)


LEARNERS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "scale_shift": (ScaleAndShift, grid(optim=rates(3e-3, 1e-2), own_task_only=BOTH)),
    "linear_head": (LinearHead, grid(optim=rates(1e-3, 1e-2), own_task_only=BOTH)),
    "fine_tuning": (FineTuning, grid(optim=rates(3e-4, 1e-3), own_task_only=BOTH)),
    "ewc": (EWC, grid(optim=rates(1e-3), beta=(10.0, 1000.0), own_task_only=BOTH)),
    "joint": (FineTuning, grid(optim=rates(3e-4, 1e-3))),
}
"""What a trained learner tries, with each number of passes. Its result is the best of all on the test images
themselves, an advantage that the class means, which have nothing to choose, do not get."""


def pretrained(run: Run, share: float = 1.0) -> SmallResNet:
    """The encoder after `share` of the planned steps, on a schedule of that length; share 0: as initialised."""
    steps = ceil(share * PLANS[run.scale].pretraining_steps)  # of two steps a quarter is one, not none
    L.seed_everything(run.seed, verbose=False)
    encoder = SmallResNet()
    if steps:
        optim = Optim(lr=2e-3, weight_decay=0.05, schedule="cosine", warmup=steps // 20, total=steps)
        module = Pretraining(encoder, num_classes=CharacterPretraining.num_classes, optim=optim)
        data = CharacterPretraining(seed=run.seed)
        data.setup()
        run.split("train:pretraining", data.train)
        fit(module, data, run=run, name="pretraining", max_steps=steps)
    return encoder


def digits(run: Run, **options: Any) -> StreamData:
    """MNIST as 5 tasks of 2 digits."""
    return declared(run, "digits", DigitStream(per_class=PLANS[run.scale].digits, seed=run.seed, **options))


def characters(run: Run, **options: Any) -> StreamData:
    """Unseen Omniglot characters, 10 tasks of 10."""
    tasks, each = PLANS[run.scale].characters
    data = CharacterStream(num_tasks=tasks, classes_a_task=each, seed=run.seed, **options)
    return declared(run, "characters", data)


def declared(run: Run, name: str, data: StreamData) -> StreamData:
    """The stream, set up, its images declared as splits of the run."""
    data.setup()
    run.split(f"train:{name}", data.train_set)
    run.split(f"test:{name}", data.test_set)
    return data


def on_digits(run: Run) -> dict[str, float]:
    """Claim 1: every learner on the digits."""
    return compare(run, pretrained(run), digits, ["nmc", *LEARNERS])


def on_characters(run: Run) -> dict[str, float]:
    """Claim 2: class means and the two learners that keep the encoder frozen, on the characters."""
    return compare(run, pretrained(run), characters, ["nmc", "scale_shift", "linear_head"])


def compare(run: Run, encoder: SmallResNet, make: Any, learners: list[str]) -> dict[str, float]:
    """{learner}_{metric} for the learners' metrics; all of them start from the same encoder."""
    found = {name: learn(run, encoder, make, name) for name in learners}
    return {f"{name}_{metric}": value for name, metrics in found.items() for metric, value in metrics.items()}


def learn(run: Run, encoder: SmallResNet, make: Any, learner: str) -> dict[str, float]:
    """All metrics of metrics.summarise of the learner's best try, the passes of that try, and the best final accuracy
    with each number of passes.
    """
    if learner == "nmc":
        return follow(run, NMC, {}, encoder, make(run), learner) | {"passes": 1.0}
    kind, choices = LEARNERS[learner]
    extra = {"fisher_images": PLANS[run.scale].fisher_images} if kind is EWC else {}
    tried = []
    for passes in PASSES:
        for number, options in enumerate(choices):
            data = make(run, epochs=passes, joint=learner == "joint")
            found = follow(run, kind, options | extra, encoder, data, f"{learner}-{passes}-{number}")
            tried.append(found | {"passes": float(passes)})
    best = max(tried, key=lambda metrics: metrics["final_accuracy"])
    accuracies = {n: [m["final_accuracy"] for m in tried if m["passes"] == n] for n in PASSES}
    return best | {f"final_accuracy_{n}": max(values) for n, values in accuracies.items()}


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
    """Claim 3: class means over an encoder after all ("full"), a quarter ("partly") or none ("random") of its
    pre-training, on the digits and (characters_accuracy) on the characters.
    """
    share = {"full": 1.0, "partly": 0.25, "random": 0.0}[run.arm]
    run.settings(share=share)
    encoder = pretrained(run, share)
    others = follow(run, NMC, {}, encoder, characters(run), "characters")
    on_digits = follow(run, NMC, {}, encoder, digits(run), "digits")
    return on_digits | {"characters_accuracy": others["final_accuracy"]}


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

"""Figures of paper.yaml that are not the parameter count of one module."""

import random
from pathlib import Path
from typing import Any

from papers.pre.data import Item, Splits, base_and_new, few_shot, train_transform
from papers.pre.model import PromptEncoder, Variant
from papers.pre.module import rate
from papers.pre.prompts import harmonic_mean


def encoder(variant: Variant, *, separate: bool = False) -> PromptEncoder:
    """A prompt encoder at the text width of the paper, 512, for four context tokens."""
    return PromptEncoder(variant, 512, 4, separate=separate)


def encoder_multiply_adds(variant: Variant) -> int:
    """Of a prompt encoder on four tokens, once a step whatever the number of classes: every matrix once a token."""
    return 4 * sum(p.numel() for p in encoder(variant).parameters() if p.dim() == 2)


def dropout() -> float:
    """Between the layers of the two-layer BiLSTM."""
    lstm: Any = encoder("lstm2").networks[0]
    return lstm.lstm.dropout


def bottleneck() -> int:
    """Width inside the MLP."""
    network: Any = encoder("mlp1").networks[0]
    return network.mlp.fc1.out_features


def crop_scale() -> tuple[float, float]:
    """Least and largest share of the area that a training crop keeps."""
    steps: Any = train_transform(224)
    return tuple(steps.transforms[0].scale)


def learning_rate(epoch: int) -> float:
    """Of a 1-based epoch of the published schedule."""
    return rate(epoch - 1, lr=0.002, warmup_lr=1e-5, epochs=50)


def _items(classes: int, shots: int) -> list[Item]:
    return [Item(Path(f"{label}/{i}"), label, str(label)) for label in range(classes) for i in range(shots)]


def base_classes(classes: int) -> int:
    """Of a data set with that many classes."""
    items = _items(classes, 1)
    return len(base_and_new(Splits(items, items))[0].train)


def batches(classes: int, shots: int, batch_size: int = 32) -> int:
    """Of an epoch over the Base shots of a data set with that many classes of 100 images."""
    train = few_shot(_items(classes, 100), shots, random.Random(1))
    return len(base_and_new(Splits(train, train))[0].train) // batch_size


def base_test_images(classes: int, each: int) -> int:
    """Of a data set with that many classes of `each` test images."""
    return len(base_and_new(Splits(_items(classes, 1), _items(classes, each)))[0].test)


def harmonic(base: float, new: float) -> float:
    """H of a Base and a New accuracy."""
    return harmonic_mean(base, new)

"""Zero-shot classification by prompts (CLIP, sec. 3.1)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import EncoreError


@torch.no_grad()
def zero_shot_weights(
    encode_text: Callable[[list[str]], Tensor], class_names: Sequence[str], templates: Sequence[str] = ("{}",)
) -> Tensor:
    """Classifier weights (C, D), unit rows: every filled template is encoded and normalised, averaged over templates,
    normalised again. encode_text: list of texts -> (N, D). A template holds ``{}`` where the class name goes.
    """
    bad = [template for template in templates if template.count("{}") != 1]
    if bad or not templates:
        raise EncoreError(f"zero-shot template {bad[0] if bad else ''!r} needs one {{}} for the class name")
    if not class_names:
        raise EncoreError("zero-shot: no class names")
    weights = []
    for name in class_names:
        features = encode_text([template.replace("{}", name) for template in templates])
        weights.append(F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1))
    return torch.stack(weights)


def classify(features: Tensor, weights: Tensor) -> Tensor:
    """Cosine similarity to every class, (N, C); the prediction is its argmax. features: (N, D), weights: (C, D)."""
    return F.normalize(features, dim=-1) @ weights.T

"""Figures that follow from the sizes alone. Called on the meta device by `encore facts`."""

import math

import torch

from papers.sigma import model as models
from papers.sigma.model import DINO, NUM_PROTOTYPES
from papers.videomae_v2.masking import token_counts

GRID = (8, 14, 14)
MASK_RATIO = 0.9


def tokens(which: str) -> int:
    """Tubes of a 16 x 224 x 224 clip: total, visible, or decoded (the masked ones)."""
    with torch.device("cpu"):
        return token_counts(GRID, MASK_RATIO, 0.0)[which]


def dino_tokens(build: str, num_frames: int = 16) -> int:
    """Patch tokens a DINO target gives for a clip."""
    dino: DINO = getattr(models, build)()
    return num_frames // dino.stride * dino.patches


def assigned_tokens(clips: int) -> int:
    """Tubes that one Sinkhorn run spreads over the prototypes, for a batch of `clips` on all devices."""
    return clips * tokens("decoded")


def tokens_per_prototype(clips: int, num_prototypes: int = NUM_PROTOTYPES) -> float:
    """Tubes every prototype gets at equal partition."""
    return assigned_tokens(clips) / num_prototypes


def uniform_loss(num_prototypes: int = NUM_PROTOTYPES) -> float:
    """The loss when all scores are equal: 2 log K."""
    return 2 * math.log(num_prototypes)


def kernel_range(eps: float) -> float:
    """exp(1 / eps), the largest entry of the transport kernel: why it is computed in float32."""
    return math.exp(1 / eps)

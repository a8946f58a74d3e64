"""Figures of paper.yaml that are not the parameter count of one module. All of it works on `meta`."""

import torch

from common.fast.flops import multiply_adds
from papers.clip import model as sizes
from papers.clip.model import CLIP, ModifiedResNet, VisionTransformer


def _build(name: str) -> CLIP:
    with torch.device("meta"):
        return getattr(sizes, name)()


def image_multiply_adds(name: str) -> int:
    """Of one image through the image tower, every token through every block (the forward pass computes less: the last
    block only for the class token).
    """
    tower = _build(name).image
    image = torch.empty(1, 3, tower.image_size, tower.image_size, device="meta")
    if isinstance(tower, ModifiedResNet):
        return multiply_adds(tower, image)
    return multiply_adds(tower.vit.tokens, image) + tower.proj.weight.numel()


def image_multiply_adds_full_pool(name: str) -> int:
    """As image_multiply_adds, were the attention pool computed for all positions as queries and not just for the mean.

    Third-party counts are of an implementation that does so and throws all but the first output away.
    """
    tower = _build(name).image
    assert isinstance(tower, ModifiedResNet)
    others = (tower.image_size // 32) ** 2
    dim = tower.feature_dim
    return image_multiply_adds(name) + others * dim * (dim + tower.embed_dim) + 2 * others * (others + 1) * dim


def text_multiply_adds(name: str) -> int:
    """Of one text of 77 tokens through the text tower, every token through every block (the forward pass stops at the
    end token).
    """
    tower = _build(name).text
    states = torch.empty(1, tower.context_length, tower.positions.shape[1], device="meta")
    return multiply_adds(tower.blocks, states, is_causal=True) + tower.proj.weight.numel()


def text_parameters_without_table(name: str) -> int:
    """The text tower less its token embedding."""
    text = _build(name).text
    return sum(p.numel() for p in text.parameters()) - text.token_embedding.weight.numel()


def initial_scale() -> float:
    """exp(logit_scale) before training."""
    with torch.device("cpu"):
        return CLIP(
            sizes.small_image_tower(8),
            sizes.TextTransformer(dim=64, depth=1, embed_dim=8, vocab_size=8, context_length=4),
        ).scale.item()


def image_tokens(name: str) -> int:
    """Tokens of the image transformer, class token included."""
    tower = _build(name).image
    assert isinstance(tower, VisionTransformer)
    return tower.vit.positions.shape[0]

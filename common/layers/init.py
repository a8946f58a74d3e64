"""Initialisation shared by the text encoders."""

import math

import torch
from torch import nn


def init_weights(root: nn.Module, std: float) -> None:
    """BERT's initialisation: N(0, std) for linear and embedding weights, zero biases, zero padding row."""
    for module in root.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()


def same_gain_std(dim: int, *, std: float = 0.02, at: int = 768) -> float:
    """The standard deviation that gives a linear layer of width `dim` the gain that `std` gives one of width `at`.

    With 0.02 itself a narrow model whispers: attention and feed-forward add next to nothing to their input, and a
    masked language model stays at the frequencies of words for hundreds of steps.
    """
    return std * math.sqrt(at / dim)

"""Exponential moving averages."""

import torch
from torch import Tensor


@torch.no_grad()
def ema_(average: Tensor, value: Tensor, decay: float) -> Tensor:
    """In place: average = decay * average + (1 - decay) * value. Returns average."""
    return average.lerp_(value.to(average.dtype), 1.0 - decay)

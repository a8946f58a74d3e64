"""Relative positions of attention: T5's buckets of distances and their learned bias (Raffel et al. 2020, Sec. 2.1)."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn


def relative_bucket(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """T5-style bucket of distance = key index - query index (int, any shape), in [0, num_buckets).

    Half the buckets belong to each sign; half of those are exact, the rest grow logarithmically up to max_distance.
    """
    side = num_buckets // 2
    exact = side // 2
    size = distance.abs()
    log_share = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    large = (exact + log_share * (side - exact)).long().clamp(max=side - 1)
    return torch.where(size < exact, size, large) + side * (distance > 0)


class RelativeBias(nn.Module):
    """Learned bias per (bucket, head); one table, owned by a stack and shared by all its layers."""

    def __init__(self, num_heads: int, num_buckets: int, max_distance: int) -> None:
        super().__init__()
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.table = nn.Embedding(num_buckets, num_heads)

    def forward(self, positions: Tensor, length: int) -> Tensor:
        """positions: (B, N) token indices in a sequence of `length` tokens -> bias (B, heads, N, N)."""
        distances = torch.arange(1 - length, length, device=positions.device)
        values = self.table(relative_bucket(distances, self.num_buckets, self.max_distance))  # (2 * length - 1, heads)
        offset = positions[:, None, :] - positions[:, :, None] + length - 1
        return rearrange(values[offset], "b i j h -> b h i j")

"""Self-attention over the real tokens of a batch, with the symmetric linear bias of ALiBi."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.fast.packed import Layout


def alibi_slopes(num_heads: int) -> list[float]:
    """One slope a head (Press et al. 2022, Sec. 3): 2^(-8k/h), k = 1..h, where h is a power of two.

    Otherwise the slopes of the power of two below h, then every other one (1st, 3rd, ...) of those of twice that power.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * k / power) for k in range(1, power + 1)]
    if power == num_heads:
        return slopes
    return slopes + alibi_slopes(2 * power)[::2][: num_heads - power]


def alibi(slopes: Tensor, length: int) -> Tensor:
    """The bias -m_h |i - j|: slopes (h,) -> (1, h, length, length).

    Symmetric, for an encoder sees both sides; the causal form m_h j needs a causal mask to mean the same.
    """
    position = torch.arange(length, device=slopes.device)
    return -slopes[:, None, None] * (position[:, None] - position).abs()[None, None]


class Attention(nn.Module):
    """Multi-head self-attention between rows, without attention dropout, which the paper's fused kernel does not have.

    Projections run on rows alone. Queries, keys and values go back to (B, N) for one dense kernel with the bias, and
    its output becomes rows again, as in the released code.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)  # rows of the weight: queries, keys, values, each head after head
        self.out = nn.Linear(dim, dim)

    def forward(self, rows: Tensor, layout: Layout, bias: Tensor, read: Tensor | None = None) -> Tensor:
        """rows: (R, D); bias: additive, broadcastable to (B, h, N, N); read: (Q,) row numbers. Returns (R or Q, D)."""
        qkv = layout.padded(self.qkv(rows)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = layout.rows(F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)).transpose(1, 2).flatten(2))
        return self.out(y if read is None else y.index_select(0, read))


def attention_bias(slopes: Sequence[float] | Tensor, valid: Tensor) -> Tensor:
    """ALiBi, and -inf at keys that are padding. valid: (B, N) bool -> (B, h, N, N), or (1, h, N, N) without padding."""
    bias = alibi(torch.as_tensor(slopes, device=valid.device), valid.shape[1])
    return bias if bool(valid.all()) else bias.masked_fill(~valid[:, None, None], -math.inf)

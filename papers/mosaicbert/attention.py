"""Self-attention over the real tokens of a batch, with the symmetric linear bias of ALiBi."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import EncoreError


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


class Layout:
    """Which places of a (B, N) batch are computed, as rows of a matrix. Without padding nothing is ever copied."""

    def __init__(self, computed: Tensor) -> None:
        """computed: (B, N) bool. EncoreError when a sequence has no token at all."""
        if not bool(computed.any(dim=1).all()):
            row = int((~computed.any(dim=1)).nonzero()[0])
            raise EncoreError(
                f"sequence {row} of the batch has no real token; leave it out, or give it [CLS] and [SEP]"
            )
        self.batch, self.length = computed.shape
        self.places = None if bool(computed.all()) else computed.flatten().nonzero()[:, 0]

    def rows(self, x: Tensor) -> Tensor:
        """(B, N, ...) -> (R, ...): the computed places, sequence after sequence."""
        x = x.flatten(0, 1)
        return x if self.places is None else x.index_select(0, self.places)

    def padded(self, rows: Tensor) -> Tensor:
        """(R, ...) -> (B, N, ...), zeros elsewhere: the inverse of `rows`."""
        if self.places is not None:
            empty = rows.new_zeros(self.batch * self.length, *rows.shape[1:])
            rows = empty.index_copy(0, self.places, rows)
        return rows.unflatten(0, (self.batch, self.length))


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

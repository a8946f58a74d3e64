"""Multi-head attention over torch's scaled_dot_product_attention, with a key/value cache for decoding."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QKVBias = bool | Literal["qv"]


class KVCache:
    """Keys and values of one attention layer while decoding.

    In self-attention new keys and values are appended; in cross-attention they are computed once and reused.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.key is None else self.key.shape[2]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """key, value: (B, heads, M, head_dim). Returns everything seen so far."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)
        self.key, self.value = key, value
        return key, value

    def reorder(self, indices: Tensor) -> None:
        """Keep the batch rows `indices` (B',), in that order: what a beam search needs after each step."""
        if self.key is not None and self.value is not None:
            self.key, self.value = self.key.index_select(0, indices), self.value.index_select(0, indices)


class Attention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, Sec. 3.2).

    Self-attention keeps queries, keys and values in one `qkv` matrix; with `kv_dim` given it is cross-attention,
    with `q`
    for the queries (from x) and `kv` for keys and values (from a context of width kv_dim).

    qkv_bias: True, False, or "qv": queries and values have a bias, keys have none (BEiT, VideoMAE). A key bias moves
    every logit of a query by the same amount, so softmax does not see it.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kv_dim: int | None = None,
        qkv_bias: QKVBias = True,
        out_bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.cross = kv_dim is not None
        if kv_dim is not None:
            self.q = nn.Linear(dim, dim, bias=bool(qkv_bias))
            self.kv = nn.Linear(kv_dim, 2 * dim, bias=bool(qkv_bias))
        else:
            self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias is True)
            if qkv_bias == "qv":
                self.q_bias = nn.Parameter(torch.zeros(dim))
                self.v_bias = nn.Parameter(torch.zeros(dim))
        self.separate_bias = qkv_bias == "qv"
        self.out = nn.Linear(dim, dim, bias=out_bias)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, heads, N, D / heads)"""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _self_qkv(self, x: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        weight = self.qkv.weight
        bias: Tensor | None = self.qkv.bias
        if self.separate_bias:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        if read is None:
            q, k, v = F.linear(x, weight, bias).chunk(3, dim=-1)
        else:
            dim = weight.shape[1]
            q = F.linear(take_tokens(x, read), weight[:dim], None if bias is None else bias[:dim])
            k, v = F.linear(x, weight[dim:], None if bias is None else bias[dim:]).chunk(2, dim=-1)
        return self._heads(q), self._heads(k), self._heads(v)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
        cache: KVCache | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """x: (B, N, D) queries; context: (B, M, kv_dim) for cross-attention. Returns (B, N, D).

        mask: bool (True = may attend) or additive float, broadcastable to (B, heads, N, M).
        is_causal: query i sees keys up to i; with a cache, i counts from the end of what is cached.
        read: (B, Q) positions of x in self-attention: only these are queries, and (B, Q, D) is returned.
        """
        if self.cross:
            q = self._heads(self.q(x))
            if cache is not None and cache.key is not None and cache.value is not None:
                k, v = cache.key, cache.value
            else:
                if context is None:
                    raise ValueError("cross-attention needs a context (or a filled cache)")
                k, v = (self._heads(t) for t in self.kv(context).chunk(2, dim=-1))
                if cache is not None:
                    cache.append(k, v)
        else:
            q, k, v = self._self_qkv(x, read)
            if read is not None and is_causal:
                causal = torch.arange(x.shape[1], device=x.device) <= read[:, None, :, None]
                mask, is_causal = causal if mask is None else combine(mask, causal), False
            if cache is not None:
                past = cache.length
                k, v = cache.append(k, v)
                if is_causal and past:
                    causal = causal_mask(q.shape[2], k.shape[2], x.device)
                    mask = causal if mask is None else combine(mask, causal)
                    is_causal = False
        if is_causal and mask is not None:
            mask, is_causal = combine(mask, causal_mask(q.shape[2], k.shape[2], x.device)), False
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0, is_causal=is_causal
        )
        return self.out(y.transpose(1, 2).flatten(2))


def take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """x: (B, N, D), index: (B, Q) -> (B, Q, D)"""
    return x[torch.arange(x.shape[0], device=x.device)[:, None], index]


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """(queries, keys) bool: the last query sees every key, the one before it all but the last, and so on."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def combine(mask: Tensor, allowed: Tensor) -> Tensor:
    """A mask (bool or additive) that also respects `allowed` (bool)."""
    if mask.dtype == torch.bool:
        return mask & allowed
    return mask.masked_fill(~allowed, float("-inf"))

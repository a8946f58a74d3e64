"""Pre- and post-norm transformer layers, with optional cross-attention, and stacks of them."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from common.layers.attention import Attention, KVCache, QKVBias, take_tokens


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the approximation that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Any] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
}


class DropPath(StochasticDepth):
    """Stochastic depth (Huang et al. 2016): drops a residual branch per sample and rescales the others."""

    def __init__(self, p: float) -> None:
        super().__init__(p, "row")


class MLP(nn.Module):
    """fc1, activation, fc2: the position-wise feed-forward network. (..., D) -> (..., out_dim or D)"""

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        activation: str = "gelu",
        dropout: float = 0.0,
        activation_dropout: float = 0.0,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden, out_dim or dim)
        self.dropout, self.activation_dropout = dropout, activation_dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.act(self.fc1(x)), self.activation_dropout, self.training)
        return F.dropout(self.fc2(x), self.dropout, self.training)


class LayerCache:
    """What one decoder layer remembers between steps: `self_attention` and `cross_attention`."""

    def __init__(self) -> None:
        self.self_attention, self.cross_attention = KVCache(), KVCache()

    def reorder(self, indices: Tensor) -> None:
        self.self_attention.reorder(indices)
        self.cross_attention.reorder(indices)


class TransformerLayer(nn.Module):
    """One transformer layer.

    norm="pre":  x += attn(norm1(x)); [x += cross(norm_cross(x), context)]; x += mlp(norm2(x))
    norm="post": x = norm1(x + attn(x)); [x = norm_cross(x + cross(x, context))]; x = norm2(x + mlp(x))
    cross_dim: width of the context; given, the layer has a cross-attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        norm: Literal["pre", "post"] = "pre",
        activation: str = "gelu",
        eps: float = 1e-5,
        qkv_bias: QKVBias = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        drop_path: float = 0.0,
        cross_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.pre_norm = norm == "pre"
        self.dropout = dropout
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, dropout=attention_dropout)
        if cross_dim is not None:
            self.norm_cross = nn.LayerNorm(dim, eps=eps)
            self.cross = Attention(dim, num_heads, kv_dim=cross_dim, qkv_bias=qkv_bias, dropout=attention_dropout)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim, mlp_dim, activation=activation, activation_dropout=activation_dropout)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def _branch(self, y: Tensor) -> Tensor:
        return self.drop_path(F.dropout(y, self.dropout, self.training))

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        cache: LayerCache | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """x: (B, N, D); context: (B, M, cross_dim); masks as in Attention. Returns (B, N, D).

        read: (B, Q) positions; given, only these are computed and (B, Q, D) is returned.
        """
        self_cache = cache.self_attention if cache else None
        cross_cache = cache.cross_attention if cache else None
        if self.pre_norm:
            y = self.attn(self.norm1(x), mask=mask, is_causal=is_causal, cache=self_cache, read=read)
            x = (x if read is None else take_tokens(x, read)) + self._branch(y)
            if hasattr(self, "cross"):
                x = x + self._branch(self.cross(self.norm_cross(x), context, mask=context_mask, cache=cross_cache))
            return x + self._branch(self.mlp(self.norm2(x)))
        y = self.attn(x, mask=mask, is_causal=is_causal, cache=self_cache, read=read)
        x = self.norm1((x if read is None else take_tokens(x, read)) + self._branch(y))
        if hasattr(self, "cross"):
            x = self.norm_cross(x + self._branch(self.cross(x, context, mask=context_mask, cache=cross_cache)))
        return self.norm2(x + self._branch(self.mlp(x)))


class Transformer(nn.Module):
    """`depth` layers in a row. drop_path grows linearly from 0 at the first layer to its value at the last."""

    def __init__(
        self, depth: int, dim: int, num_heads: int, mlp_dim: int, *, drop_path: float = 0.0, **layer: Any
    ) -> None:
        super().__init__()
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(TransformerLayer(dim, num_heads, mlp_dim, drop_path=r, **layer) for r in rates)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.layers)

    def make_cache(self) -> list[LayerCache]:
        """An empty cache for incremental decoding, one entry a layer."""
        return [LayerCache() for _ in self.layers]

    def forward(
        self, x: Tensor, *, cache: list[LayerCache] | None = None, read: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """x: (B, N, D). Keyword arguments go to every layer (see TransformerLayer).

        read: (B, Q) the positions whose top states are wanted. The last layer computes only those: (B, Q, D).
        """
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x, cache=cache[i] if cache else None, read=read if i == last else None, **kwargs)
        return x

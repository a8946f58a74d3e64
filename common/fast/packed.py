"""No work on padding: a batch of unequal sequences as the rows of its real tokens, and transformer layers over them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import EncoreError
from common.layers.attention import Attention, causal_mask
from common.layers.transformer import LayerCache, Transformer, TransformerLayer


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


class Packing(Layout):
    """A Layout that also says who may attend to whom.

    mask: (B, 1, 1, N) bool, True at computed places, for attention between padded sequences; None without padding.
    """

    def __init__(self, computed: Tensor) -> None:
        super().__init__(computed)
        self.mask = None if self.places is None else computed[:, None, None]
        self._causal: Tensor | None = None

    def causal(self) -> tuple[Tensor | None, bool]:
        """(mask, is_causal) for attention of each token to those up to itself.

        Padding behind a sequence is seen by no token of it, so the causal kernel alone is enough then.
        """
        if self.mask is None or not bool((self.mask[..., 1:] & ~self.mask[..., :-1]).any()):
            return None, True
        if self._causal is None:
            itself = torch.eye(self.length, dtype=torch.bool, device=self.mask.device)  # padding must see something
            self._causal = self.mask & causal_mask(self.length, self.length, self.mask.device) | itself
        return self._causal, False


class PackedLayer(TransformerLayer):
    """A TransformerLayer that also works on rows: same parameters, same numbers, nothing computed for padding.

    Projections, norms and feed-forward run on rows alone. Queries, keys and values go back to (B, N) for one dense
    kernel, and its output becomes rows again.
    """

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
        layout: Packing | None = None,
        context_layout: Packing | None = None,
    ) -> Tensor:
        """Without a layout as TransformerLayer. With one, x: (R, D) rows of `layout`, context: (S, cross_dim) rows of
        `context_layout`; the layouts are the masks, and there is no cache. Returns (R, D).

        read: (Q,) row numbers; given, what lies behind the self-attention is computed for these alone: (Q, D). Not
        beside a context.
        """
        if layout is None:
            return super().forward(
                x, mask=mask, is_causal=is_causal, context=context, context_mask=context_mask, cache=cache, read=read
            )
        kept = x if read is None else x.index_select(0, read)
        if self.pre_norm:
            x = kept + self._attend(self.norm1(x), layout, is_causal, read)
            if context is not None and context_layout is not None:
                x = x + self._attend_across(self.norm_cross(x), layout, context, context_layout)
            return x + self._branch(self.mlp(self.norm2(x)))
        x = self.norm1(kept + self._attend(x, layout, is_causal, read))
        if context is not None and context_layout is not None:
            x = self.norm_cross(x + self._attend_across(x, layout, context, context_layout))
        return self.norm2(x + self._branch(self.mlp(x)))

    def _attend(self, x: Tensor, layout: Packing, is_causal: bool, read: Tensor | None) -> Tensor:
        mask, is_causal = layout.causal() if is_causal else (layout.mask, False)
        q, k, v = layout.padded(self.attn.qkv(x)).chunk(3, dim=-1)
        y = layout.rows(_kernel(self.attn, q, k, v, mask, is_causal))
        return self._branch(self.attn.out(y if read is None else y.index_select(0, read)))

    def _attend_across(self, x: Tensor, layout: Packing, context: Tensor, context_layout: Packing) -> Tensor:
        k, v = context_layout.padded(self.cross.kv(context)).chunk(2, dim=-1)
        y = _kernel(self.cross, layout.padded(self.cross.q(x)), k, v, context_layout.mask, False)
        return self._branch(self.cross.out(layout.rows(y)))


class PackedTransformer(Transformer):
    """`depth` PackedLayers in a row: a Transformer with the same parameters that takes `layout` beside its rows.

    Stochastic depth drops whole sequences, which rows do not know, so there is none; nor separate biases ("qv").
    """

    def __init__(self, depth: int, dim: int, num_heads: int, mlp_dim: int, **layer: Any) -> None:
        if layer.get("drop_path") or layer.get("qkv_bias") == "qv":
            raise ValueError("packed layers have neither drop_path nor separate query and value biases")
        nn.Module.__init__(self)
        self.layers = nn.ModuleList(PackedLayer(dim, num_heads, mlp_dim, **layer) for _ in range(depth))


def pack(blocks: Transformer) -> None:
    """Make a Transformer a PackedTransformer, in place: same parameters, names and numbers. ValueError for layers with
    stochastic depth or separate biases."""
    for layer in blocks.layers:
        if (
            type(layer) is not TransformerLayer
            or layer.attn.separate_bias
            or not isinstance(layer.drop_path, nn.Identity)
        ):
            raise ValueError("packed layers have neither drop_path nor separate query and value biases")
        layer.__class__ = PackedLayer
    blocks.__class__ = PackedTransformer


def _kernel(attn: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Scaled dot-product attention of (B, N, D) to (B, M, D) in attn's heads, without projections: (B, N, D)."""
    q, k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    dropout = attn.dropout if attn.training else 0.0
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
    return y.transpose(1, 2).flatten(2)

"""MosaicBERT: ALiBi instead of positions, gated feed-forward, no work on padding; and BERT as its baseline."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.layers.bert import EPS, INIT_STD, Bert, BertEmbeddings, MLMHead, bert_base
from common.layers.init import init_weights, same_gain_std
from papers.mosaicbert.attention import Attention, Layout, alibi_slopes, attention_bias

VOCAB = 30528


def pad_vocabulary(size: int, multiple: int = 64) -> int:
    """The next multiple of 64: matrix products over it are faster then. 30,522 -> 30,528."""
    return -(-size // multiple) * multiple


class LowPrecisionLayerNorm(nn.LayerNorm):
    """LayerNorm that under autocast is computed in the low precision, its gain and bias too; autocast alone would
    compute it in float32. Without autocast it is LayerNorm."""

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(x)
        low = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return F.layer_norm(x.to(low), self.normalized_shape, self.weight.to(low), self.bias.to(low), self.eps)


class GeGLU(nn.Module):
    """Gated feed-forward (Shazeer 2020): u = W1 x without bias; W2 dropout(gelu(first half of u) * second half) + b."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        activated, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.dropout(F.gelu(activated) * gate, self.dropout, self.training))


class Block(nn.Module):
    """Post-norm: a = norm1(x + dropout(attention(x))), y = norm2(a + GeGLU(a)); no dropout after the GeGLU."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads)
        self.norm1 = LowPrecisionLayerNorm(dim, eps=EPS)
        self.mlp = GeGLU(dim, mlp_dim, dropout)
        self.norm2 = LowPrecisionLayerNorm(dim, eps=EPS)
        self.dropout = dropout

    def forward(self, rows: Tensor, layout: Layout, bias: Tensor, read: Tensor | None = None) -> Tensor:
        """rows: (R, D). read: (Q,) row numbers; given, all behind the attention's kernel is done for these alone."""
        y = F.dropout(self.attn(rows, layout, bias, read), self.dropout, self.training)
        a = self.norm1((rows if read is None else rows.index_select(0, read)) + y)
        return self.norm2(a + self.mlp(a))


class MosaicBert(nn.Module):
    """The encoder. N(0, init_std) weights, zero biases; sequences of any length."""

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.init_std = init_std
        self.config = {
            "vocab_size": vocab_size,
            "dim": dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
            "dropout": dropout,
        }
        self.embeddings = BertEmbeddings(vocab_size, dim, None, dropout=dropout, norm=LowPrecisionLayerNorm)
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_dim, dropout) for _ in range(depth))
        self.slopes: Tensor
        self.register_buffer("slopes", torch.tensor(alibi_slopes(num_heads)), persistent=False)
        init_weights(self, init_std)

    def forward(self, tokens: Tensor, valid: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """tokens, segments: (B, N) ids; valid: (B, N) bool, True at real tokens.

        Returns the last states (B, N, D), zero at padding.
        """
        valid = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid
        layout = Layout(valid)
        return layout.padded(self.states(tokens, layout, attention_bias(self.slopes, valid), segments))

    def states(
        self,
        tokens: Tensor,
        layout: Layout,
        bias: Tensor,
        segments: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """The last states of the layout's rows (R, D); of those alone that `read` (B, N) bool names, (Q, D), if given.

        tokens, segments: (B, N). What is computed is the layout's business, who sees whom the bias's: the layout of all
        places is BERT's padded computation, and one long row with a block-diagonal bias is a packed batch.
        """
        if torch.is_autocast_enabled(tokens.device.type):
            bias = bias.to(torch.get_autocast_dtype(tokens.device.type))  # once, not in every layer
        x = self.embeddings(layout.rows(tokens), None if segments is None else layout.rows(segments))
        wanted = None if read is None else layout.rows(read).nonzero()[:, 0]
        for block in self.blocks[:-1]:
            x = block(x, layout, bias)
        return self.blocks[-1](x, layout, bias, wanted)


Encoder = MosaicBert | Bert


def states_at(encoder: Encoder, read: Tensor, tokens: Tensor, valid: Tensor, segments: Tensor | None = None) -> Tensor:
    """Last states at the places `read` (B, N) bool, place after place: (Q, D).

    BERT computes all places and drops the others; MosaicBERT leaves out padding, and in its last layer all that is not
    read.
    """
    if isinstance(encoder, Bert):
        return encoder(tokens, valid, segments)[read]
    return encoder.states(tokens, Layout(valid), attention_bias(encoder.slopes, valid), segments, read)


class MaskedLM(nn.Module):
    """An encoder with BERT's masked-word head, tied to the word embeddings."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        words = encoder.embeddings.words
        self.head = MLMHead(words.embedding_dim, words.num_embeddings, encoder.init_std)
        if isinstance(encoder, MosaicBert):
            self.head.norm = LowPrecisionLayerNorm(words.embedding_dim, eps=EPS)

    def forward(self, tokens: Tensor, valid: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """tokens, valid: (B, N). Returns logits (B, N, V)."""
        return self.head(self.encoder(tokens, valid, segments), self.encoder.embeddings.words.weight)

    def labelled(self, tokens: Tensor, valid: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (Q, V) at the places with a label >= 0, which alone are computed to the end, and their labels (Q,)."""
        chosen = labels >= 0
        hidden = states_at(self.encoder, chosen, tokens, valid)
        return self.head(hidden, self.encoder.embeddings.words.weight), labels[chosen]

    def loss(self, tokens: Tensor, valid: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy over the labelled places of the whole batch. tokens, valid, labels: (B, N)."""
        return F.cross_entropy(*self.labelled(tokens, valid, labels))


class Classifier(nn.Module):
    """BERT's classifier: the first token's state through dense and tanh (`pooler`), dropout, linear."""

    def __init__(self, encoder: Encoder, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        dim = encoder.embeddings.words.embedding_dim
        self.pooler = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, num_classes)
        self.dropout = dropout
        init_weights(self.pooler, INIT_STD)
        init_weights(self.out, INIT_STD)

    def forward(self, tokens: Tensor, valid: Tensor, segments: Tensor | None = None) -> Tensor:
        """tokens, valid, segments: (B, N). Returns scores (B, classes)."""
        first = torch.zeros_like(valid)
        first[:, 0] = True
        pooled = self.pooler(states_at(self.encoder, first, tokens, valid, segments)).tanh()
        return self.out(F.dropout(pooled, self.dropout, self.training))


def mosaicbert_base(vocab_size: int = VOCAB, mlp_dim: int = 3072, dropout: float = 0.1) -> MosaicBert:
    """12 layers, width 768, 12 heads. The feed-forward keeps BERT's 3072, so the gate adds parameters."""
    return MosaicBert(vocab_size=vocab_size, dim=768, depth=12, num_heads=12, mlp_dim=mlp_dim, dropout=dropout)


def mosaicbert_base_matched(vocab_size: int = VOCAB, dropout: float = 0.1) -> MosaicBert:
    """The base size with the feed-forward at two thirds, 2048: about as many parameters as BERT-Base."""
    return mosaicbert_base(vocab_size, mlp_dim=2048, dropout=dropout)


def mosaicbert_large(vocab_size: int = VOCAB, dropout: float = 0.1) -> MosaicBert:
    """24 layers, width 1024, 16 heads, feed-forward 4096."""
    return MosaicBert(vocab_size=vocab_size, dim=1024, depth=24, num_heads=16, mlp_dim=4096, dropout=dropout)


TINY: dict[str, Any] = {"dim": 96, "depth": 3, "num_heads": 4, "init_std": same_gain_std(96)}


def mosaicbert_tiny(vocab_size: int = 2048, mlp_dim: int = 384, dropout: float = 0.1) -> MosaicBert:
    """3 layers, width 96: the claims' size."""
    return MosaicBert(vocab_size=vocab_size, mlp_dim=mlp_dim, dropout=dropout, **TINY)


def mosaicbert_tiny_matched(vocab_size: int = 2048, dropout: float = 0.1) -> MosaicBert:
    """mosaicbert_tiny with its feed-forward at two thirds."""
    return mosaicbert_tiny(vocab_size, mlp_dim=256, dropout=dropout)


def bert_tiny(vocab_size: int = 2048, dropout: float = 0.1, attention_dropout: float = 0.1) -> Bert:
    """The claims' baseline: as wide and deep as mosaicbert_tiny, with BERT's block and 128 positions."""
    return Bert(
        vocab_size=vocab_size,
        mlp_dim=384,
        max_positions=128,
        dropout=dropout,
        attention_dropout=attention_dropout,
        **TINY,
    )


ENCODERS: dict[str, Any] = {
    "mosaicbert_tiny": mosaicbert_tiny,
    "mosaicbert_tiny_matched": mosaicbert_tiny_matched,
    "mosaicbert_base": mosaicbert_base,
    "mosaicbert_base_matched": mosaicbert_base_matched,
    "mosaicbert_large": mosaicbert_large,
    "bert_tiny": bert_tiny,
    "bert_base": bert_base,
}

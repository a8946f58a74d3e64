"""BERT (Devlin et al. 2019): a post-norm encoder with learned positions and segments, and its masked-word head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import EncoreError
from common.fast.packed import PackedTransformer, Packing, pack
from common.layers.init import init_weights
from common.layers.masks import key_padding_mask
from common.layers.transformer import Transformer

EPS = 1e-12
INIT_STD = 0.02


class BertEmbeddings(nn.Module):
    """Word, position and segment embeddings summed, LayerNorm, dropout. max_positions None: there are no positions."""

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        max_positions: int | None,
        *,
        num_segments: int = 2,
        dropout: float = 0.1,
        pad: int = 0,
        norm: type[nn.LayerNorm] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, dim, padding_idx=pad)
        if max_positions is not None:
            self.positions = nn.Embedding(max_positions, dim)
        self.segments = nn.Embedding(num_segments, dim)
        self.norm = norm(dim, eps=EPS)
        self.dropout = dropout

    def forward(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """tokens: (B, N) ids; segments: (B, N) ids, default all 0. Returns (B, N, D). Without positions any shape."""
        return self.add_positions(self.words(tokens), segments)

    def add_positions(self, vectors: Tensor, segments: Tensor | None = None) -> Tensor:
        """The same for vectors (B, N, D) in the place of word embeddings. EncoreError beyond the last position."""
        if hasattr(self, "positions"):
            length, available = vectors.shape[1], self.positions.num_embeddings
            if length > available:
                raise EncoreError(f"a sequence of {length} tokens, but the model has {available} positions; cut it")
            vectors = vectors + self.positions.weight[:length]
        kind = self.segments.weight[0] if segments is None else self.segments(segments)
        return F.dropout(self.norm(vectors + kind), self.dropout, self.training)


class Bert(nn.Module):
    """Embeddings and post-norm blocks with exact GELU; no pooler. N(0, init_std) weights, zero biases."""

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        max_positions: int = 512,
        num_segments: int = 2,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
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
            "max_positions": max_positions,
            "num_segments": num_segments,
        }
        self.embeddings = BertEmbeddings(vocab_size, dim, max_positions, num_segments=num_segments, dropout=dropout)
        self.blocks = Transformer(
            depth, dim, num_heads, mlp_dim, norm="post", eps=EPS, dropout=dropout, attention_dropout=attention_dropout
        )
        init_weights(self, init_std)

    def forward(
        self,
        tokens: Tensor,
        valid: Tensor | None = None,
        segments: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """tokens: (B, N) ids; valid: (B, N) bool, True at real tokens. Returns the last states (B, N, D).

        read: (B, Q) the positions whose states are wanted, then (B, Q, D) is returned and the last layer computes no
        others.
        """
        mask = None if valid is None else key_padding_mask(valid)
        return self.blocks(self.embeddings(tokens, segments), mask=mask, read=read)


class MLMHead(nn.Module):
    """dense, GELU, LayerNorm, then the word embeddings again as output matrix, and a bias a word."""

    def __init__(self, dim: int, vocab_size: int, init_std: float = INIT_STD) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        init_weights(self, init_std)

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """hidden: (..., D); words: (V, D), the embedding matrix. Returns logits (..., V)."""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), words, self.bias)


class BertMLM(nn.Module):
    """BERT with its masked-word head, tied to the word embeddings."""

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        self.bert = bert
        words = bert.embeddings.words
        self.head = MLMHead(words.embedding_dim, words.num_embeddings, bert.init_std)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)"""
        return self.head(hidden, self.bert.embeddings.words.weight)

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """tokens, valid: (B, N). Returns logits (B, N, V)."""
        return self.logits(self.bert(tokens, valid))

    def loss(self, inputs: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
        """Mean cross entropy at the labelled positions (label >= 0), of which alone logits are computed."""
        chosen = labels >= 0
        return F.cross_entropy(self.logits(self.bert(inputs, valid)[chosen]), labels[chosen])


def packed_states(
    bert: Bert, tokens: Tensor, layout: Packing, segments: Tensor | None = None, read: Tensor | None = None
) -> Tensor:
    """bert's last states at the layout's places alone, (R, D): padding costs nothing. tokens, segments: (B, N) ids.

    read: (Q,) row numbers; given, (Q, D) is returned and the last layer computes no others. bert.blocks is packed
    (common.fast.packed.pack), which its own forward does not notice.
    """
    if not isinstance(bert.blocks, PackedTransformer):
        pack(bert.blocks)
    return bert.blocks(layout.rows(bert.embeddings(tokens, segments)), layout=layout, read=read)


def packed_loss(model: BertMLM, inputs: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """BertMLM.loss without work on padding: labels at padding are not asked for. inputs, labels, valid: (B, N)."""
    layout = Packing(valid)
    wanted = layout.rows(labels)
    chosen = (wanted >= 0).nonzero()[:, 0]
    return F.cross_entropy(model.logits(packed_states(model.bert, inputs, layout, read=chosen)), wanted[chosen])


def bert_base(vocab_size: int = 30522, dropout: float = 0.1, attention_dropout: float = 0.1) -> Bert:
    """12 layers, width 768. With the masked-word head 109,514,298 parameters."""
    return Bert(
        vocab_size=vocab_size,
        dim=768,
        depth=12,
        num_heads=12,
        mlp_dim=3072,
        dropout=dropout,
        attention_dropout=attention_dropout,
    )

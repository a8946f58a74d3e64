"""BART (Sec. 2.1, 3): a post-norm encoder-decoder Transformer with one embedding matrix, and its task heads."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import EncoreError
from common.fast.packed import PackedTransformer, Packing
from common.layers import LayerCache, key_padding_mask
from common.layers.init import init_weights

BOS, PAD, EOS, UNK = 0, 1, 2, 3
POSITION_OFFSET = 2  # the first token uses row 2 of the position table, a relic of fairseq's padding index 1
Cache = list[LayerCache]


def shift_right(target: Tensor) -> Tensor:
    """Decoder input of a target (B, T): everything one step later, `</s>` first. `<s> a b </s>` -> `</s> <s> a b`."""
    return torch.cat([target.new_full((target.shape[0], 1), EOS), target[:, :-1]], dim=1)


class Stack(nn.Module):
    """Learned positions, LayerNorm on the embedding sum, dropout, and post-norm layers; no LayerNorm at the end."""

    def __init__(
        self,
        depth: int,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        max_positions: int,
        *,
        cross: bool,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
    ) -> None:
        super().__init__()
        self.positions = nn.Embedding(max_positions + POSITION_OFFSET, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = dropout
        self.blocks = PackedTransformer(
            depth,
            dim,
            num_heads,
            mlp_dim,
            norm="post",
            dropout=dropout,
            attention_dropout=attention_dropout,
            activation_dropout=activation_dropout,
            cross_dim=dim if cross else None,
        )

    def forward(
        self,
        embedded: Tensor,
        layout: Packing,
        *,
        is_causal: bool = False,
        context: Tensor | None = None,
        context_layout: Packing | None = None,
    ) -> Tensor:
        """embedded: (R, D) embeddings of the real tokens, rows of `layout`; context: (S, D), of `context_layout`.

        Returns (R, D).
        """
        positions = layout.rows(self._positions(0, layout.length).expand(layout.batch, -1, -1))
        x = F.dropout(self.norm(embedded + positions), self.dropout, self.training)
        return self.blocks(x, layout=layout, is_causal=is_causal, context=context, context_layout=context_layout)

    def decode(self, embedded: Tensor, cache: Cache, context: Tensor, context_valid: Tensor) -> Tensor:
        """The next tokens of a causal stack, embedded (B, N, D), after those in `cache`; context: (B, M, D),
        context_valid: (B, M) bool. Returns (B, N, D)."""
        positions = self._positions(cache[0].self_attention.length, embedded.shape[1])
        x = F.dropout(self.norm(embedded + positions), self.dropout, self.training)
        mask = key_padding_mask(context_valid)
        return self.blocks(x, is_causal=True, context=context, context_mask=mask, cache=cache)

    def _positions(self, past: int, length: int) -> Tensor:
        """(length, D), from position `past` on."""
        available = self.positions.num_embeddings - POSITION_OFFSET
        if past + length > available:
            raise EncoreError(f"a sequence of {past + length} tokens, but the model has {available} positions; cut it")
        return self.positions.weight[POSITION_OFFSET + past : POSITION_OFFSET + past + length]


class BART(nn.Module):
    """Encoder, decoder and the embedding they share with the output softmax.

    Padding is read off the token ids (id 1). `depth` layers in the encoder and as many in the decoder.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        max_positions: int = 1024,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        stack = {
            "dim": dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
            "max_positions": max_positions,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "activation_dropout": activation_dropout,
        }
        self.config = {"vocab_size": vocab_size, **stack}
        self.init_std = init_std
        self.tokens = nn.Embedding(vocab_size, dim, padding_idx=PAD)
        self.encoder = Stack(**stack, cross=False)  # type: ignore[arg-type]
        self.decoder = Stack(**stack, cross=True)  # type: ignore[arg-type]
        init_weights(self, init_std)

    def encode(self, source: Tensor) -> Tensor:
        """source: (B, N) ids -> (B, N, D), zeros at padding."""
        layout = Packing(source.ne(PAD))
        return layout.padded(self.encode_rows(source, layout))

    def encode_rows(self, source: Tensor, layout: Packing) -> Tensor:
        """The same at the real tokens alone: source (B, N) ids -> (R, D)."""
        return self.encoder(self.tokens(layout.rows(source)), layout)

    def decode(self, inputs: Tensor, memory: Tensor, valid: Tensor, cache: Cache | None = None) -> Tensor:
        """inputs: (B, T) ids, `</s>` first; memory: (B, N, D); valid: (B, N) bool, True at real source tokens.

        Returns the top states (B, T, D), zeros where inputs are padding. With a cache, inputs are only the tokens it
        has not seen yet.
        """
        if cache is not None:
            return self.decoder.decode(self.tokens(inputs), cache, memory, valid)
        layout, source = Packing(inputs.ne(PAD)), Packing(valid)
        return layout.padded(self.decode_rows(inputs, layout, source.rows(memory), source))

    def decode_rows(self, inputs: Tensor, layout: Packing, memory: Tensor, source: Packing) -> Tensor:
        """Top states at the tokens of `layout`. inputs: (B, T) ids, `</s>` first; memory: (S, D), rows of `source`.
        Returns (R, D)."""
        embedded = self.tokens(layout.rows(inputs))
        return self.decoder(embedded, layout, is_causal=True, context=memory, context_layout=source)

    def forward(self, source: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Top decoder states (B, T, D). Without `inputs` the decoder reads the source itself, shifted (Sec. 3.1)."""
        inputs = shift_right(source) if inputs is None else inputs
        return self.decode(inputs, self.encode(source), source.ne(PAD))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V): the embedding matrix again, no bias and no transform before it."""
        return F.linear(hidden, self.tokens.weight)

    def loss(self, source: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross entropy of the whole target (B, T), not only of what the noise took away. Scalar, nats a token.

        Only real tokens are computed, from embeddings to logits: padding costs neither memory nor time.
        """
        encoded = Packing(source.ne(PAD))
        return self.target_loss(target, self.encode_rows(source, encoded), encoded, label_smoothing=label_smoothing)

    def target_loss(self, target: Tensor, memory: Tensor, source: Packing, *, label_smoothing: float = 0.0) -> Tensor:
        """The decoder's part of `loss`; memory: (S, D), what it attends to, rows of `source`."""
        layout = Packing(target.ne(PAD))
        hidden = self.decode_rows(shift_right(target), layout, memory, source)
        return F.cross_entropy(self.logits(hidden), layout.rows(target), label_smoothing=label_smoothing)


class ClassificationHead(nn.Module):
    """dropout, dense, tanh, dropout, projection. (B, D) -> (B, C)"""

    def __init__(self, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(torch.tanh(self.dense(self.dropout(x)))))


class BARTClassifier(nn.Module):
    """Sequence classification: encoder and decoder read the same text; the decoder's state at the LAST `</s>`, which
    has seen all of it, is classified (Sec. 3.1). num_classes 1 is regression."""

    def __init__(self, bart: BART, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.bart = bart
        self.head = ClassificationHead(bart.tokens.embedding_dim, num_classes, dropout)
        init_weights(self.head, bart.init_std)

    def forward(self, source: Tensor) -> Tensor:
        """source: (B, N) ids, each row with at least one `</s>` -> (B, C)."""
        hidden = self.bart(source)
        return self.head(hidden[torch.arange(len(source), device=source.device), last_eos(source)])


def last_eos(source: Tensor) -> Tensor:
    """(B, N) ids -> (B,) position of the last `</s>` of every row. Raises EncoreError when a row has none."""
    is_eos = source.eq(EOS)
    if not bool(is_eos.any(dim=1).all()):
        raise EncoreError("a row has no </s> token to classify at; end every text with </s> (cut it before, not after)")
    return source.shape[1] - 1 - is_eos.flip(1).int().argmax(dim=1)


class BARTTokenClassifier(nn.Module):
    """Token classification (Sec. 3.2): the decoder's top state of every token is classified.

    With two classes read as start and end of an answer it is the SQuAD model.
    """

    def __init__(self, bart: BART, num_classes: int) -> None:
        super().__init__()
        self.bart = bart
        self.out = nn.Linear(bart.tokens.embedding_dim, num_classes)
        init_weights(self.out, bart.init_std)

    def forward(self, source: Tensor) -> Tensor:
        """source: (B, N) ids -> (B, N, C)."""
        return self.out(self.bart(source))


class BARTTranslator(nn.Module):
    """Translation into the language of BART (Sec. 3.4): a new source encoder takes the place of the encoder's token
    embedding, so all of BART becomes a pre-trained decoder.

    The source encoder is a Stack of its own over a foreign vocabulary; its output gets BART's positions and LayerNorm.
    """

    def __init__(self, bart: BART, source_vocab_size: int, depth: int = 6) -> None:
        super().__init__()
        self.bart = bart
        stack = {k: v for k, v in bart.config.items() if k != "vocab_size"}
        self.source_tokens = nn.Embedding(source_vocab_size, bart.tokens.embedding_dim, padding_idx=PAD)
        self.source_encoder = Stack(**(stack | {"depth": depth}), cross=False)  # type: ignore[arg-type]
        init_weights(self.source_tokens, bart.init_std)
        init_weights(self.source_encoder, bart.init_std)

    def encode(self, source: Tensor) -> Tensor:
        """source: (B, N) foreign ids -> (B, N, D), what BART's decoder attends to."""
        layout = Packing(source.ne(PAD))
        return layout.padded(self.encode_rows(source, layout))

    def encode_rows(self, source: Tensor, layout: Packing) -> Tensor:
        """The same at the real tokens alone: (R, D)."""
        return self.bart.encoder(self.source_encoder(self.source_tokens(layout.rows(source)), layout), layout)

    def forward(self, source: Tensor, inputs: Tensor) -> Tensor:
        """source: (B, N) foreign ids; inputs: (B, T) shifted target ids -> top decoder states (B, T, D)."""
        return self.bart.decode(inputs, self.encode(source), source.ne(PAD))

    def loss(self, source: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """As BART.loss."""
        layout = Packing(source.ne(PAD))
        memory = self.encode_rows(source, layout)
        return self.bart.target_loss(target, memory, layout, label_smoothing=label_smoothing)

    def train_new_parts(self) -> None:
        """Phase one: only the source encoder, BART's positions and the self-attention input projection of its first
        encoder layer learn."""
        self.bart.requires_grad_(False)
        self.bart.encoder.positions.requires_grad_(True)
        self.bart.decoder.positions.requires_grad_(True)
        self.bart.encoder.blocks.layers[0].get_submodule("attn.qkv").requires_grad_(True)

    def train_everything(self) -> None:
        """Phase two: all parameters, for a small number of steps."""
        self.requires_grad_(True)


def set_dropout(root: nn.Module, p: float) -> None:
    """Every dropout in `root` gets probability p (Sec. 5.1 switches it off for the last tenth of pre-training)."""
    for module in root.modules():
        for name in ("p",) if isinstance(module, nn.Dropout) else ("dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, p)


def bart_base(vocab_size: int = 50265, **options: Any) -> BART:
    """6 + 6 layers, width 768."""
    return BART(vocab_size=vocab_size, dim=768, depth=6, num_heads=12, mlp_dim=3072, **options)


def bart_large(vocab_size: int = 50265, **options: Any) -> BART:
    """12 + 12 layers, width 1024."""
    return BART(vocab_size=vocab_size, dim=1024, depth=12, num_heads=16, mlp_dim=4096, **options)


def bart_large_cnn(**options: Any) -> BART:
    """The summarisation checkpoints (CNN/DM, XSum) have no row for `<mask>`: 50,264 entries."""
    return bart_large(50264, **options)


def bart_large_mnli() -> BARTClassifier:
    """Large with the three-class head of the MNLI checkpoint (contradiction, neutral, entailment)."""
    return BARTClassifier(bart_large(), num_classes=3)


def bart_tiny(vocab_size: int = 600, max_positions: int = 64, **options: Any) -> BART:
    """2 + 2 layers, width 96: the size of our small-scale claims (0.6 M parameters with 600 entries).

    init_std grows as the square root of the width shrinks, so that a linear layer keeps the gain it has in large; with
    0.02 the cross-attention of so narrow a model whispers and learns nothing for hundreds of steps.
    """
    return BART(
        vocab_size=vocab_size,
        dim=96,
        depth=2,
        num_heads=4,
        mlp_dim=384,
        max_positions=max_positions,
        init_std=0.02 * (1024 / 96) ** 0.5,
        **options,
    )


def bart_large_translator(source_vocab_size: int = 40000) -> BARTTranslator:
    """Large behind a six-layer source encoder. The size of the foreign vocabulary is ours."""
    return BARTTranslator(bart_large(), source_vocab_size)


class BERTOfEqualDepth(nn.Module):
    """An encoder with as many layers as BART-base has in all and its vocabulary: what Sec. 2.1 compares it with."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50265, 768)
        dropout = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
        self.encoder = Stack(12, 768, 12, 3072, 512, cross=False, **dropout)
        self.transform = nn.Sequential(nn.Linear(768, 768), nn.GELU(), nn.LayerNorm(768))


def parameters_over_bert() -> float:
    """Parameters of BART-base over those of an equally deep BERT with its extra layer before word prediction."""
    bart, bert = (sum(p.numel() for p in m.parameters()) for m in (bart_base(), BERTOfEqualDepth()))
    return bart / bert

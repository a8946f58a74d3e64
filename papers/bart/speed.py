"""BART against the public class, for `encore speed`."""

from pathlib import Path
from typing import Any

from torch import Tensor

from common.fast.packed import Packing
from common.fast.pairs import Side, Size, Subject, documents, save_once
from papers.bart.interop import load
from papers.bart.model import shift_right


def pair(side: Side, folder: Path, size: Size) -> Subject:
    """BART-base's denoising step on documents of 64 to 256 tokens, padded to the longest; small: 2 + 2 layers of width
    96 on 16 to 64 tokens. Inference: the decoder's states at the target's positions, without logits."""
    from transformers import BartConfig, BartForConditionalGeneration

    base = size == "base"
    batch, lengths, vocab = (4, (64, 256), 50265) if base else (32, (16, 64), 600)
    source, target = documents(batch, lengths, vocab, 0.85), documents(batch, lengths, vocab, 1.0)
    inputs = shift_right(target)
    if side == "ours":
        model: Any = load(folder)

        def states() -> Tensor:
            encoded, wanted = Packing(source != 1), Packing(target != 1)
            return model.decode_rows(inputs, wanted, model.encode_rows(source, encoded), encoded)

        return Subject(model, lambda: model.loss(source, target), states)
    width, depth, heads = (768, 6, 12) if base else (96, 2, 4)
    config = BartConfig(
        vocab_size=vocab, d_model=width, encoder_layers=depth, decoder_layers=depth, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width,
        max_position_embeddings=1024 if base else 64, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
    )  # fmt: skip
    peer = BartForConditionalGeneration(config)
    save_once(peer, folder)
    labels = target.masked_fill(target == 1, -100)
    given = {"input_ids": source, "attention_mask": (source != 1).long(), "decoder_input_ids": inputs}
    return Subject(
        peer,
        lambda: peer(**given, labels=labels).loss,
        lambda: peer.model(**given).last_hidden_state[target != 1],
    )

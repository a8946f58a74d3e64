"""MosaicBERT's encoder to use elsewhere, pre-trained or fine-tuned."""

from pathlib import Path
from typing import Self

from torch import Tensor, nn

from common.errors import EncoreError
from common.formats.wordpiece import PAD
from common.interop.checkpoint import Checkpoint
from common.interop.encoder import Encoded, Exported, expect, mean_over
from papers.mosaicbert import interop
from papers.mosaicbert.model import ENCODERS, Classifier, MaskedLM


class MosaicBERTEncoder(Exported):
    """Batches are token ids (B, N) int64: `[CLS]` text `[SEP]`, padding id 0 after it.

    tokens (B, N, D): the last states; pooled (B, D): their mean over what is not padding. The layout is that of the
    released code, which is no class of transformers; the BERT of the comparisons has another.
    """

    model: MaskedLM | Classifier

    @classmethod
    def build(cls, checkpoint: Checkpoint) -> nn.Module:
        name, out = checkpoint.argument("encoder"), checkpoint.state.get("model.out.bias")
        if name not in ENCODERS:
            raise EncoreError(f"{checkpoint.path}: {name!r} is no encoder here, which are {', '.join(ENCODERS)}")
        encoder = ENCODERS[name](checkpoint.argument("vocab_size"))
        return MaskedLM(encoder) if out is None else Classifier(encoder, len(out))

    @classmethod
    def from_hub(cls, directory: str | Path) -> Self:
        expect(directory, "bert")
        return cls(interop.load(directory))

    def to_hub(self, directory: str | Path) -> None:
        interop.save(self.model, directory)

    def encode(self, batch: Tensor) -> Encoded:
        valid = batch.ne(PAD)
        return mean_over(self.model.encoder(batch, valid), valid)


ENCODER = MosaicBERTEncoder

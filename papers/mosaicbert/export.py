"""MosaicBERT's encoder to use elsewhere, pre-trained or fine-tuned."""

from pathlib import Path
from typing import Self

from torch import Tensor

from common.errors import EncoreError
from common.formats.wordpiece import PAD
from common.interop import check_and_load
from common.interop.checkpoint import Checkpoint
from common.interop.encoder import Encoded, Encoder, expect, mean_over
from papers.mosaicbert import interop
from papers.mosaicbert.model import ENCODERS, Classifier, MaskedLM


class MosaicBERTEncoder(Encoder):
    """Batches are token ids (B, N) int64: `[CLS]` text `[SEP]`, padding id 0 after it.

    tokens (B, N, D): the last states; pooled (B, D): their mean over what is not padding. The layout is that of the
    released code, which is no class of transformers; the BERT of the comparisons has another.
    """

    def __init__(self, model: MaskedLM | Classifier) -> None:
        super().__init__()
        self.model: MaskedLM | Classifier = model

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        name, state = checkpoint.argument("encoder"), checkpoint.part("model.")
        if name not in ENCODERS:
            raise EncoreError(f"{checkpoint.path}: {name!r} is no encoder here, which are {', '.join(ENCODERS)}")
        encoder = ENCODERS[name](checkpoint.argument("vocab_size"))
        model = Classifier(encoder, len(state["out.bias"])) if "out.bias" in state else MaskedLM(encoder)
        check_and_load(model, state, checkpoint.path)
        return cls(model)

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

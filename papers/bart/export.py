"""BART's encoder to use elsewhere."""

from pathlib import Path
from typing import ClassVar, Self

from torch import Tensor

from common.interop.encoder import Encoded, Exported, expect, mean_over
from papers.bart import interop
from papers.bart.model import BART, PAD


class BARTEncoder(Exported):
    """Batches are token ids (B, N) int64, `<s> ... </s>` and padding id 1 after it.

    tokens (B, N, D): the encoder's top states. pooled (B, D): their mean over what is not padding.
    """

    model: BART
    within: ClassVar[str] = "papers.bart.model"
    prefixes: ClassVar[tuple[str, ...]] = ("model.bart.", "model.")  # of BART in a module with a head, and without

    @classmethod
    def from_hub(cls, directory: str | Path) -> Self:
        expect(directory, "bart")
        model = interop.load(directory)
        return cls(model if isinstance(model, BART) else model.bart)

    def to_hub(self, directory: str | Path) -> None:
        interop.save(self.model, directory)

    def encode(self, batch: Tensor) -> Encoded:
        return mean_over(self.model.encode(batch), batch.ne(PAD))


ENCODER = BARTEncoder

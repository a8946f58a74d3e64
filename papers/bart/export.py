"""BART's encoder to use elsewhere."""

from pathlib import Path
from typing import ClassVar, Self

from torch import Tensor

from common.errors import EncoreError
from common.interop import check_and_load
from common.interop.checkpoint import Checkpoint
from common.interop.encoder import Encoded, Encoder, expect, mean_over
from papers.bart import interop
from papers.bart.model import BART, PAD, bart_base, bart_large, bart_tiny

SIZES = {"tiny": bart_tiny, "base": bart_base, "large": bart_large}


class BARTEncoder(Encoder):
    """Batches are token ids (B, N) int64, `<s> ... </s>` and padding id 1 after it.

    tokens (B, N, D): the encoder's top states. pooled (B, D): their mean over what is not padding.
    """

    prefixes: ClassVar[tuple[str, ...]] = (
        "model.bart.",
        "model.",
    )  # of BART in a module with a head, and in one without

    def __init__(self, model: BART) -> None:
        super().__init__()
        self.model: BART = model

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        size = checkpoint.argument("size")
        if size not in SIZES:
            raise EncoreError(f"{checkpoint.path}: {size!r} is no size of BART, which are {', '.join(SIZES)}")
        model = SIZES[size](
            checkpoint.argument("vocab_size"),
            **{k: v for k, v in checkpoint.arguments.items() if k in ("dropout", "attention_dropout", "max_positions")},
        )
        prefix = next((p for p in cls.prefixes if any(n.startswith(p) for n in checkpoint.state)), cls.prefixes[-1])
        check_and_load(model, checkpoint.part(prefix), checkpoint.path)
        return cls(model)

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

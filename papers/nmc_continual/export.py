"""The ViT of a continual learner to use elsewhere, as it came or as the stream left it."""

from pathlib import Path
from typing import Self

from torch import Tensor

from common.errors import EncoreError
from common.interop import check_and_load
from common.interop.checkpoint import Checkpoint
from common.interop.encoder import Encoded, Encoder, expect
from papers.nmc_continual import interop
from papers.nmc_continual.model import FrozenViT


class NMCEncoder(Encoder):
    """Batches are images (B, 3, S, S) float, prepared as `papers.nmc_continual.data.preprocessing` does for the stream.

    tokens (B, 1 + N, D): class token and patches after the last LayerNorm; pooled (B, D): the class token.
    """

    def __init__(self, model: FrozenViT) -> None:
        super().__init__()
        self.model: FrozenViT = model

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        model = checkpoint.built("backbone", "papers.nmc_continual.model")
        if not isinstance(model, FrozenViT):
            raise EncoreError(f"{checkpoint.path}: only a ViT can be exported, this is a {type(model).__name__}")
        check_and_load(model, checkpoint.part("backbone."), checkpoint.path)
        return cls(model)

    @classmethod
    def from_hub(cls, directory: str | Path) -> Self:
        expect(directory, "vit")
        return cls(interop.from_hub(directory))

    def to_hub(self, directory: str | Path) -> None:
        interop.to_hub(self.model, directory)

    def encode(self, batch: Tensor) -> Encoded:
        tokens = self.model.norm(self.model.tokens(batch))
        return Encoded(tokens, tokens[:, 0])


ENCODER = NMCEncoder

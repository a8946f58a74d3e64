"""The ViT of a continual learner to use elsewhere, as it came or as the stream left it."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.interop import vit
from common.interop.encoder import Encoded, Exported
from papers.nmc_continual import interop
from papers.nmc_continual.model import FrozenViT


class NMCEncoder(Exported):
    """Batches are images (B, 3, S, S) float, prepared as `papers.nmc_continual.data.preprocessing` does for the stream.

    tokens (B, 1 + N, D): class token and patches after the last LayerNorm; pooled (B, D): the class token.
    """

    model_types = ("vit",)
    within = "papers.nmc_continual.model"
    argument = "backbone"
    prefixes = ("backbone.",)
    layout = vit.HUB
    model_class = FrozenViT
    model: FrozenViT

    @classmethod
    def from_config(cls, config: dict[str, Any], directory: str | Path) -> nn.Module:
        return interop.from_config(config, directory)

    def config(self) -> dict[str, Any]:
        return vit.config_of(self.model)

    def encode(self, batch: Tensor) -> Encoded:
        tokens = self.model.norm(self.model.tokens(batch))
        return Encoded(tokens, tokens[:, 0])


ENCODER = NMCEncoder

"""TERA's encoder to use elsewhere. The directory holds the tensors of s3prl's "Transformer" under its names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from common.errors import EncoreError
from common.formats.audio import load_audio
from common.formats.speech import pad
from common.interop.checkpoint import Checkpoint
from common.interop.encoder import Encoded, Exported, mean_over
from papers.tera import interop
from papers.tera import model as tera
from papers.tera.features import DIMENSIONS, SAMPLE_RATE, Kind, extract

SIZES = ("input_dim", "dim", "depth", "num_heads", "mlp_dim", "dropout")
LONGEST = 600  # seconds of one file


class TERAEncoder(Exported):
    """Batches are frames (B, L, F) float of the kind it was trained on, CMVN-normalised; where utterances were padded
    to one length, {"features": (B, L, F), "lengths": (B,) frames of each}.

    tokens (B, L, D): the last layer, in chunks of at most 1,500 frames as in the released extractor; pooled (B, D):
    their mean without padding.
    """

    kind = "audio"
    model_types = ("tera",)
    prefixes = ("model.encoder.",)
    layout = interop.LAYOUT
    model: tera.Encoder

    @classmethod
    def build(cls, checkpoint: Checkpoint) -> tera.Encoder:
        return tera.Encoder(**(checkpoint.argument("encoder") or {}))

    @classmethod
    def from_config(cls, config: dict[str, Any], directory: str | Path) -> tera.Encoder:
        return tera.Encoder(**{name: config[name] for name in SIZES})

    def config(self) -> dict[str, Any]:
        return interop.encoder_sizes(self.model)

    def encode(self, batch: Tensor | dict[str, Tensor]) -> Encoded:
        padded = batch if isinstance(batch, dict) else {"features": batch}
        features, lengths = padded["features"], padded.get("lengths")
        tokens = torch.cat([self.model(*chunk) for chunk in self.model.chunks(features, lengths)], dim=1)
        if lengths is None:
            return mean_over(tokens)
        return mean_over(tokens, torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None])

    def read(self, path: str | Path) -> Tensor:
        """An audio file -> (L, F): mono at 16 kHz, the front end that the input's width tells, normalised."""
        kind = next((kind for kind in get_args(Kind) if DIMENSIONS[kind] == self.model.input_dim), None)
        if kind is None:
            raise EncoreError(
                f"this TERA reads features of {self.model.input_dim} columns that no front end here makes"
            )
        return extract(load_audio(path, SAMPLE_RATE, longest=LONGEST)[0], kind, str(path))

    def collate(self, items: Sequence[Tensor]) -> dict[str, Tensor]:
        features, lengths = pad(items)
        return {"features": features, "lengths": lengths}


ENCODER = TERAEncoder

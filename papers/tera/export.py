"""TERA's encoder to use elsewhere. The directory holds the tensors of s3prl's "Transformer" under its names."""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from common.interop import check_and_load, load_weights, save_weights
from common.interop.checkpoint import Checkpoint
from common.interop.encoder import Encoded, Encoder, expect, mean_over
from papers.tera import interop
from papers.tera import model as tera

MODEL_TYPE = "tera"
SIZES = ("input_dim", "dim", "depth", "num_heads", "mlp_dim", "dropout")


class TERAEncoder(Encoder):
    """Batches are frames (B, L, F) float of the kind it was trained on, CMVN-normalised; where utterances were padded
    to one length, {"features": (B, L, F), "lengths": (B,) frames of each}.

    tokens (B, L, D): the last layer, in chunks of at most 1,500 frames as in the released extractor; pooled (B, D):
    their mean without padding.
    """

    def __init__(self, model: tera.Encoder) -> None:
        super().__init__()
        self.model: tera.Encoder = model

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        model = tera.Encoder(**(checkpoint.argument("encoder") or {}))
        check_and_load(model, checkpoint.part("model.encoder."), checkpoint.path)
        return cls(model)

    @classmethod
    def from_hub(cls, directory: str | Path) -> Self:
        config = expect(directory, MODEL_TYPE)
        model = tera.Encoder(**{name: config[name] for name in SIZES})
        state = interop.encoder_from_released(load_weights(directory), config["depth"])
        check_and_load(model, state, directory)
        return cls(model)

    def to_hub(self, directory: str | Path) -> None:
        sizes = interop.encoder_sizes(self.model)
        state = interop.encoder_to_released(self.model.state_dict(), sizes["depth"])
        save_weights(directory, state, {"model_type": MODEL_TYPE, **sizes})

    def encode(self, batch: Tensor | dict[str, Tensor]) -> Encoded:
        padded = batch if isinstance(batch, dict) else {"features": batch}
        features, lengths = padded["features"], padded.get("lengths")
        tokens = self.model.extract(features, lengths)[-1]
        if lengths is None:
            return mean_over(tokens)
        return mean_over(tokens, torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None])


ENCODER = TERAEncoder

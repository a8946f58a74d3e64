"""SIGMA's video encoder to use elsewhere: a VideoMAE, whose decoder loses the head that predicted phi's features."""

from typing import Self

from torch import nn

from common.errors import EncoreError
from common.interop.checkpoint import Checkpoint
from papers.sigma.model import SIGMA
from papers.videomae_v2.export import VideoMAEEncoder


class SIGMAEncoder(VideoMAEEncoder):
    """Batches are video (B, C, T, H, W), tokens (B, N, D), pooled (B, D), as for VideoMAE V2.

    Only the encoder is of use: the decoder in the directory ends in a head of zeros.
    """

    within = "papers.sigma.model"

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        model = super().from_checkpoint(checkpoint).model
        if not isinstance(model, SIGMA):
            raise EncoreError(f"{checkpoint.path}: holds a {type(model).__name__}, not a SIGMA in pre-training")
        video, embed = model.video, model.video.encoder.embed
        pixels = embed.proj.in_channels * embed.tubelet_size[0] * embed.tubelet_size[1] ** 2
        video.decoder.head = nn.Linear(video.decoder.head.in_features, pixels)
        nn.init.zeros_(video.decoder.head.weight)
        nn.init.zeros_(video.decoder.head.bias)
        return cls(video)


ENCODER = SIGMAEncoder

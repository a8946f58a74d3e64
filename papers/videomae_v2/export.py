"""VideoMAE V2's encoder to use elsewhere, pre-trained or fine-tuned."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.errors import EncoreError
from common.formats.video_clips import Entry, Views
from common.interop.encoder import Encoded, Exported, mean_over
from papers.videomae_v2 import interop
from papers.videomae_v2.model import VideoClassifier, VideoMAE


class VideoMAEEncoder(Exported):
    """Batches are video (B, C, T, H, W) float of the model's own size, standardised as in its training: with ImageNet's
    mean and standard deviation, as `read` does, unless the configuration says otherwise.

    tokens (B, N, D): all cubes, time-major; pooled (B, D): their mean, after a fine-tuned model's LayerNorm.
    """

    kind = "videos"
    model_types = ("videomae",)
    within = "papers.videomae_v2.model"
    layout = interop.HUB
    model: VideoMAE | VideoClassifier

    @classmethod
    def from_config(cls, config: dict[str, Any], directory: str | Path) -> nn.Module:
        return interop.from_config(config)

    def config(self) -> dict[str, Any]:
        return interop.hub_config(self.model)

    def encode(self, batch: Tensor) -> Encoded:
        tokens, pooled = mean_over(self.model.encoder(batch))
        return Encoded(tokens, self.model.fc_norm(pooled) if isinstance(self.model, VideoClassifier) else pooled)

    def read(self, path: str | Path) -> Tensor:
        """A video file -> (3, T, H, W): every fourth frame of the middle, short side to H, central square."""
        channels, frames, size, _ = self.model.encoder.input_shape
        if channels != 3:
            raise EncoreError(f"{path}: the model takes {channels} channels, a video file has 3")
        return Views([Entry(Path(path))], kind="strided", frames=frames, stride=4, size=size)[0]["video"][0]


ENCODER = VideoMAEEncoder

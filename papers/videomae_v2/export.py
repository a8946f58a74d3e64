"""VideoMAE V2's encoder to use elsewhere, pre-trained or fine-tuned."""

from pathlib import Path
from typing import Self

from torch import Tensor

from common.errors import EncoreError
from common.interop import check_and_load
from common.interop.checkpoint import Checkpoint
from common.interop.encoder import Encoded, Encoder, expect, mean_over
from papers.videomae_v2 import interop
from papers.videomae_v2.model import VideoClassifier, VideoMAE


class VideoMAEEncoder(Encoder):
    """Batches are video (B, C, T, H, W) float of the model's own size, standardised as in its training: with ImageNet's
    mean and standard deviation, as `read` does, unless the configuration says otherwise.

    tokens (B, N, D): all cubes, time-major; pooled (B, D): their mean, after a fine-tuned model's LayerNorm.
    """

    kind = "videos"

    def __init__(self, model: VideoMAE | VideoClassifier) -> None:
        super().__init__()
        self.model: VideoMAE | VideoClassifier = model

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        model = checkpoint.built("model", "papers.videomae_v2.model")
        check_and_load(model, checkpoint.part("model."), checkpoint.path)
        return cls(model)

    @classmethod
    def from_hub(cls, directory: str | Path) -> Self:
        classifier = "VideoMAEForVideoClassification" in expect(directory, "videomae").get("architectures", [])
        return cls(interop.classifier_from_hub(directory) if classifier else interop.from_hub(directory))

    def to_hub(self, directory: str | Path) -> None:
        interop.to_hub(self.model, directory)

    def encode(self, batch: Tensor) -> Encoded:
        tokens, pooled = mean_over(self.model.encoder(batch))
        return Encoded(tokens, self.model.fc_norm(pooled) if isinstance(self.model, VideoClassifier) else pooled)

    def read(self, path: str | Path) -> Tensor:
        """A video file -> (3, T, H, W): every fourth frame of the middle, short side to H, central square."""
        from papers.videomae_v2.data import Views
        from papers.videomae_v2.video_lists import Entry

        channels, frames, size, _ = self.model.encoder.input_shape
        if channels != 3:
            raise EncoreError(f"{path}: the model takes {channels} channels, a video file has 3")
        entry = Entry(Path(path), 0, -1)
        views = Views([entry], num_frames=frames, stride=4, image_size=size, clips=1, crops=1, uniform=False)
        return views[0]["video"][0]


ENCODER = VideoMAEEncoder

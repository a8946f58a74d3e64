"""What follows pre-training: fine-tuning and the frozen linear probe (the protocols of the paper's benchmark I)."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from common.interop import check_and_load
from papers.videomae_v2 import module as videomae_v2
from papers.videomae_v2.model import VideoClassifier, VideoEncoder, encoder_weights
from papers.videomae_v2.stages import NEW_AFTER_PRETRAINING, stage_weights

State = dict[str, Tensor]
DROPPED = re.compile(r"(phi|prototypes|head\.\d)")


def video_weights(path: Path) -> State:
    """State dict of the video model or classifier in `path`; phi and the prototypes are left behind.

    path: a training checkpoint of this room, a released SIGMA .pth, or a hub VideoMAE directory.
    """
    state = {name.removeprefix("video."): value for name, value in stage_weights(path).items()}
    return {name: value for name, value in state.items() if not DROPPED.match(name)}


def load_encoder(encoder: VideoEncoder, path: str | Path) -> None:
    """Give a pre-trained encoder, its last norm included, to `encoder`."""
    state = video_weights(Path(path))
    own = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    check_and_load(encoder, own, path)


def start_from(model: VideoClassifier, path: Path) -> None:
    """The encoder in `path` becomes the classifier's; fc_norm and head stay as initialised unless `path` has them."""
    own = {name: value for name, value in model.state_dict().items() if name.startswith(NEW_AFTER_PRETRAINING)}
    check_and_load(model, own | encoder_weights(video_weights(path)), path)


class FineTuning(videomae_v2.FineTuning):
    """VideoMAE's fine-tuning, from the encoder in `weights` (see video_weights). Options: those of the parent class."""

    def __init__(self, model: VideoClassifier, *, weights: str | None = None, **options: Any) -> None:
        super().__init__(model, **options)
        if weights is not None:
            start_from(model, Path(weights))


class LinearProbe(FineTuning):
    """FineTuning with everything frozen but the pooling norm's gain and bias and the head."""

    def __init__(self, model: VideoClassifier, *, weights: str | None = None, **options: Any) -> None:
        super().__init__(model, weights=weights, **options)
        model.encoder.requires_grad_(False)

"""What follows pre-training: fine-tuning and the frozen linear probe (the protocols of the paper's benchmark I)."""

from pathlib import Path
from typing import Any

from common.interop.weights import State
from common.training.recipe import Optim
from papers.sigma.interop import video_weights
from papers.videomae_v2 import module as videomae_v2
from papers.videomae_v2.model import VideoClassifier


class FineTuning(videomae_v2.FineTuning):
    """VideoMAE's fine-tuning, from the encoder in `weights` (see video_weights). Options: those of the parent class.

    frozen: the linear probe, where only the pooling norm's gain and bias and the head are trained.
    """

    def __init__(self, model: VideoClassifier, optim: Optim, *, frozen: bool = False, **options: Any) -> None:
        super().__init__(model, optim, **options)
        if frozen:
            model.encoder.requires_grad_(False)

    def read_weights(self, path: Path) -> State:
        return video_weights(path)

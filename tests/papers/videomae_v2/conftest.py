"""Tiny models of VideoMAE V2 whose every weight, biases and norms too, is random: a dropped or swapped one shows."""

import pytest
import torch

from papers.videomae_v2.masking import DualMasking
from papers.videomae_v2.model import VideoClassifier, VideoMAE
from tests import tiny

SIZES = {"dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40, "patch_size": 4, "num_frames": 8, "image_size": 16}
DECODER = {"decoder_dim": 16, "decoder_heads": 2, "decoder_mlp_dim": 28, "decoder_depth": 2}
GRID = (4, 4, 4)


@pytest.fixture(scope="module")
def mae() -> VideoMAE:
    return tiny.randomise(VideoMAE(**SIZES, **DECODER), std=0.3)


@pytest.fixture(scope="module")
def classifier() -> VideoClassifier:
    return tiny.randomise(VideoClassifier(**SIZES, num_classes=5), std=0.3)


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    hidden, decoded = DualMasking(GRID, encoder_ratio=0.75)(3)
    return {"video": torch.randn(3, 3, 8, 16, 16), "hidden": hidden, "decoded": decoded}

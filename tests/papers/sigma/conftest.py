"""Tiny models of SIGMA whose every weight, biases and norms too, is random: a dropped or swapped one shows."""

import pytest
import torch

from papers.sigma import interop
from papers.sigma.model import DINO, SIGMA, projection_mlp
from papers.videomae_v2.masking import DualMasking
from papers.videomae_v2.model import VideoMAE
from tests import tiny
from tests.papers.videomae_v2.conftest import DECODER, GRID, SIZES

CUBE = 2 * 4 * 4 * 3


def tiny_dino(**changes) -> DINO:
    return DINO(**({"image_size": 16, "patch_size": 4, "dim": 12, "depth": 2, "num_heads": 2} | changes))


def tiny_mlp_sigma(num_prototypes: int = 5) -> SIGMA:
    return tiny.randomise(
        SIGMA(VideoMAE(**SIZES, **DECODER), projection_mlp(CUBE, (20, 18), 10), num_prototypes), std=0.3
    )


def tiny_dino_sigma() -> SIGMA:
    return tiny.randomise(SIGMA(VideoMAE(**SIZES, **DECODER), tiny_dino(), 5), std=0.3)


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("dino")
    interop.save_dino(tiny.randomise(tiny_dino()), folder)
    return str(folder)


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    hidden, _ = DualMasking(GRID, encoder_ratio=0.75, decoder="none")(3)
    return {"video": torch.randn(3, 3, 8, 16, 16), "hidden": hidden}

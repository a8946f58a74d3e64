"""Gallery: moving digits, what the encoder sees of them, and what the decoder makes of the rest."""

from pathlib import Path

import lightning as L
import torch
from einops import rearrange
from torch import Tensor

from common.gallery import Gallery, Pictures, film
from common.training.run import Run
from common.worlds.moving_digits import MEAN, STD, DigitClips
from papers.videomae_v2.claims import PLANS, pretrain
from papers.videomae_v2.masking import DualMasking
from papers.videomae_v2.model import VideoMAE, pretrain_videomae_tiny_patch8_32

PLAN, SHOWN = PLANS["cpu"], 3


def gallery(folder: Path, seed: int = 0) -> Gallery:
    """Clips of the test digits: original, masked, reconstructed, one frame of every pair."""
    L.seed_everything(seed, verbose=False)
    model = pretrain_videomae_tiny_patch8_32()
    pretrain(Run("videomae_v2", "gallery", "dual", seed, "cpu", folder), PLAN, model)
    clips = DigitClips("test", SHOWN)
    L.seed_everything(seed, verbose=False)
    items = [_item(model, clips[index]["video"], index) for index in range(SHOWN)]
    trained = (
        f"A tiny VideoMAE V2 (8 frames of 32 x 32, cubes of 2 x 8 x 8) after {PLAN.pretraining_steps} steps of "
        f"{PLAN.batch_size} clips of moving digits, 75 % of the cubes hidden from the encoder and "
        "half decoded in training."
    )
    return Gallery(trained=trained, items=items)


@torch.no_grad()
def _item(model: VideoMAE, video: Tensor, index: int) -> Pictures:
    """video: (1, 1, T, H, W), standardised."""
    hidden, _ = DualMasking(model.encoder.grid, encoder_ratio=0.75, decoder="none")(1)
    cubes = model.encoder.embed.cubes(video) * STD[0] + MEAN[0]
    variance, average = torch.var_mean(cubes, dim=-1, keepdim=True)
    masked, reconstructed = cubes.clone(), cubes.clone()
    masked[hidden] = 0.5
    # The decoder predicts each cube's pixels normalised by that cube's own mean and deviation.
    filled = model(video, hidden) * (variance.sqrt() + 1e-6)[hidden][None] + average[hidden][None]
    reconstructed[hidden] = filled[0]
    strips = {"original": cubes, "what the encoder sees": masked, "reconstructed": reconstructed}
    error = (reconstructed - cubes)[hidden].abs().mean().item()
    return Pictures(
        title=f"Moving digits, clip {index + 1}",
        caption="Every second frame of the clip. Grey cubes are hidden from the encoder. Predictions are scaled with "
        "the mean and deviation of the true cube, which the target leaves out; their mean absolute error is "
        f"{error:.3f} of the range from black to white.",
        pictures=film({name: _frames(strip, model.encoder.grid).numpy() for name, strip in strips.items()}),
    )


def _frames(cubes: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(1, N, t * p * p) -> (T, H, W)."""
    n, h, w = grid
    return rearrange(cubes[0], "(n h w) (t p q) -> (n t) (h p) (w q)", n=n, h=h, w=w, t=2, p=8)

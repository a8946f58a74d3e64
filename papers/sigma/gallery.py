"""Gallery: moving digits, every hidden tube in the colour of a prototype: the one assigned, and the one predicted."""

import colorsys
from pathlib import Path

import lightning as L
import torch
from einops import repeat
from torch import Tensor

from common.gallery import Gallery, Pictures, film
from common.training.run import Run, fit
from common.worlds.moving_digits import MEAN, STD, DigitClips
from papers.sigma.assignment import assign
from papers.sigma.claims import adamw
from papers.sigma.model import sigma_tiny_patch8_32
from papers.sigma.module import Pretraining
from papers.videomae_v2.data import DigitsPretraining
from papers.videomae_v2.masking import DualMasking
from papers.videomae_v2.model import Grid

STEPS, CLIPS, BATCH, SHOWN = 300, 4000, 32, 3
ASSIGNED = 64  # test clips whose tubes are assigned together
TINT = 0.6  # share of the prototype's colour in a hidden pixel


def gallery(folder: Path, seed: int = 0) -> Gallery:
    """Clips of the test digits: as they are, with the prototypes that phi is assigned, and with those Psi predicts."""
    L.seed_everything(seed, verbose=False)
    module = Pretraining(sigma_tiny_patch8_32(), adamw(STEPS), std=STD)
    data = DigitsPretraining(train_clips=CLIPS, batch_size=BATCH, decoder="none", seed=seed)
    fit(module, data, run=Run("sigma", "gallery", "sinkhorn", seed, "cpu", folder), max_steps=STEPS)
    clips = DigitClips("test", ASSIGNED)
    video = torch.cat([clips[index]["video"] for index in range(ASSIGNED)])
    L.seed_everything(seed, verbose=False)
    grid = module.model.video.encoder.grid
    hidden, _ = DualMasking(grid, encoder_ratio=0.75, decoder="none")(ASSIGNED)
    targets, predicted = codes(module, video, hidden)
    frames = (video[:, 0] * STD[0] + MEAN[0]).clamp(0, 1)
    items = [_item(frames[i], hidden[i], targets[i], predicted[i], grid, i) for i in range(SHOWN)]
    trained = (
        f"A tiny SIGMA (8 frames of 32 x 32, tubes of 2 x 8 x 8, a trained MLP as projection network, "
        f"{len(module.model.prototypes.weight)} prototypes) after {STEPS} steps of {BATCH} clips of moving digits, "
        "75 % of the tubes hidden."
    )
    return Gallery(trained=trained, items=items)


@torch.no_grad()
def codes(module: Pretraining, video: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The prototypes that phi's features are assigned to, and the likeliest by Psi's: (B, M) each, M hidden tubes.

    The assignment shares all hidden tubes of the batch evenly among the prototypes, as in training.
    """
    x_phi, x_psi = module.features({"video": video, "hidden": hidden})
    s_phi, s_psi = (module.model.prototypes(x, detach=True) for x in (x_phi, x_psi))
    targets = assign(s_phi, eps=module.eps, iterations=module.iterations)
    return targets.view(len(video), -1), s_psi.argmax(1).view(len(video), -1)


def _item(frames: Tensor, hidden: Tensor, targets: Tensor, predicted: Tensor, grid: Grid, index: int) -> Pictures:
    """frames: (T, H, W) grey; hidden: (N,) bool; targets, predicted: (M,) prototypes of the hidden tubes."""
    strips = {
        "original": repeat(frames, "t h w -> t h w c", c=3),
        "assigned": _tinted(frames, hidden, targets, grid),
        "predicted": _tinted(frames, hidden, predicted, grid),
    }
    same = int((targets == predicted).sum())
    return Pictures(
        title=f"Moving digits, clip {index + 1}",
        caption="Every second frame of the clip. A hidden tube has the colour of a prototype: in the second row of the "
        f"one it is assigned by its own pixels, when the hidden tubes of {ASSIGNED} clips are shared evenly among all "
        "prototypes; in the third of the one that the video model predicts from the visible (grey) tubes. The two "
        f"agree for {same} of {len(targets)} hidden tubes; {len(targets.unique())} prototypes appear in the second row "
        f"and {len(predicted.unique())} in the third.",
        pictures=film({name: strip.numpy() for name, strip in strips.items()}),
    )


def _tinted(frames: Tensor, hidden: Tensor, chosen: Tensor, grid: Grid) -> Tensor:
    """frames: (T, H, W) grey; hidden: (N,) bool; chosen: (M,) the prototype of each hidden tube -> (T, H, W, 3)."""
    paint = torch.zeros(len(hidden), 4)
    paint[hidden] = torch.tensor([[*_colour(int(code)), 1.0] for code in chosen])
    slots, height, width = grid
    t, h, w = (size // tubes for size, tubes in zip(frames.shape, grid))
    paint = paint.view(slots, height, width, 4)
    paint = paint.repeat_interleave(t, 0).repeat_interleave(h, 1).repeat_interleave(w, 2)
    share = TINT * paint[..., 3:]
    return (1 - share) * frames[..., None] + share * paint[..., :3]


def _colour(code: int) -> tuple[float, float, float]:
    """A hue for every prototype, neighbours in number far apart."""
    return colorsys.hsv_to_rgb(0.618034 * code % 1, 0.8, 0.95)

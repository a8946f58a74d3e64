"""Gallery: moving digits with every hidden tube in the colour of its prototype, by phi's features and by Psi's."""

import colorsys
from pathlib import Path

import lightning as L
import torch
from einops import repeat
from torch import Tensor

from common.gallery import Gallery, Picture, Pictures, png
from common.training.run import Run, fit
from papers.sigma.model import sigma_tiny_patch8_32
from papers.sigma.module import Pretraining
from papers.videomae_v2.data import DIGITS_MEAN, DIGITS_STD, Digits, DigitsPretraining
from papers.videomae_v2.masking import DualMasking
from papers.videomae_v2.model import Grid

STEPS, CLIPS, BATCH, SHOWN = 300, 4000, 32, 3
TINT = 0.6  # share of the prototype's colour in a hidden pixel


def gallery(folder: Path, seed: int = 0) -> Gallery:
    """Clips of the test digits: as they are, and with the nearest prototypes of both branches."""
    L.seed_everything(seed, verbose=False)
    module = Pretraining(sigma_tiny_patch8_32(), lr=2e-3, warmup=0.1, std=DIGITS_STD)
    data = DigitsPretraining(train_clips=CLIPS, batch_size=BATCH, decoder="none", seed=seed)
    fit(module, data, run=Run("sigma", "gallery", "sinkhorn", seed, "cpu", folder), max_steps=STEPS)
    clips = Digits("test", SHOWN)
    L.seed_everything(seed, verbose=False)
    items = [_item(module, clips[index]["video"], index) for index in range(SHOWN)]
    trained = (
        f"A tiny SIGMA (8 frames of 32 x 32, tubes of 2 x 8 x 8, a trained MLP as projection network, "
        f"{len(module.model.prototypes.weight)} prototypes) after {STEPS} steps of {BATCH} clips of moving digits, "
        "75 % of the tubes hidden."
    )
    return Gallery(trained=trained, items=items)


@torch.no_grad()
def _item(module: Pretraining, video: Tensor, index: int) -> Pictures:
    """video: (1, 1, T, H, W), standardised."""
    encoder = module.model.video.encoder
    hidden, _ = DualMasking(encoder.grid, encoder_ratio=0.75, decoder="none")(1)
    x_phi, x_psi = module.features({"video": video, "hidden": hidden})
    phi, psi = (module.model.prototypes(x, detach=True).argmax(1) for x in (x_phi, x_psi))
    frames = (video[0, 0] * DIGITS_STD[0] + DIGITS_MEAN[0]).clamp(0, 1)
    strips = {
        "original": repeat(frames, "t h w -> t h w c", c=3),
        "by the tube's own pixels": _tinted(frames, hidden[0], phi, encoder.grid),
        "predicted from the rest": _tinted(frames, hidden[0], psi, encoder.grid),
    }
    same = int((phi == psi).sum())
    return Pictures(
        title=f"Moving digits, clip {index + 1}",
        caption="Every second frame of the clip. A hidden tube has the colour of its nearest prototype: in the second "
        "row of what the projection network makes of its pixels, in the third of what the video model predicts from "
        f"the visible (grey) tubes. The two agree for {same} of {len(phi)} hidden tubes; {len(phi.unique())} "
        f"prototypes appear in the second row and {len(psi.unique())} in the third.",
        pictures=[
            Picture(label=f"{name}, frame {2 * time + 1}", png=png(frame.numpy()))
            for name, strip in strips.items()
            for time, frame in enumerate(strip[::2])
        ],
    )


def _tinted(frames: Tensor, hidden: Tensor, codes: Tensor, grid: Grid) -> Tensor:
    """frames: (T, H, W) grey; hidden: (N,) bool; codes: (M,) the prototype of each hidden tube -> (T, H, W, 3)."""
    paint = torch.zeros(len(hidden), 4)
    paint[hidden] = torch.tensor([[*_colour(int(code)), 1.0] for code in codes])
    slots, height, width = grid
    t, h, w = (size // tubes for size, tubes in zip(frames.shape, grid))
    paint = paint.view(slots, height, width, 4)
    paint = paint.repeat_interleave(t, 0).repeat_interleave(h, 1).repeat_interleave(w, 2)
    share = TINT * paint[..., 3:]
    return (1 - share) * frames[..., None] + share * paint[..., :3]


def _colour(code: int) -> tuple[float, float, float]:
    """A hue for every prototype, neighbours in number far apart."""
    return colorsys.hsv_to_rgb(0.618034 * code % 1, 0.8, 0.95)

"""Gallery: log-mel frames, what the alterations leave of them, and what the encoder restores."""

import random
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from common.gallery import Gallery, Picture, Pictures, png
from common.training.run import Run, fit
from papers.tera.alteration import Altered, alter, named_policy
from papers.tera.claims import PLANS, pretraining
from papers.tera.data import InMemory
from papers.tera.model import TERA, reconstruction_loss
from papers.tera.module import PretrainModule

PLAN = PLANS["cpu"]
STEPS, CLIPS, BATCH, SHOWN = 600, 200, 8, 3


def gallery(folder: Path, seed: int = 0) -> Gallery:
    """Held-out sounds: clean, altered, restored."""
    L.seed_everything(seed, verbose=False)
    module = PretrainModule(pretraining(PLAN.lr, STEPS), encoder=PLAN.encoder)
    data = InMemory("sounds", num_clips=CLIPS, batch_size=BATCH, seed=seed)
    run = Run("tera", "gallery", "T-F-M", seed, "cpu", folder)
    fit(module, data, run=run, max_steps=STEPS, gradient_clip_val=5.0, limit_val_batches=0)
    module.eval()
    assert data.valid is not None
    clips = [clip for batch in range(len(data.valid)) for clip in data.valid[batch]][:SHOWN]
    random.seed(seed)
    torch.manual_seed(seed)
    items = [_item(module.model, clip, index) for index, clip in enumerate(clips)]
    trained = (
        f"A small TERA (width {PLAN.dim}, {PLAN.depth} layers) after {STEPS} steps of {BATCH} generated "
        f"sounds of a second, all three alterations on, {CLIPS - CLIPS // 5} sounds in all."
    )
    return Gallery(trained=trained, items=items)


@torch.no_grad()
def _item(model: TERA, clip: Tensor, index: int) -> Pictures:
    """clip: (L, 80), normalised."""
    altered: Altered = alter(clip[None], torch.tensor([len(clip)]), named_policy("T-F-M"))
    restored = model(altered.inputs)
    before, after = (float(reconstruction_loss(x, altered.targets, altered.mask)) for x in (altered.inputs, restored))
    shown = torch.where(altered.mask, restored, altered.targets)
    low, high = torch.quantile(clip, torch.tensor([0.02, 0.98]))
    strips = {"clean": altered.targets, "altered": altered.inputs, "restored": shown}
    return Pictures(
        title=f"Sound {index + 1}",
        caption="80 log-mel bands (low ones at the bottom) over a second, normalised to mean 0 and deviation 1 a band. "
        f"{100 * altered.mask.float().mean().item():.0f} % of the entries are altered, in blocks of time and a band of "
        "channels, and only they are restored in the third picture. Their mean distance from the clean ones is "
        f"{before:.2f} after the alteration and {after:.2f} as the encoder restores them.",
        pictures=[
            Picture(label=name, png=png(((frames[0] - low) / (high - low)).T.flip(0).numpy()))
            for name, frames in strips.items()
        ],
    )

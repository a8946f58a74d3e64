"""Gallery: zero-shot predictions of a small CLIP for drawings of combinations it never saw."""

from pathlib import Path

import lightning as L
import torch

from common.eval.zero_shot import classify
from common.gallery import Gallery, Picture, Pictures, png
from common.training.run import Run, fit
from papers.clip.data import ShapesData, normalise
from papers.clip.model import clip_small
from papers.clip.module import CLIPModule, clip_optim
from papers.clip.zero_shot import zero_shot_classifier

STEPS, PAIRS, BATCH, SHOWN = 600, 8000, 64, 12


@torch.no_grad()
def gallery(folder: Path, seed: int = 0) -> Gallery:
    """The first test images with the three classes the model finds most probable, among all unseen combinations."""
    data = ShapesData(size=PAIRS, test_size=SHOWN, batch_size=BATCH, seed=seed)
    data.setup("fit")
    L.seed_everything(seed, verbose=False)
    module = CLIPModule(clip_small(len(data.tokenizer), data.context_length), optim=clip_optim(3e-3, STEPS // 10))
    run = Run("clip", "gallery", "contrastive", seed, "cpu", folder)
    with torch.enable_grad():
        fit(module, data, run=run, max_steps=STEPS, limit_val_batches=0)
    weights = zero_shot_classifier(module.model, data.tokenizer, data.class_names, data.templates)
    features = module.model.image(normalise(data.test_images))
    shares, order = (module.model.logit_scale.exp() * classify(features, weights)).softmax(dim=-1).sort(descending=True)
    right = int((order[:, 0] == data.test_labels).sum())
    pictures = [
        Picture(
            label=f"{data.class_names[label]}: {'right' if ranks[0] == label else 'wrong'}",
            png=png(image.permute(1, 2, 0).numpy()),
            lines=[f"{data.class_names[index]}, {100 * share:.0f} %" for index, share in zip(ranks[:3], sizes[:3])],
        )
        for image, label, ranks, sizes in zip(data.test_images, data.test_labels, order, shares)
    ]
    item = Pictures(
        title="Zero-shot classification of rendered shapes",
        caption="Under each image what it shows, whether the first prediction is right, and the three most probable of "
        f"{len(data.class_names)} classes with their probability. None of these combinations of shape, colour and size "
        f"was in training. {right} of {len(pictures)} are right; guessing would be right once in "
        f"{len(data.class_names)}.",
        pictures=pictures,
    )
    trained = f"A small CLIP after {STEPS} steps of {BATCH} pairs, out of {PAIRS:,} rendered scenes with captions."
    return Gallery(trained=trained, items=[item])

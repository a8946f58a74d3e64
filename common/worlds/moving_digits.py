"""Moving digits: an exact, seeded generator of short video clips from the digit images that scikit-learn bundles.

A clip is one 16 x 16 digit (an 8 x 8 image with every pixel doubled) that starts near the middle of a black 32 x 32
torus and moves by 1 or 2 pixels a frame. Labels: the direction of motion (8) and the glyph (10). Integer arithmetic
only, so every machine makes the same bytes; no network, no file.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import EncoreError
from common.formats.video_clips import flatten_repeats
from common.training.loaders import Loaders

FRAMES, SIZE, GLYPH = 8, 32, 16
JITTER = 1
"""The first frame's digit is off the middle by up to so many pixels each way."""
DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
"""(rows, columns) per frame: right, then clockwise in steps of 45 degrees."""
NUM_GLYPHS = 10
MEAN, STD = (0.072,), (0.216,)
"""About the mean and standard deviation of the pixels."""
TRAIN_IMAGES = 1300
"""Training clips use the first 1,300 digit images, test clips the other 497: no glyph drawing is in both."""


def _glyphs(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Digit images (n, 16, 16) uint8 in 0..240 and their classes (n,) of one split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images.astype(np.uint8) * 15).repeat(2, axis=1).repeat(2, axis=2)
    part = {"train": slice(None, TRAIN_IMAGES), "test": slice(TRAIN_IMAGES, None)}
    if split not in part:
        raise EncoreError(f"moving_digits: no split '{split}'; the splits are train and test")
    return images[part[split]], digits.target[part[split]]


def _paste(images: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """(n, 16, 16) images on empty (n, 32, 32) canvases, upper left corner at (row, column), wrapping at the edges."""
    canvas = np.zeros((len(images), SIZE, SIZE), images.dtype)
    rows = (row[:, None] + np.arange(GLYPH)) % SIZE
    columns = (column[:, None] + np.arange(GLYPH)) % SIZE
    canvas[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]] = images
    return canvas


class MovingDigits(Dataset[dict[str, Tensor]]):
    """`length` clips; item i is a pure function of (split, seed, i).

    Items: video (1, 8, 32, 32) float32 in [0, 1]; direction, glyph: int64 scalars; speed is 1 or 2 pixels a frame.
    """

    def __init__(self, split: str, length: int, *, seed: int = 0) -> None:
        if length < 1:
            raise EncoreError(f"moving_digits: length must be at least 1, got {length}")
        images, classes = _glyphs(split)
        highs = (len(DIRECTIONS), 2, len(images), 2 * JITTER + 1, 2 * JITTER + 1)
        draws = np.random.Generator(np.random.PCG64([seed, split == "test"])).integers(highs, size=(length, len(highs)))
        direction, speed, moving, row, column = draws.T
        row, column = row + (SIZE - GLYPH) // 2 - JITTER, column + (SIZE - GLYPH) // 2 - JITTER
        step = np.array(DIRECTIONS)[direction] * (1 + speed)[:, None]
        frames = [_paste(images[moving], row + t * step[:, 0], column + t * step[:, 1]) for t in range(FRAMES)]
        self.video = torch.from_numpy(np.stack(frames, axis=1)[:, None])
        self.direction = torch.from_numpy(direction.copy())
        self.glyph = torch.from_numpy(classes[moving].astype(np.int64))

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "video": self.video[index].float() / 255,
            "direction": self.direction[index],
            "glyph": self.glyph[index],
        }


class DigitClips(Dataset[dict[str, Tensor]]):
    """Moving digits as one-view clips: video (1, 1, 8, 32, 32) standardised, label (direction or glyph)."""

    def __init__(
        self, split: str, length: int, *, label: Literal["direction", "glyph"] = "direction", seed: int = 0
    ) -> None:
        self.clips, self.label = MovingDigits(split, length, seed=seed), label

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = self.clips[index]
        video = (item["video"] - MEAN[0]) / STD[0]
        return {"video": video[None], "label": item[self.label]}


class LabelledDigits(Loaders):
    """Moving digits with labels: batches video (B, 1, 8, 32, 32), label (B,). The labelled clips depend on seed."""

    collate = staticmethod(flatten_repeats)

    def __init__(
        self,
        *,
        train_clips: int = 1500,
        test_clips: int = 500,
        batch_size: int = 32,
        label: Literal["direction", "glyph"] = "direction",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed, eval_batch_size=100)
        self.train = DigitClips("train", train_clips, label=label, seed=1 + seed)
        self.valid = self.test = DigitClips("test", test_clips, label=label)

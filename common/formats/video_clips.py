"""Clips of listed videos: the list files, which frames a clip takes, crops and augmentation, and views for testing.

A list has one clip a line, fields separated by blanks, relative paths below a root folder:

    without labels:  video.mp4 0 -1       or   frame_folder start_index total_frames
    with labels:     video.mp4 label      or   frame_folder total_frames label

A frame folder holds numbered images; labelled ones are numbered from 1, labels from 0. Randomness (frames, crops,
augmentation) comes from torch's global generator, which the training loader seeds per batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from common.errors import EncoreError
from common.formats.video import probe, read_frames
from common.training.loaders import seeded

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALES = (1.0, 0.875, 0.75, 0.66)
MAX_REPLACEMENTS = 20

Sample = dict[str, Tensor]
Kind = Literal["strided", "spread", "segments"]
OnBad = Literal["error", "skip"]


@dataclass(frozen=True)
class Entry:
    """One line. frames: number of images from number `start` on in a frame folder, or -1 for a video file."""

    path: Path
    start: int = 0
    frames: int = -1
    label: int = -1


def read_unlabelled(path: str | Path, root: str | Path = "") -> list[Entry]:
    """`video 0 -1` and `frame_folder start total` lines."""
    return _read(path, lambda f: Entry(Path(root, f[0]), int(f[1]), int(f[2])), (2,), "path start total_frames")


def read_labelled(path: str | Path, root: str | Path = "", *, classes: int | None = None) -> list[Entry]:
    """`video label` and `frame_folder total_frames label` lines. classes: labels must lie in 0..classes - 1."""

    def entry(fields: list[str]) -> Entry:
        label = int(fields[-1])
        if classes is not None and not 0 <= label < classes:
            raise EncoreError(
                f"label {label}, but the {classes} classes are numbered 0 to {classes - 1}; "
                "lower labels that start at 1 by one, or set num_classes"
            )
        if len(fields) == 2:
            return Entry(Path(root, fields[0]), label=label)
        return Entry(Path(root, fields[0]), 1, int(fields[1]), label)

    return _read(path, entry, (1, 2), "path label, or path total_frames label")


def _read(path: str | Path, entry: Callable[[list[str]], Entry], numbers: tuple[int, ...], form: str) -> list[Entry]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EncoreError(f"{path}: the list file cannot be read ({error})") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.split()
        count = 0
        while count < max(numbers) and count < len(fields) - 1 and fields[-1 - count].removeprefix("-").isdecimal():
            count += 1
        if count not in numbers:
            raise EncoreError(f"{path}, line {number}: expected '{form}', found '{line.strip()}'")
        try:
            entries.append(entry([line.rsplit(maxsplit=count)[0].strip(), *fields[len(fields) - count :]]))
        except EncoreError as error:
            raise EncoreError(f"{path}, line {number}: {error}") from None
    if not entries:
        raise EncoreError(f"{path}: the list is empty; it needs one '{form}' a line")
    return entries


# Which frames


def indices(kind: Kind, frames: int, of: int, *, stride: int = 1, train: bool = False) -> list[int]:
    """Numbers of the `frames` frames that a clip takes of a video with `of` frames.

    train draws where the clip lies, else it is the middle. Of a shorter video the last frame taken repeats.
    strided: every stride-th frame (VideoMAE's pre-training). spread: evenly from s to s + frames * stride, both ends
    counted, so the step is a little over the stride (its fine-tuning). segments: one frame of each of `frames` equal
    parts (TSN; Something-Something).
    """
    if kind == "segments":
        part = of // frames
        offsets = [randint(part) for _ in range(frames)] if train else [part // 2] * frames
        return [i * part + offset for i, offset in enumerate(offsets)]
    room = of - frames * stride
    if kind == "strided":
        start = randint(max(room + 1, 1)) if train else max(room // 2, 0)
        last = max(of - 2 - start, 0) // stride  # a short video's very last frame is not reached, as in the public code
        return [start + stride * min(i, last) for i in range(frames)]
    if room <= 0:
        short = [*np.linspace(0, of, of // stride), *[of] * (frames - of // stride)]
        return [min(int(i), of - 1) for i in short]
    start = randint(room) if train else (frames * stride + of) // 2 - frames * stride
    return [min(int(i), start + frames * stride - 1) for i in np.linspace(start, start + frames * stride, frames)]


def view_indices(kind: Kind, frames: int, of: int, *, stride: int = 1, clips: int = 1) -> list[list[int]]:
    """Frame numbers of the `clips` temporal views of a video.

    segments: clip c takes the point c / clips of each segment. Otherwise windows of every stride-th frame, evenly
    placed from the first to the last.
    """
    if kind == "segments":
        tick = of / frames
        return [[int(c * tick / clips + tick * i) for i in range(frames)] for c in range(clips)]
    every = list(range(0, of, stride))
    every += every[-1:] * (frames - len(every))
    step = (len(every) - frames) / max(clips - 1, 1)
    return [every[int(c * step) : int(c * step) + frames] for c in range(clips)]


def randint(high: int) -> int:
    """Uniform in 0..high - 1."""
    return int(torch.randint(high, ()))


# Reading


def count_frames(entry: Entry, *, at_least: int = 1) -> int:
    """Frames of the video file (probed) or of the frame folder (stated in the list).

    A clip of `at_least` frames from fewer ones would only repeat them: an EncoreError, which a loader may skip.
    """
    total = probe(entry.path).frames if entry.frames < 0 else entry.frames
    if total < at_least:
        raise EncoreError(f"{entry.path}: has {total} frames, a clip needs {at_least}; remove it or use shorter clips")
    return total


def read_clip(entry: Entry, numbers: Sequence[int], template: str = "img_{:05}.jpg") -> Tensor:
    """(len(numbers), 3, H, W) uint8; numbers count from 0 at the entry's first frame. EncoreError names a bad file."""
    if entry.frames < 0:
        return torch.from_numpy(read_frames(entry.path, numbers)).permute(0, 3, 1, 2)
    images = {}
    for number in set(numbers):
        file = entry.path / template.format(entry.start + number)
        try:
            images[number] = decode_image(str(file), ImageReadMode.RGB)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise EncoreError(
                f"{file}: cannot be read as an image ({reason}); remove its line or replace it"
            ) from error
    return torch.stack([images[number] for number in numbers])


# Pixels


def standardise(clip: Tensor) -> Tensor:
    """(T, 3, H, W) uint8 -> (3, T, H, W) float, ImageNet mean and standard deviation."""
    return TF.normalize(clip.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD)).transpose(0, 1)


def multi_scale_crop(clip: Tensor, size: int) -> Tensor:
    """One random crop for all frames (TSN): sides from {1, .875, .75, .66} of the shorter side, at most one step
    apart; at one of 13 places (corners, edge middles, quarter points, centre); resized.

    (T, C, H, W) -> (T, C, size, size)
    """
    height, width = clip.shape[-2:]
    sides = [int(min(height, width) * scale) for scale in SCALES]
    sides = [size if abs(side - size) < 3 else side for side in sides]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    h, w = pairs[randint(len(pairs))]
    h, w = min(h, height), min(w, width)
    quarters = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)] + [(y, x) for y in (1, 3) for x in (1, 3)]
    y, x = quarters[randint(len(quarters))]
    crop = TF.crop(clip, y * ((height - h) // 4), x * ((width - w) // 4), h, w)
    return TF.resize(crop, [size, size], antialias=True)


class Augment:
    """Fine-tuning's augmentation, the same for all frames of a clip: (T, 3, H, W) uint8 -> (3, T, size, size) float.

    policy: RandAugment as timm spells it ("rand-m7-n4-mstd0.5-inc1": 4 operations, each applied with probability 1/2
    at a level around 7 of 10), on the frames as they are. Then, standardised: a random resized crop of `scale` of the
    area, a flip, and with probability `erasing` a box of noise, at one place in all frames but drawn anew for each.
    """

    def __init__(
        self, size: int, *, policy: str, flip: bool, erasing: float, scale: tuple[float, float] = (0.08, 1.0)
    ) -> None:
        from timm.data.auto_augment import rand_augment_transform

        self.policy = rand_augment_transform(policy, {"interpolation": Image.Resampling.BICUBIC})
        crop = v2.RandomResizedCrop(size, scale, (0.75, 4 / 3), antialias=False)
        self.place = v2.Compose([crop, v2.RandomHorizontalFlip()] if flip else [crop])
        self.erase = v2.RandomErasing(erasing, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value="random")

    def __call__(self, clip: Tensor) -> Tensor:
        key = randint(2**31)
        frames = []
        for frame in clip:
            with seeded(key):  # the policy draws from Python's and numpy's generators
                frames.append(TF.pil_to_tensor(self.policy(TF.to_pil_image(frame))))
        placed = self.place(standardise(torch.stack(frames)))
        return self.erase(placed.flatten(0, 1)).view_as(placed)  # as one picture of 3 T channels


class Clips(Dataset[Sample]):
    """One random clip a video, transformed `repeats` times (repeated augmentation): video (repeats, 3, T, H, W),
    label where the list has one, skipped.

    strides, templates: stride and image name for paths that contain a given text, e.g. {"SomethingV2": 2}.
    on_bad="skip" draws another video for one that cannot be read or is too short, and counts it; "error" raises.
    """

    def __init__(
        self,
        entries: list[Entry],
        transform: Callable[[Tensor], Tensor],
        *,
        kind: Kind,
        frames: int,
        stride: int,
        repeats: int = 1,
        strides: dict[str, int] | None = None,
        templates: dict[str, str] | None = None,
        on_bad: OnBad = "skip",
    ) -> None:
        self.entries, self.transform, self.kind, self.frames, self.stride = entries, transform, kind, frames, stride
        self.repeats, self.strides, self.templates, self.on_bad = repeats, strides or {}, templates or {}, on_bad

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, entry: Entry) -> Tensor:
        """A random clip (T, 3, H, W) uint8 of one video. EncoreError names a bad one."""
        of = count_frames(entry, at_least=self.frames)
        stride = next((s for text, s in self.strides.items() if text in str(entry.path)), self.stride)
        template = next((t for text, t in self.templates.items() if text in str(entry.path)), "img_{:05}.jpg")
        return read_clip(entry, indices(self.kind, self.frames, of, stride=stride, train=True), template)

    def __getitem__(self, index: int) -> Sample:
        for skipped in range(MAX_REPLACEMENTS):
            entry = self.entries[index]
            try:
                clip = self.read(entry)
            except EncoreError:
                if self.on_bad == "error":
                    raise
                index = randint(len(self.entries))
                continue
            item = {"video": torch.stack([self.transform(clip) for _ in range(self.repeats)])}
            label = {} if entry.label < 0 else {"label": torch.tensor(entry.label)}
            return item | label | {"skipped": torch.tensor(skipped)}
        raise EncoreError(
            f"{MAX_REPLACEMENTS} videos in a row cannot be used, the last one {entry.path}; check the root"
        )


class Views(Dataset[Sample]):
    """All clips x crops of a video, read once: video (V, 3, T, S, S), label, index (the video's number).

    clips: see view_indices; None: the one clip of `indices`, as in validation. The shorter side is resized to S and
    `crops` squares are taken along the longer one (one crop: the middle). A bad video is an EncoreError.
    """

    def __init__(
        self,
        entries: list[Entry],
        *,
        kind: Kind,
        frames: int,
        stride: int,
        size: int,
        clips: int | None = None,
        crops: int = 1,
    ) -> None:
        self.entries, self.kind, self.frames, self.stride = entries, kind, frames, stride
        self.size, self.clips, self.crops = size, clips, crops

    def __len__(self) -> int:
        return len(self.entries)

    def numbers(self, of: int) -> list[list[int]]:
        """Frame numbers of every clip of a video of `of` frames."""
        if self.clips is None:
            return [indices(self.kind, self.frames, of, stride=self.stride)]
        return view_indices(self.kind, self.frames, of, stride=self.stride, clips=self.clips)

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        clips = self.numbers(count_frames(entry, at_least=self.frames))
        wanted = sorted({i for clip in clips for i in clip})
        frames = TF.resize(read_clip(entry, wanted), [self.size], antialias=False)
        height, width = frames.shape[-2:]
        room = max(height, width) - self.size
        places = [round(room / 2)] if self.crops == 1 else [int(k * room / (self.crops - 1)) for k in range(self.crops)]
        views = []
        for clip in clips:
            chosen = standardise(frames[[wanted.index(i) for i in clip]])
            for place in places:
                top, left = (place, 0) if height >= width else (0, place)
                views.append(TF.crop(chosen, top, left, self.size, self.size))
        return {"video": torch.stack(views), "label": torch.tensor(entry.label), "index": torch.tensor(index)}


def flatten_repeats(items: list[Sample]) -> Sample:
    """Items whose video is (R, ...) become one batch of sum(R) clips; label and index repeat, `view` counts 0..R-1."""
    repeats = torch.tensor([len(item["video"]) for item in items])
    batch: dict[str, Any] = {"video": torch.cat([item["video"] for item in items])}
    for key in ("label", "index"):
        if key in items[0]:
            batch[key] = torch.stack([item[key] for item in items]).repeat_interleave(repeats)
    if "skipped" in items[0]:
        batch["skipped"] = torch.stack([item["skipped"] for item in items])
    return batch | {"view": torch.cat([torch.arange(int(r)) for r in repeats])}

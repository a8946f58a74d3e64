"""Data: videos in the public list-file format (full scale), and moving digits (small scale).

Randomness (frames, crops, masks) comes from torch's global generator, which the training loader seeds per batch.
"""

from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from common.errors import EncoreError
from common.training.loaders import train_loader
from common.worlds.moving_digits import MovingDigits
from papers.videomae_v2.masking import DualMasking
from papers.videomae_v2.module import IMAGENET_MEAN, IMAGENET_STD
from papers.videomae_v2.video_lists import (
    Entry,
    count_frames,
    read_clip,
    read_label_list,
    read_pretraining_list,
    require_frames,
    segments,
    spread,
    strided,
    test_clips,
)

Sample = dict[str, Tensor]
OnBad = Literal["error", "skip"]
MAX_REPLACEMENTS = 20
SCALES = (1.0, 0.875, 0.75, 0.66)
DIGITS_MEAN, DIGITS_STD = (0.072,), (0.216,)
"""About the mean and standard deviation of moving digits' pixels."""


def randint(high: int) -> int:
    """Uniform in 0..high - 1."""
    return int(torch.randint(high, ()))


def standardise(clip: Tensor) -> Tensor:
    """(T, 3, H, W) uint8 -> (3, T, H, W) float, ImageNet mean and standard deviation."""
    return TF.normalize(clip.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD)).transpose(0, 1)


def multi_scale_crop(clip: Tensor, size: int) -> Tensor:
    """One random crop for all frames (Sec. 4.1): sides from {1, .875, .75, .66} of the shorter side, at most one step
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


def read_or_replace(
    entries: list[Entry], index: int, read: Callable[[Entry], Tensor], on_bad: OnBad
) -> tuple[Tensor, Entry, int]:
    """Frames of entries[index], the entry they are from, and the number of bad videos met.

    on_bad="skip" draws another entry for a video that cannot be read or is too short, and counts it; "error" raises.
    """
    for skipped in range(MAX_REPLACEMENTS):
        try:
            return read(entries[index]), entries[index], skipped
        except EncoreError:
            if on_bad == "error":
                raise
            index = randint(len(entries))
    raise EncoreError(
        f"{MAX_REPLACEMENTS} videos in a row cannot be used, the last one {entries[index].path}; check the root"
    )


class PretrainingClips(Dataset[Sample]):
    """One random clip a video, cropped `repeats` times (repeated augmentation): video (repeats, 3, T, H, W), skipped.

    strides, templates: stride and image name for paths that contain a given text, e.g. {"SomethingV2": 2}.
    """

    def __init__(
        self,
        entries: list[Entry],
        *,
        num_frames: int,
        stride: int,
        image_size: int,
        repeats: int,
        strides: dict[str, int],
        templates: dict[str, str],
        on_bad: OnBad,
    ) -> None:
        self.entries, self.num_frames, self.stride, self.size = entries, num_frames, stride, image_size
        self.repeats, self.strides, self.templates, self.on_bad = repeats, strides, templates, on_bad

    def __len__(self) -> int:
        return len(self.entries)

    def _read(self, entry: Entry) -> Tensor:
        total = count_frames(entry)
        require_frames(entry, total, self.num_frames)
        stride = next((s for text, s in self.strides.items() if text in str(entry.path)), self.stride)
        template = next((t for text, t in self.templates.items() if text in str(entry.path)), "img_{:05}.jpg")
        start = randint(max(total - self.num_frames * stride + 1, 1))
        return read_clip(entry, strided(total, self.num_frames, stride, start), template)

    def __getitem__(self, index: int) -> Sample:
        frames, _, skipped = read_or_replace(self.entries, index, self._read, self.on_bad)
        crops = [standardise(multi_scale_crop(frames, self.size)) for _ in range(self.repeats)]
        return {"video": torch.stack(crops), "skipped": torch.tensor(skipped)}


class LabelledClips(Dataset[Sample]):
    """Training clips with RandAugment, random resized crop, flip and random erasing, the same for all frames of a clip.

    Items: video (repeats, 3, T, H, W), label, skipped. uniform: TSN sampling (SSv2), which also has no flip.
    """

    def __init__(
        self,
        entries: list[Entry],
        *,
        num_frames: int,
        stride: int,
        image_size: int,
        repeats: int,
        uniform: bool,
        erasing: float,
        on_bad: OnBad,
    ) -> None:
        self.entries, self.num_frames, self.stride = entries, num_frames, stride
        self.repeats, self.uniform, self.on_bad = repeats, uniform, on_bad
        crop = v2.RandomResizedCrop(image_size, scale=(0.08, 1.0), ratio=(0.75, 4 / 3), antialias=True)
        flip = [] if uniform else [v2.RandomHorizontalFlip()]
        self.augment = v2.Compose([v2.RandAugment(num_ops=4, magnitude=7), crop, *flip])
        self.erase = v2.RandomErasing(erasing, value="random")

    def __len__(self) -> int:
        return len(self.entries)

    def _read(self, entry: Entry) -> Tensor:
        total, frames = count_frames(entry), self.num_frames
        require_frames(entry, total, frames)
        if self.uniform:
            return read_clip(entry, segments(total, frames, [randint(total // frames) for _ in range(frames)]))
        room = total - frames * self.stride
        return read_clip(entry, spread(total, frames, self.stride, randint(room) if room > 0 else 0))

    def __getitem__(self, index: int) -> Sample:
        frames, entry, skipped = read_or_replace(self.entries, index, self._read, self.on_bad)
        clips = [standardise(self.augment(tv_tensors.Video(frames)).as_subclass(Tensor)) for _ in range(self.repeats)]
        return {
            "video": torch.stack([self.erase(clip.transpose(0, 1)).transpose(0, 1) for clip in clips]),
            "label": torch.tensor(entry.label),
            "skipped": torch.tensor(skipped),
        }


class Views(Dataset[Sample]):
    """All clips x crops of a video, read once: video (V, 3, T, S, S), label, index (the video's number).

    The shorter side is resized to S and `crops` squares are taken along the longer one (one crop: the middle).
    """

    def __init__(
        self,
        entries: list[Entry],
        *,
        num_frames: int,
        stride: int,
        image_size: int,
        clips: int,
        crops: int,
        uniform: bool,
    ) -> None:
        self.entries, self.num_frames, self.stride, self.size = entries, num_frames, stride, image_size
        self.clips, self.crops, self.uniform = clips, crops, uniform

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        total = count_frames(entry)
        require_frames(entry, total, self.num_frames)
        clips = test_clips(total, self.num_frames, self.stride, self.clips, uniform=self.uniform)
        wanted = sorted({i for clip in clips for i in clip})
        frames = TF.resize(read_clip(entry, wanted), [self.size], antialias=True)
        height, width = frames.shape[-2:]
        room = max(height, width) - self.size
        offsets = [room // 2] if self.crops == 1 else [int(k * room / (self.crops - 1)) for k in range(self.crops)]
        views = []
        for clip in clips:
            chosen = standardise(frames[[wanted.index(i) for i in clip]])
            for offset in offsets:
                top, left = (offset, 0) if height >= width else (0, offset)
                views.append(TF.crop(chosen, top, left, self.size, self.size))
        return {"video": torch.stack(views), "label": torch.tensor(entry.label), "index": torch.tensor(index)}


def flatten_repeats(items: list[Sample]) -> Sample:
    """Items whose video is (R, ...) become one batch of sum(R) clips; label and index repeat, `view` counts 0..R-1."""
    repeats = torch.tensor([len(item["video"]) for item in items])
    batch = {"video": torch.cat([item["video"] for item in items])}
    for key in ("label", "index"):
        if key in items[0]:
            batch[key] = torch.stack([item[key] for item in items]).repeat_interleave(repeats)
    if "skipped" in items[0]:
        batch["skipped"] = torch.stack([item["skipped"] for item in items])
    return batch | {"view": torch.cat([torch.arange(int(r)) for r in repeats])}


class MaskCollate:
    """Batch of clips (repeats flattened), each with its own pair of maps: adds hidden, decoded (B, N) bool."""

    def __init__(self, masking: DualMasking) -> None:
        self.masking = masking

    def __call__(self, items: list[Sample]) -> Sample:
        batch = flatten_repeats(items)
        hidden, decoded = self.masking(len(batch["video"]))
        return batch | {"hidden": hidden, "decoded": decoded}


class UnlabelledVideos(L.LightningDataModule):
    """Pre-training on a list of videos and frame folders. batch_size counts videos a process, not their repeats."""

    read_list = staticmethod(read_pretraining_list)

    def __init__(
        self,
        train_list: str,
        *,
        root: str = "",
        batch_size: int = 32,
        repeats: int = 4,
        num_frames: int = 16,
        stride: int = 4,
        image_size: int = 224,
        patch_size: int = 16,
        tubelet_size: int = 2,
        encoder_ratio: float = 0.9,
        decoder: str = "running_cell",
        decoder_ratio: float = 0.5,
        strides: dict[str, int] | None = None,
        templates: dict[str, str] | None = None,
        on_bad: OnBad = "skip",
        num_workers: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dataset = PretrainingClips(
            self.read_list(train_list, root),
            num_frames=num_frames,
            stride=stride,
            image_size=image_size,
            repeats=repeats,
            strides=strides or {},
            templates=templates or {},
            on_bad=on_bad,
        )
        side = image_size // patch_size
        grid = (num_frames // tubelet_size, side, side)
        masking = DualMasking(grid, encoder_ratio=encoder_ratio, decoder=decoder, decoder_ratio=decoder_ratio)
        self.collate = MaskCollate(masking)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    def train_dataloader(self) -> DataLoader:
        return train_loader(
            self.dataset,
            self.batch_size,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=self.collate,
            num_workers=self.num_workers,
        )


class LabelledVideos(L.LightningDataModule):
    """Post-pre-training, fine-tuning and multi-view testing on labelled lists.

    Validation takes one view, `test` clips x crops (Kinetics 5 x 3, SSv2 2 x 3). A bad video in evaluation is an error.
    """

    def __init__(
        self,
        *,
        train_list: str,
        val_list: str,
        root: str = "",
        batch_size: int = 16,
        repeats: int = 2,
        num_frames: int = 16,
        stride: int = 4,
        image_size: int = 224,
        uniform: bool = False,
        erasing: float = 0.25,
        clips: int = 5,
        crops: int = 3,
        on_bad: OnBad = "skip",
        num_workers: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sampling: dict[str, Any] = {"num_frames": num_frames, "stride": stride, "image_size": image_size}
        sampling["uniform"] = uniform
        train = read_label_list(train_list, root)
        self.train_set = LabelledClips(train, repeats=repeats, erasing=erasing, on_bad=on_bad, **sampling)
        val = read_label_list(val_list, root)
        self.val_set = Views(val, clips=1, crops=1, **sampling)
        self.test_set = Views(val, clips=clips, crops=crops, **sampling)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    def train_dataloader(self) -> DataLoader:
        return train_loader(
            self.train_set,
            self.batch_size,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=flatten_repeats,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        return self._evaluation(self.val_set, self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation(self.test_set, 1)

    def _evaluation(self, views: Views, batch_size: int) -> DataLoader:
        trainer = self.trainer
        world, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        sampler: Any = DistributedSampler(views, num_replicas=world, rank=rank, shuffle=False) if world > 1 else None
        return DataLoader(views, batch_size, sampler=sampler, collate_fn=flatten_repeats, num_workers=self.num_workers)


class Digits(Dataset[Sample]):
    """Moving digits as one-view clips: video (1, 1, 8, 32, 32) standardised, label (direction or glyph), index."""

    def __init__(
        self, split: str, length: int, *, label: Literal["direction", "glyph"] = "direction", seed: int = 0
    ) -> None:
        self.clips, self.label = MovingDigits(split, length, seed=seed), label

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Sample:
        item = self.clips[index]
        video = (item["video"] - DIGITS_MEAN[0]) / DIGITS_STD[0]
        return {"video": video[None], "label": item[self.label], "index": torch.tensor(index)}


class DigitsPretraining(L.LightningDataModule):
    """Moving digits with dual masks: batches video (B, 1, 8, 32, 32), hidden, decoded."""

    def __init__(
        self,
        *,
        train_clips: int = 4000,
        batch_size: int = 64,
        patch_size: int = 8,
        encoder_ratio: float = 0.75,
        decoder: str = "running_cell",
        decoder_ratio: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dataset = Digits("train", train_clips)
        grid = (4, 32 // patch_size, 32 // patch_size)
        self.collate = MaskCollate(
            DualMasking(grid, encoder_ratio=encoder_ratio, decoder=decoder, decoder_ratio=decoder_ratio)
        )
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> DataLoader:
        return train_loader(
            self.dataset, self.batch_size, seed=self.seed, trainer=self.trainer, collate_fn=self.collate
        )


class DigitsLabelled(L.LightningDataModule):
    """Moving digits with labels: batches video, label, index, view. The labelled clips depend on seed."""

    def __init__(
        self,
        *,
        train_clips: int = 1500,
        test_clips: int = 500,
        batch_size: int = 32,
        label: Literal["direction", "glyph"] = "direction",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train_set = Digits("train", train_clips, label=label, seed=1 + seed)
        self.test_set = Digits("test", test_clips, label=label)
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> DataLoader:
        return train_loader(
            self.train_set, self.batch_size, seed=self.seed, trainer=self.trainer, collate_fn=flatten_repeats
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.test_set, 100, collate_fn=flatten_repeats)

    test_dataloader = val_dataloader

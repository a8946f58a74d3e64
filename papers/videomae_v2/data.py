"""Data: videos in the public list-file format (full scale), and moving digits (small scale)."""

from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from common.formats.video_clips import (
    Augment,
    Clips,
    OnBad,
    Sample,
    Views,
    flatten_repeats,
    multi_scale_crop,
    read_labelled,
    read_unlabelled,
    standardise,
)
from common.training.loaders import Loaders
from common.worlds.moving_digits import DigitClips
from papers.videomae_v2.masking import DualMasking


def masked(items: list[Sample], masking: DualMasking) -> Sample:
    """Batch of clips (repeats flattened), each with its own pair of maps: adds hidden, decoded (B, N) bool."""
    batch = flatten_repeats(items)
    hidden, decoded = masking(len(batch["video"]))
    return batch | {"hidden": hidden, "decoded": decoded}


def cropped(clip: Tensor, size: int) -> Tensor:
    """Pre-training's augmentation (Sec. 4.1): (T, 3, H, W) uint8 -> (3, T, size, size)."""
    return standardise(multi_scale_crop(clip, size))


class UnlabelledVideos(Loaders):
    """Pre-training on a list of videos and frame folders. batch_size counts videos a process, not their repeats."""

    read_list = staticmethod(read_unlabelled)

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
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.train = Clips(
            self.read_list(train_list, root),
            partial(cropped, size=image_size),
            kind="strided",
            frames=num_frames,
            stride=stride,
            repeats=repeats,
            strides=strides,
            templates=templates,
            on_bad=on_bad,
        )
        side = image_size // patch_size
        grid = (num_frames // tubelet_size, side, side)
        self.masking = DualMasking(grid, encoder_ratio=encoder_ratio, decoder=decoder, decoder_ratio=decoder_ratio)

    def collate(self, items: list[Sample]) -> Sample:
        return masked(items, self.masking)


class LabelledVideos(Loaders):
    """Post-pre-training, fine-tuning and multi-view testing on labelled lists, whose labels are 0..num_classes - 1.

    Validation takes one view, `test` clips x crops (Kinetics 5 x 3, SSv2 2 x 3). uniform: TSN sampling (SSv2), which
    also has no flip. augment, crop_scale, erasing: see video_clips.Augment. A bad video in evaluation is an error.
    """

    collate = staticmethod(flatten_repeats)

    def __init__(
        self,
        *,
        train_list: str,
        val_list: str,
        num_classes: int,
        root: str = "",
        batch_size: int = 16,
        repeats: int = 2,
        num_frames: int = 16,
        stride: int = 4,
        image_size: int = 224,
        uniform: bool = False,
        augment: str = "rand-m7-n4-mstd0.5-inc1",
        crop_scale: tuple[float, float] = (0.08, 1.0),
        erasing: float = 0.25,
        clips: int = 5,
        crops: int = 3,
        on_bad: OnBad = "skip",
        num_workers: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        sampling: Any = {"kind": "segments" if uniform else "spread", "frames": num_frames, "stride": stride}
        transform = Augment(image_size, policy=augment, flip=not uniform, erasing=erasing, scale=crop_scale)
        train = read_labelled(train_list, root, classes=num_classes)
        self.train = Clips(train, transform, repeats=repeats, on_bad=on_bad, **sampling)
        held_out = read_labelled(val_list, root, classes=num_classes)
        self.valid = Views(held_out, size=image_size, **sampling)
        self.test = Views(held_out, size=image_size, clips=clips, crops=crops, **sampling)

    def evaluation(self, dataset: Any, batch_size: int | None = None, collate: Any = None) -> DataLoader:
        """Every process takes its share of the videos; one a batch in `test`, where each has many views."""
        trainer, each = self.trainer, 1 if dataset is self.test else batch_size
        whole = super().evaluation(dataset, each, collate)
        if trainer is None or trainer.world_size == 1:
            return whole
        share: Any = DistributedSampler(dataset, trainer.world_size, trainer.global_rank, shuffle=False)
        kept = {name: getattr(whole, name) for name in ("batch_size", "collate_fn", "num_workers", "generator")}
        return DataLoader(dataset, sampler=share, **kept)  # shares are filled up with videos that count once


class DigitsPretraining(Loaders):
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
        super().__init__(batch_size=batch_size, seed=seed)
        self.train = DigitClips("train", train_clips)
        grid = (4, 32 // patch_size, 32 // patch_size)
        self.masking = DualMasking(grid, encoder_ratio=encoder_ratio, decoder=decoder, decoder_ratio=decoder_ratio)

    def collate(self, items: list[Sample]) -> Sample:
        return masked(items, self.masking)

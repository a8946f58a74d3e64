"""Clips as normalised spectrograms: AudioSet's segment lists, ESC-50's table, the ESC-10 source, and generated sounds.

A batch is {"spectrogram": (B, 1, T, M), "label": (B,) class or (B, C) 0/1}, and "frames": (B,) valid frames when a clip
in it is shorter than the others (the rest of its row is zero).
"""

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from common.errors import EncoreError
from common.formats.audio import load_audio
from common.training.loaders import train_loader
from common.worlds.sounds import CLASSES, SoundClips
from papers.beats.fbank import SAMPLE_RATE, spectrogram

Batch = dict[str, Tensor]


def num_frames(seconds: float) -> int:
    """Whole frames of 25 ms every 10 ms: 998 in 10 s."""
    samples = round(seconds * SAMPLE_RATE)
    return 1 + (samples - 400) // 160 if samples >= 400 else 0


def pad_batch(items: Sequence[tuple[Tensor, Tensor]]) -> Batch:
    """[(spectrogram (T_i, M), label), ...] -> batch padded with zeros to the longest clip."""
    frames = torch.tensor([len(x) for x, _ in items])
    longest = int(frames.max())
    x = torch.stack([F.pad(x, (0, 0, 0, longest - len(x))) for x, _ in items])
    batch = {"spectrogram": x[:, None], "label": torch.stack([label for _, label in items])}
    return batch if bool((frames == longest).all()) else batch | {"frames": frames}


class WaveClips:
    """Map-style dataset of (spectrogram, label) from audio files, each cut to at most `seconds`.

    train: a random cut, and a random circular shift of the waveform (roll); else the first `seconds`. balance: item i
    is drawn anew, a clip with probability proportional to the sum of 1 / count over its classes (AS-2M's balanced
    sampling).
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor,
        *,
        seconds: float,
        num_mel_bins: int,
        train: bool,
        balance: bool = False,
    ) -> None:
        self.paths, self.labels = list(paths), labels
        self.samples, self.num_mel_bins, self.train = round(seconds * SAMPLE_RATE), num_mel_bins, train
        self.cumulative: Tensor | None = None
        if balance:
            share = labels / labels.sum(0).clamp(min=1)
            self.cumulative = share.sum(1, dtype=torch.float64).cumsum(0)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.cumulative is not None:
            draw = torch.rand((), dtype=torch.float64) * self.cumulative[-1]
            index = min(int(torch.searchsorted(self.cumulative, draw, right=True)), len(self) - 1)
        waveform, _ = load_audio(self.paths[index], SAMPLE_RATE)
        if self.train:
            spare = len(waveform) - self.samples
            start = int(torch.randint(spare + 1, ())) if spare > 0 else 0
            waveform = waveform[start : start + self.samples]
            waveform = waveform.roll(int(torch.randint(len(waveform), ())))
        else:
            waveform = waveform[: self.samples]
        return spectrogram(waveform, self.num_mel_bins, name=str(self.paths[index])), self.labels[index]


def read_classes(path: Path) -> dict[str, int]:
    """class_labels_indices.csv (index,mid,display_name) -> {mid: index}."""
    with _open(path) as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"index", "mid"} <= rows[0].keys():
        raise EncoreError(
            f"{path}: expected the columns index,mid,display_name; use AudioSet's class_labels_indices.csv"
        )
    return {row["mid"]: int(row["index"]) for row in rows}


def read_segments(path: Path, classes: dict[str, int], root: Path) -> tuple[list[Path], Tensor]:
    """An AudioSet segment list -> files under root and their labels, (clips, classes) float 0/1.

    Lines are `YTID, start, end, "mid,mid,..."`, `#` opens a comment. A clip is root/YTID.wav or root/YYTID.wav (both
    names are in use). Segments without a file are skipped, counted and reported in one warning; none left is an
    EncoreError.
    """
    paths, rows, missing = [], [], []
    with _open(path) as file:
        for number, row in enumerate(csv.reader(file, skipinitialspace=True), start=1):
            if not row or row[0].startswith("#"):
                continue
            if len(row) != 4:
                raise EncoreError(
                    f'{path}, line {number}: expected `YTID, start, end, "labels"`, got {len(row)} fields'
                )
            unknown = [mid for mid in row[3].split(",") if mid not in classes]
            if unknown:
                raise EncoreError(f"{path}, line {number}: label {unknown[0]!r} is not in the class list")
            found = next((p for p in (root / f"{row[0]}.wav", root / f"Y{row[0]}.wav") if p.exists()), None)
            if found is None:
                missing.append(row[0])
                continue
            label = torch.zeros(len(classes))
            label[[classes[mid] for mid in row[3].split(",")]] = 1
            paths.append(found)
            rows.append(label)
    if not paths:
        raise EncoreError(f"{path}: none of its {len(missing)} segments has a file in {root}; expected YTID.wav there")
    if missing:
        warnings.warn(
            f"{path.name}: {len(missing)} of {len(missing) + len(paths)} segments have no file in {root} "
            f"and are skipped (first: {missing[0]})",
            stacklevel=2,
        )
    return paths, torch.stack(rows)


def _open(path: Path) -> Any:
    try:
        return path.open(newline="")
    except OSError as error:
        raise EncoreError(f"{path}: cannot be read ({error.strerror}); check the data folder") from None


class _Clips(L.LightningDataModule):
    """Loaders over self.train_set and self.val_set, which `setup` of each module below fills."""

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.train_set: Any = None
        self.val_set: Any = None

    def train_dataloader(self) -> DataLoader:
        return train_loader(
            self.train_set,
            self.batch_size,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=pad_batch,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, self.batch_size, collate_fn=pad_batch, num_workers=self.num_workers)


class AudioSetData(_Clips):
    """AudioSet on disk: root/train_csv and root/eval_csv (segment lists), root/classes_csv, and two wav folders."""

    def __init__(
        self,
        root: str,
        *,
        train_csv: str = "unbalanced_train_segments.csv",
        train_audio: str = "unbalanced_train",
        eval_csv: str = "eval_segments.csv",
        eval_audio: str = "eval",
        classes_csv: str = "class_labels_indices.csv",
        seconds: float = 10.0,
        num_mel_bins: int = 128,
        balance: bool = False,
        batch_size: int = 35,
        num_workers: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.root = Path(root)
        self.train_files, self.eval_files, self.classes_csv = (
            (train_csv, train_audio),
            (eval_csv, eval_audio),
            classes_csv,
        )
        self.seconds, self.num_mel_bins, self.balance = seconds, num_mel_bins, balance

    def setup(self, stage: str | None = None) -> None:
        classes = read_classes(self.root / self.classes_csv)

        def clips(files: tuple[str, str], train: bool) -> WaveClips:
            paths, labels = read_segments(self.root / files[0], classes, self.root / files[1])
            return WaveClips(
                paths,
                labels,
                seconds=self.seconds,
                num_mel_bins=self.num_mel_bins,
                train=train,
                balance=train and self.balance,
            )

        self.train_set, self.val_set = clips(self.train_files, True), clips(self.eval_files, False)


class ESC50Data(_Clips):
    """ESC-50 as published: root/meta/esc50.csv (filename, fold, target) and root/audio/*.wav; one fold held out."""

    def __init__(
        self,
        root: str,
        *,
        fold: int = 1,
        num_mel_bins: int = 128,
        batch_size: int = 16,
        num_workers: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.root, self.fold, self.num_mel_bins = Path(root), fold, num_mel_bins

    def setup(self, stage: str | None = None) -> None:
        table = self.root / "meta" / "esc50.csv"
        with _open(table) as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"filename", "fold", "target"} <= rows[0].keys():
            raise EncoreError(f"{table}: expected the columns filename,fold,target; use ESC-50's own table")

        def clips(chosen: list[dict[str, str]], train: bool) -> WaveClips:
            if not chosen:
                raise EncoreError(f"{table}: no clip {'outside' if train else 'in'} fold {self.fold}; folds are 1 to 5")
            paths = [self.root / "audio" / row["filename"] for row in chosen]
            labels = torch.tensor([int(row["target"]) for row in chosen])
            return WaveClips(paths, labels, seconds=5.0, num_mel_bins=self.num_mel_bins, train=train)

        self.train_set = clips([row for row in rows if int(row["fold"]) != self.fold], True)
        self.val_set = clips([row for row in rows if int(row["fold"]) == self.fold], False)


class SpeechCommandsData(_Clips):
    """Speech Commands V2 as published: root/<word>/*.wav of one second; root/testing_list.txt is held out.

    Clips of validation_list.txt are left out of training, as in the official split.
    """

    def __init__(
        self, root: str, *, num_mel_bins: int = 128, batch_size: int = 64, num_workers: int = 8, seed: int = 0
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.root, self.num_mel_bins = Path(root), num_mel_bins

    def setup(self, stage: str | None = None) -> None:
        lists = {}
        for name in ("validation_list.txt", "testing_list.txt"):
            with _open(self.root / name) as file:
                lists[name] = set(file.read().split())
        files = sorted(p for p in self.root.glob("*/*.wav") if not p.parent.name.startswith("_"))
        words = sorted({path.parent.name for path in files})
        test = [path for path in files if path.relative_to(self.root).as_posix() in lists["testing_list.txt"]]
        left_out = lists["validation_list.txt"] | lists["testing_list.txt"]
        train = [path for path in files if path.relative_to(self.root).as_posix() not in left_out]
        if not train or not test:
            raise EncoreError(
                f"{self.root}: no clips to train or to test on; expected <word>/*.wav and the split lists"
            )

        def clips(paths: list[Path], training: bool) -> WaveClips:
            labels = torch.tensor([words.index(path.parent.name) for path in paths])
            return WaveClips(paths, labels, seconds=1.0, num_mel_bins=self.num_mel_bins, train=training)

        self.train_set, self.val_set = clips(train, True), clips(test, False)


class Crops:
    """Map-style dataset of (random crop of `frames` frames, class) from spectrograms in memory.

    fixed: the crop in the middle, for validation. EncoreError for a clip that is shorter than a crop.
    """

    def __init__(self, clips: Sequence[Tensor], labels: Tensor, frames: int, *, fixed: bool = False) -> None:
        short = [i for i, clip in enumerate(clips) if len(clip) < frames]
        if short:
            raise EncoreError(f"clip {short[0]} has {len(clips[short[0]])} frames, fewer than a crop of {frames}")
        self.clips, self.labels, self.frames, self.fixed = clips, labels, frames, fixed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        clip = self.clips[index]
        spare = len(clip) - self.frames
        start = spare // 2 if self.fixed else int(torch.randint(spare + 1, ()))
        return clip[start : start + self.frames], self.labels[index]


class ESC10Data(_Clips):
    """The named source esc10 (400 clips, 10 classes, 5 folds) as crops of `frames` frames; one fold held out."""

    def __init__(
        self,
        *,
        fold: int = 1,
        frames: int = 128,
        num_mel_bins: int = 64,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.fold, self.frames, self.num_mel_bins = fold, frames, num_mel_bins

    def setup(self, stage: str | None = None) -> None:
        waves, labels, folds = load_esc10()
        clips = [spectrogram(wave, self.num_mel_bins) for wave in waves]
        for name, held_out in (("train_set", False), ("val_set", True)):
            chosen = np.flatnonzero((folds == self.fold) == held_out)
            crops = Crops([clips[i] for i in chosen], torch.from_numpy(labels[chosen]), self.frames, fixed=held_out)
            setattr(self, name, crops)


def load_esc10() -> tuple[list[Tensor], np.ndarray, np.ndarray]:
    """ESC-10 at 16 kHz: waveforms (samples,), labels 0-9 and folds 1-5, (400,) int64 each."""
    from common import sources
    from common.formats.tables import decode_audio, read_table

    table = read_table(sources.locate("esc10")["all.parquet"], ["audio", "label", "fold"])
    waves = [torch.from_numpy(decode_audio(cell)[0]) for cell in table["audio"]]
    return waves, np.array(table["label"], dtype=np.int64), np.array(table["fold"], dtype=np.int64)


class SoundsData(_Clips):
    """Generated sounds of ten classes (common.worlds.sounds) as crops of `frames` frames."""

    num_classes = len(CLASSES)

    def __init__(
        self,
        *,
        num_clips: int = 200,
        seconds: float = 2.0,
        frames: int = 128,
        num_mel_bins: int = 64,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.num_clips, self.seconds, self.frames, self.num_mel_bins = num_clips, seconds, frames, num_mel_bins

    def setup(self, stage: str | None = None) -> None:
        def crops(num_clips: int, seed: int, fixed: bool) -> Crops:
            clips = SoundClips(num_clips, seconds=self.seconds, sample_rate=SAMPLE_RATE, seed=seed)
            waves, labels = zip(*(clips[i] for i in range(num_clips)))
            spectrograms = [spectrogram(wave, self.num_mel_bins) for wave in waves]
            return Crops(spectrograms, torch.tensor(labels), self.frames, fixed=fixed)

        self.train_set = crops(self.num_clips, self.seed, fixed=False)
        self.val_set = crops(max(10, self.num_clips // 4), self.seed + 1, fixed=True)

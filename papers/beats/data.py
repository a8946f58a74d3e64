"""Clips as normalised spectrograms: AudioSet's segment lists, ESC-50's table, speech sets, ESC-10, generated sounds.

A batch is {"spectrogram": (B, 1, T, M), "label": (B,) class or (B, C) 0/1}, and "frames": (B,) valid frames when a clip
in it is shorter than the others (the rest of its row is zero).
"""

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import EncoreError
from common.formats.audio import kaldi_fbank, load_audio
from common.formats.lines import table_rows, text_lines
from common.formats.speech import Clips, Parts, iemocap, speech_command_words, speech_commands
from common.training.loaders import Balanced, Loaders
from common.worlds.sounds import SoundClips
from papers.beats.model import FBANK_MEAN, FBANK_STD

Batch = dict[str, Tensor]
SAMPLE_RATE = 16000


def spectrogram(
    waveform: Tensor, num_mel_bins: int = 128, *, mean: float = FBANK_MEAN, std: float = FBANK_STD, name: str = "clip"
) -> Tensor:
    """(samples,) at 16 kHz -> (frames, mels): Kaldi fbank, (x - mean) / (2 std), so about N(0, 0.5^2).

    EncoreError, naming the clip, when it is shorter than one 25 ms frame.
    """
    return (kaldi_fbank(waveform, SAMPLE_RATE, num_mel_bins, name=name) - mean) / (2 * std)


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

    train: a random cut, and a random circular shift of the waveform (roll); else the first `seconds`.
    """

    def __init__(self, clips: Clips, *, seconds: float, num_mel_bins: int, train: bool) -> None:
        self.paths, self.labels = clips
        self.samples, self.num_mel_bins, self.train = round(seconds * SAMPLE_RATE), num_mel_bins, train

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        waveform, _ = load_audio(self.paths[index], SAMPLE_RATE)
        if self.train:
            spare = len(waveform) - self.samples
            start = int(torch.randint(spare + 1, ())) if spare > 0 else 0
            waveform = waveform[start : start + self.samples]
            waveform = waveform.roll(int(torch.randint(len(waveform), ())))
        else:
            waveform = waveform[: self.samples]
        return spectrogram(waveform, self.num_mel_bins, name=str(self.paths[index])), self.labels[index]


class AudioFiles(Loaders):
    """A labelled set on disk below `root`; a subclass says which files and labels each part has.

    balance: every training clip is drawn anew, all classes equally often (AS-2M's balanced sampling).
    """

    collate = staticmethod(pad_batch)

    def __init__(
        self, root: str, *, seconds: float, num_mel_bins: int = 128, balance: bool = False, **loaders: Any
    ) -> None:
        super().__init__(**loaders)
        self.root, self.seconds, self.num_mel_bins, self.balance = Path(root), seconds, num_mel_bins, balance

    def parts(self) -> Parts:
        """Files and labels of training, validation and test."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        parts = self.parts()
        sets = [
            WaveClips(part, seconds=self.seconds, num_mel_bins=self.num_mel_bins, train=part is parts.train)
            for part in parts
        ]
        self.train = Balanced(sets[0], parts.train.labels) if self.balance else sets[0]
        self.valid, self.test = sets[1:]


def read_classes(path: Path) -> dict[str, int]:
    """class_labels_indices.csv (index,mid,display_name) -> {mid: index}."""
    rows = table_rows(path, "index", "mid")
    try:
        return {row["mid"]: int(row["index"]) for row in rows}
    except ValueError as error:
        raise EncoreError(f"{path}: an index is no number ({error}); use AudioSet's own file") from None


def read_segments(path: Path, classes: dict[str, int], root: Path) -> Clips:
    """An AudioSet segment list -> files under root and their labels, (clips, classes) float 0/1.

    Lines are `YTID, start, end, "mid,mid,..."`, `#` opens a comment. A clip is root/YTID.wav or root/YYTID.wav (both
    names are in use). Segments without a file are skipped, counted and reported in one warning; none left is an
    EncoreError.
    """
    paths, rows, missing = [], [], []
    for number, row in enumerate(csv.reader(text_lines(path), skipinitialspace=True), start=1):
        if not row or row[0].startswith("#"):
            continue
        if len(row) != 4:
            raise EncoreError(f'{path}, line {number}: expected `YTID, start, end, "labels"`, got {len(row)} fields')
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
    return Clips(paths, torch.stack(rows))


class AudioSetData(AudioFiles):
    """AudioSet on disk: root/train_csv and root/eval_csv (segment lists), root/classes_csv, and two wav folders. The
    evaluation list serves for validation and test."""

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
        **clips: Any,
    ) -> None:
        super().__init__(root, seconds=seconds, **clips)
        self.lists = ((train_csv, train_audio), (eval_csv, eval_audio))
        self.classes_csv = classes_csv

    def parts(self) -> Parts:
        classes = read_classes(self.root / self.classes_csv)
        train, held_out = (read_segments(self.root / csv, classes, self.root / audio) for csv, audio in self.lists)
        return Parts(train, held_out, held_out)


class ESC50Data(AudioFiles):
    """ESC-50 as published: root/meta/esc50.csv (filename, fold, target) and root/audio/*.wav; one fold held out, for
    validation and test."""

    def __init__(self, root: str, *, fold: int = 1, seconds: float = 5.0, **clips: Any) -> None:
        super().__init__(root, seconds=seconds, **clips)
        self.fold = fold

    def parts(self) -> Parts:
        table = self.root / "meta" / "esc50.csv"
        rows = table_rows(table, "filename", "fold", "target")
        try:
            numbers = [(int(row["fold"]), int(row["target"])) for row in rows]
        except ValueError as error:
            raise EncoreError(f"{table}: a fold or target is no number ({error}); use ESC-50's own table") from None
        clips = []
        for inside in (False, True):
            chosen = [(row["filename"], n) for row, (fold, n) in zip(rows, numbers) if (fold == self.fold) is inside]
            if not chosen:
                raise EncoreError(
                    f"{table}: no clip {'in' if inside else 'outside'} fold {self.fold}; folds are 1 to 5"
                )
            labels = torch.tensor([label for _, label in chosen])
            clips.append(Clips([self.root / "audio" / name for name, _ in chosen], labels))
        return Parts(clips[0], clips[1], clips[1])


class SpeechCommandsV1(AudioFiles):
    """Speech Commands V1, 12 classes drawn equally often, as SUPERB splits it; see common.formats.speech.

    A silence is a random second of a background recording in training, the first elsewhere. test_root: the official
    test archive.
    """

    def __init__(self, root: str, *, test_root: str | None = None, seconds: float = 1.0, **clips: Any) -> None:
        super().__init__(root, seconds=seconds, balance=True, **clips)
        self.test_root = None if test_root is None else Path(test_root)

    def parts(self) -> Parts:
        return speech_commands(self.root, self.test_root)


class SpeechCommandsV2(AudioFiles):
    """Speech Commands V2: a class for each of its 35 words, split by its lists."""

    def __init__(self, root: str, *, seconds: float = 1.0, **clips: Any) -> None:
        super().__init__(root, seconds=seconds, **clips)

    def parts(self) -> Parts:
        return speech_command_words(self.root)


class IEMOCAPData(AudioFiles):
    """IEMOCAP, four emotions; fold names the session to test on, see common.formats.speech."""

    def __init__(
        self,
        root: str,
        *,
        fold: int = 1,
        validation_share: float = 0.2,
        split_seed: int = 0,
        seconds: float = 10.0,
        **clips: Any,
    ) -> None:
        super().__init__(root, seconds=seconds, **clips)
        self.fold, self.validation_share, self.split_seed = fold, validation_share, split_seed

    def parts(self) -> Parts:
        return iemocap(self.root, self.fold, validation_share=self.validation_share, split_seed=self.split_seed)


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


class ESC10Data(Loaders):
    """The named source esc10 (400 clips, 10 classes, 5 folds) as crops of `frames` frames; one fold held out."""

    collate = staticmethod(pad_batch)

    def __init__(self, *, fold: int = 1, frames: int = 128, num_mel_bins: int = 64, **loaders: Any) -> None:
        super().__init__(**loaders)
        self.fold, self.frames, self.num_mel_bins = fold, frames, num_mel_bins

    def setup(self, stage: str | None = None) -> None:
        waves, labels, folds = load_esc10()
        clips = [spectrogram(wave, self.num_mel_bins) for wave in waves]
        for part, held_out in (("train", False), ("valid", True)):
            chosen = np.flatnonzero((folds == self.fold) == held_out)
            crops = Crops([clips[i] for i in chosen], torch.from_numpy(labels[chosen]), self.frames, fixed=held_out)
            setattr(self, part, crops)


def load_esc10() -> tuple[list[Tensor], np.ndarray, np.ndarray]:
    """ESC-10 at 16 kHz: waveforms (samples,), labels 0-9 and folds 1-5, (400,) int64 each."""
    from common import sources
    from common.formats.tables import decode_audio, read_table

    table = read_table(sources.locate("esc10")["all.parquet"], ["audio", "label", "fold"])
    waves = [torch.from_numpy(decode_audio(cell)[0]) for cell in table["audio"]]
    return waves, np.array(table["label"], dtype=np.int64), np.array(table["fold"], dtype=np.int64)


class SoundsData(Loaders):
    """Generated sounds of ten classes (common.worlds.sounds) as crops of `frames` frames."""

    collate = staticmethod(pad_batch)

    def __init__(
        self,
        *,
        num_clips: int = 200,
        seconds: float = 2.0,
        frames: int = 128,
        num_mel_bins: int = 64,
        **loaders: Any,
    ) -> None:
        super().__init__(**loaders)
        self.num_clips, self.seconds, self.frames, self.num_mel_bins = num_clips, seconds, frames, num_mel_bins

    def setup(self, stage: str | None = None) -> None:
        def crops(num_clips: int, seed: int, fixed: bool) -> Crops:
            clips = SoundClips(num_clips, seconds=self.seconds, sample_rate=SAMPLE_RATE, seed=seed)
            waves, labels = zip(*(clips[i] for i in range(num_clips)))
            spectrograms = [spectrogram(wave, self.num_mel_bins) for wave in waves]
            return Crops(spectrograms, torch.tensor(labels), self.frames, fixed=fixed)

        self.train = crops(self.num_clips, self.seed, fixed=False)
        self.valid = crops(max(10, self.num_clips // 4), self.seed + 1, fixed=True)

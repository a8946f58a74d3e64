"""Labelled data for the probes, in its on-disk form: phones and speakers of LibriSpeech, Speech Commands.

A batch is {"features": (B, L, H), "lengths": (B,), "labels": (B, M) per frame, padded with -100, or (B,)}.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.errors import EncoreError
from common.formats.audio import load_audio
from common.formats.speech import (
    Bucketed,
    BucketLoaders,
    Clips,
    buckets,
    crop,
    length_table,
    pad,
    read_text,
    speech_commands,
)
from common.training.loaders import Balanced, Loaders
from papers.tera.data import IGNORED, Batch
from papers.tera.features import SAMPLE_RATE, Kind, extract

SUBSET = "train-clean-100"  # CPC's alignments and split are of this one
NUM_PHONES = 41
TRAIN_DEV_SEED = 1337
TRAIN_SHARE = 0.9  # of the training list; the rest is the development set

Item = tuple[Tensor, Tensor]  # features (L, H); label () or frame labels (M,)


def collate(items: Sequence[Item]) -> Batch:
    """[(features, label), ...] -> a padded batch."""
    features, labels = zip(*items)
    x, lengths = pad(features)
    stacked = torch.stack(labels) if labels[0].dim() == 0 else pad_sequence(list(labels), True, IGNORED)
    return {"features": x, "lengths": lengths, "labels": stacked}


class AudioItems:
    """Map-style dataset of (features, label) from audio files."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[Tensor] | Tensor, kind: Kind) -> None:
        self.paths, self.labels, self.kind = list(paths), labels, kind

    def __len__(self) -> int:
        return len(self.paths)

    def waveform(self, index: int) -> Tensor:
        """(samples,) at 16 kHz."""
        return load_audio(self.paths[index], SAMPLE_RATE)[0]

    def __getitem__(self, index: int) -> Item:
        return extract(self.waveform(index), self.kind, str(self.paths[index])), self.labels[index]


class Labelled(BucketLoaders):
    """Bucketed train, valid and test sets, filled by `setup` of each module below."""

    collate = staticmethod(collate)


def read_alignments(path: Path) -> dict[str, Tensor]:
    """CPC's converted_aligned_phones.txt: `utterance-id phone phone ...`, one of 41 classes every 10 ms.

    Returns {utterance: (frames,) int64}. EncoreError names the line of a class that is none.
    """
    found = {}
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), start=1):
        name, *phones = line.split()
        try:
            labels = [int(phone) for phone in phones]
        except ValueError:
            labels = []
        if not labels or not all(0 <= label < NUM_PHONES for label in labels):
            raise EncoreError(
                f"{path}, line {number}: expected `utterance-id` and phone classes 0 to {NUM_PHONES - 1}, one a frame"
            )
        found[name] = torch.tensor(labels)
    return found


def read_split(folder: Path) -> dict[str, list[str]]:
    """CPC's train_split.txt and test_split.txt (an utterance a line) -> {"train", "dev", "test": utterances}.

    A tenth of the training list is the development set, drawn as in the released code (shuffled with seed 1337).
    """
    training = read_text(folder / "train_split.txt").split()
    # its code shuffles lines, of which only the order matters: the result is the same for names
    random.Random(TRAIN_DEV_SEED).shuffle(training)
    first_dev = int(len(training) * TRAIN_SHARE)
    test = read_text(folder / "test_split.txt").split()
    return {"train": training[:first_dev], "dev": training[first_dev:], "test": test}


class LibriSpeechProbe(Labelled):
    """LibriSpeech train-clean-100 with CPC's labels and split, classified by phone or by speaker.

    root: LibriSpeech's own layout. labels: the folder of converted_aligned_phones.txt, train_split.txt and
    test_split.txt. tables: where the length table is kept, see data.length_table.
    """

    def __init__(
        self,
        root: str,
        labels: str,
        *,
        task: Literal["phone", "speaker"] = "phone",
        features: Kind = "mel",
        tables: str | None = None,
        **loaders: Any,
    ) -> None:
        super().__init__(**loaders)
        self.root, self.labels, self.task, self.features = Path(root), Path(labels), task, features
        self.tables = None if tables is None else Path(tables)

    def setup(self, stage: str | None = None) -> None:
        entries = {Path(path).stem: (path, length) for path, length in length_table(self.root, SUBSET, self.tables)}
        of: dict[str, Tensor]
        if self.task == "phone":
            of = read_alignments(self.labels / "converted_aligned_phones.txt")
        else:
            speakers = sorted({name.split("-")[0] for name in entries})
            of = {name: torch.tensor(speakers.index(name.split("-")[0])) for name in entries}
        split = read_split(self.labels)

        def bucketed(part: str) -> Bucketed:
            names = [name for name in split[part] if name in entries and name in of]
            if not names:
                raise EncoreError(
                    f"{self.labels}: no utterance of the {part} split has both audio in {self.root / SUBSET} and a "
                    "label; check both folders"
                )
            items = AudioItems([self.root / entries[n][0] for n in names], [of[n] for n in names], self.features)
            return Bucketed(items, buckets([entries[n][1] for n in names], self.batch_size, fewest=1))

        self.train, self.valid, self.test = bucketed("train"), bucketed("dev"), bucketed("test")


class SpeechCommandsProbe(Loaders):
    """Speech Commands V1 with 12 classes, drawn equally often in training; see common.formats.speech.

    A silence is a random second of a background recording in training, the first elsewhere. test_root: the official
    test archive.
    """

    collate = staticmethod(collate)

    def __init__(self, root: str, test_root: str, *, features: Kind = "mel", **loaders: Any) -> None:
        super().__init__(**loaders)
        self.root, self.test_root, self.features = Path(root), Path(test_root), features

    def setup(self, stage: str | None = None) -> None:
        parts = speech_commands(self.root, self.test_root)
        sets = [CommandClips(part, self.features, random_second=part is parts.train) for part in parts]
        self.train, self.valid, self.test = Balanced(sets[0], parts.train.labels), sets[1], sets[2]


class CommandClips(AudioItems):
    """Spoken commands; of a recording longer than a second one second is taken, at random or the first."""

    def __init__(self, clips: Clips, kind: Kind, *, random_second: bool) -> None:
        super().__init__(clips.paths, clips.labels, kind)
        self.random_second = random_second

    def waveform(self, index: int) -> Tensor:
        whole = super().waveform(index)
        return crop(whole, SAMPLE_RATE) if self.random_second else whole[:SAMPLE_RATE]

"""Labelled data for the probes, in its on-disk form: phones and speakers of LibriSpeech, Speech Commands.

A batch is {"features": (B, L, H), "lengths": (B,), "labels": (B, M) per frame, padded with -100, or (B,)}.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from common.errors import EncoreError
from common.formats.audio import load_audio
from common.training.loaders import train_loader
from papers.tera.data import IGNORED, Batch, Bucketed, bucket_loader, buckets, crop, length_table, pad
from papers.tera.features import SAMPLE_RATE, Kind, extract

SUBSET = "train-clean-100"  # CPC's alignments and split are of this one
NUM_PHONES = 41
TRAIN_DEV_SEED = 1337
TRAIN_SHARE = 0.9  # of the training list; the rest is the development set

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "unknown", "silence")

Item = tuple[Tensor, Tensor]  # features (L, H); label () or frame labels (M,)


def collate(items: Sequence[Item]) -> Batch:
    """[(features, label), ...] -> a padded batch."""
    features, labels = zip(*items)
    x, lengths = pad(features)
    stacked = torch.stack(labels) if labels[0].dim() == 0 else pad_sequence(list(labels), True, IGNORED)
    return {"features": x, "lengths": lengths, "labels": stacked}


class AudioItems:
    """Map-style dataset of (features, label) from audio files below root."""

    def __init__(self, root: Path, paths: Sequence[str], labels: Sequence[Tensor], kind: Kind) -> None:
        self.root, self.paths, self.labels, self.kind = root, list(paths), list(labels), kind

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        path = self.root / self.paths[index]
        return extract(load_audio(path, SAMPLE_RATE)[0], self.kind, str(path)), self.labels[index]


class Labelled(L.LightningDataModule):
    """Bucketed train_set, val_set and test_set, filled by `setup` of each module below."""

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.train_set: Bucketed | None = None
        self.val_set: Bucketed | None = None
        self.test_set: Bucketed | None = None

    def train_dataloader(self) -> DataLoader:
        assert self.train_set is not None
        return bucket_loader(
            self.train_set, collate, trainer=self.trainer, seed=self.seed, num_workers=self.num_workers
        )

    def _evaluate(self, dataset: Bucketed | None) -> DataLoader:
        return DataLoader(dataset, batch_size=None, collate_fn=collate, num_workers=self.num_workers)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return self._evaluate(self.val_set)

    def test_dataloader(self) -> DataLoader:
        return self._evaluate(self.test_set)


def read_alignments(path: Path) -> dict[str, Tensor]:
    """CPC's converted_aligned_phones.txt: `utterance-id phone phone ...`, one of 41 classes every 10 ms.

    Returns {utterance: (frames,) int64}. EncoreError names the line of a class that is none.
    """
    found = {}
    for number, line in enumerate(_read(path).splitlines(), start=1):
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
    training = _read(folder / "train_split.txt").split()
    # its code shuffles lines, of which only the order matters: the result is the same for names
    random.Random(TRAIN_DEV_SEED).shuffle(training)
    first_dev = int(len(training) * TRAIN_SHARE)
    test = _read(folder / "test_split.txt").split()
    return {"train": training[:first_dev], "dev": training[first_dev:], "test": test}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise EncoreError(f"{path}: cannot be read ({error}); check the data folder") from None


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
        batch_size: int = 32,
        num_workers: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
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
            items = AudioItems(self.root, [entries[n][0] for n in names], [of[n] for n in names], self.features)
            return Bucketed(items, buckets([entries[n][1] for n in names], self.batch_size, fewest=1))

        self.train_set, self.val_set, self.test_set = bucketed("train"), bucketed("dev"), bucketed("test")


class SpeechCommandsProbe(Labelled):
    """Speech Commands V1 with 12 classes: ten words, all other words as "unknown", and silence.

    root: <word>/*.wav, _background_noise_/*.wav, validation_list.txt and testing_list.txt of the training archive;
    test_root: the folders of the official test archive, one a class. Training draws all classes equally often; a
    silence is a random second of a background recording. Words of the testing list are not used.
    """

    def __init__(
        self,
        root: str,
        test_root: str,
        *,
        features: Kind = "mel",
        batch_size: int = 32,
        num_workers: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.root, self.test_root, self.features = Path(root), Path(test_root), features
        self.train_items: Any = None

    def setup(self, stage: str | None = None) -> None:
        testing, validation = (set(_read(self.root / f"{part}_list.txt").split()) for part in ("testing", "validation"))
        noises = _below(self.root, "_background_noise_/*.wav")
        words = [name for name in _below(self.root, "*/*.wav") if not name.startswith("_") and name not in testing]
        train = [name for name in words if name not in validation] + noises
        held = [name for name in words if name in validation] + noises
        self.train_items = Balanced(CommandClips(self.root, train, self.features, random_second=True))
        self.val_set = self._in_order(CommandClips(self.root, held, self.features, random_second=False))
        test = _below(self.test_root, "*/*.wav")
        self.test_set = self._in_order(CommandClips(self.test_root, test, self.features, random_second=False))

    def _in_order(self, clips: "CommandClips") -> Bucketed:
        order = range(len(clips))
        return Bucketed(clips, [list(order[i : i + self.batch_size]) for i in order[:: self.batch_size]])

    def train_dataloader(self) -> DataLoader:
        return train_loader(
            self.train_items,
            self.batch_size,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=collate,
            num_workers=self.num_workers,
        )


def _below(root: Path, pattern: str) -> list[str]:
    found = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
    if not found:
        raise EncoreError(f"{root}: no {pattern} there; unpack Speech Commands V0.01 and its test set as published")
    return found


def command_class(folder: str) -> int:
    """Class of a word's folder, of the test archive's "_unknown_" and "_silence_", and of "_background_noise_"."""
    if folder in ("_silence_", "_background_noise_"):
        return COMMANDS.index("silence")
    return COMMANDS.index(folder if folder in COMMANDS else "unknown")


class CommandClips(AudioItems):
    """Spoken commands; of a recording longer than a second one second is taken, at random or the first."""

    def __init__(self, root: Path, paths: Sequence[str], kind: Kind, *, random_second: bool) -> None:
        super().__init__(root, paths, [torch.tensor(command_class(path.split("/")[0])) for path in paths], kind)
        self.random_second = random_second

    def __getitem__(self, index: int) -> Item:
        path = self.root / self.paths[index]
        waveform, _ = load_audio(path, SAMPLE_RATE)
        second = crop(waveform, SAMPLE_RATE) if self.random_second else waveform[:SAMPLE_RATE]
        return extract(second, self.kind, str(path)), self.labels[index]


class Balanced:
    """Draws every item anew: a class at random, then one of its items."""

    def __init__(self, dataset: AudioItems) -> None:
        self.dataset = dataset
        labels = torch.stack(dataset.labels)
        self.of_class = [(labels == c).nonzero().flatten().tolist() for c in labels.unique()]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        members = self.of_class[int(torch.randint(len(self.of_class), ()))]
        return self.dataset[members[int(torch.randint(len(members), ()))]]

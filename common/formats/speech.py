"""Speech sets as published: which files and labels each part has, and batches of utterances of nearly equal length.

torchaudio's readers of the same sets are no help here: SPEECHCOMMANDS leaves the background recordings out and does not
know the test archive, IEMOCAP stops at the "._" files that its own release holds, and neither says what is missing.
"""

import csv
import math
import random
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from common.errors import EncoreError
from common.formats.lines import table_rows
from common.training.loaders import Loaders, train_loader

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "unknown", "silence")
BACKGROUND = "_background_noise_"

EMOTIONS = ("ang", "hap", "neu", "sad")
MERGED = {"exc": "hap"}
LEFT_OUT = {"fru", "sur", "fea", "dis", "oth", "xxx"}  # codes of IEMOCAP that are none of the four; xxx: no agreement
SESSIONS = range(1, 6)
TURN = re.compile(r"\[[\d.]+ - [\d.]+\]\t(?P<utterance>\S+)\t(?P<emotion>[a-z]+)\t\[.*\]")

Entry = tuple[str, int]  # path below the root, length in samples (audio) or frames (stored features)


class Clips(NamedTuple):
    """Audio files and their classes, (N,) int64."""

    paths: list[Path]
    labels: Tensor


class Parts(NamedTuple):
    """A labelled set, split as published: valid is for choosing the checkpoint, test for the number."""

    train: Clips
    valid: Clips
    test: Clips


def command_class(folder: str) -> int:
    """Class of a word's folder, of _background_noise_, and of the test archive's _unknown_ and _silence_."""
    if folder in ("_silence_", BACKGROUND):
        return COMMANDS.index("silence")
    return COMMANDS.index(folder if folder in COMMANDS else "unknown")


def speech_commands(root: Path, test_root: Path | None = None) -> Parts:
    """Speech Commands with 12 classes, as SUPERB splits V1: ten words, every other word as "unknown", the background
    recordings as "silence".

    root: <word>/*.wav, _background_noise_/*.wav, validation_list.txt, testing_list.txt; a clip in neither list is for
    training. The lists name no background recording: all of them serve every part. test_root: the folders of the
    official test archive, one a class, which then replace the testing list's clips (these stay out of training).
    """
    train, valid, test = _commands(root)
    noises = _below(root, f"{BACKGROUND}/*.wav")
    test = test + noises if test_root is None else _below(test_root, "*/*.wav")
    parts = (train + noises, valid + noises, test)
    return Parts(*(Clips(p, torch.tensor([command_class(path.parent.name) for path in p])) for p in parts))


def speech_command_words(root: Path) -> Parts:
    """Speech Commands with a class for every word (35 in V2), in alphabetical order; files and lists as above."""
    parts = _commands(root)
    words = sorted({path.parent.name for part in parts for path in part})
    return Parts(*(Clips(p, torch.tensor([words.index(path.parent.name) for path in p])) for p in parts))


def _commands(root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Words to train on, in the validation list and in the testing list. EncoreError names a list without a clip."""
    listed = []
    for name in ("validation_list.txt", "testing_list.txt"):
        listed.append({root / line for line in read_text(root / name).split()})
        if not any(path.exists() for path in listed[-1]):
            raise EncoreError(f"{root / name}: names no clip below {root}; expected <word>/<clip>.wav a line")
    validation, testing = listed
    words = [path for path in _below(root, "*/*.wav") if not path.parent.name.startswith("_")]
    train = [path for path in words if path not in validation | testing]
    if not train:
        raise EncoreError(f"{root}: no clip is left to train on; its lists name all of them")
    return train, [path for path in words if path in validation], [path for path in words if path in testing]


def iemocap(root: Path, fold: int, *, validation_share: float = 0.2, split_seed: int = 0) -> Parts:
    """IEMOCAP's full release: 5,531 utterances of four emotions (ang, hap with exc, neu, sad) in five sessions.

    root: Session{1..5}/dialog/EmoEvaluation/*.txt and Session{1..5}/sentences/wav/<dialogue>/<utterance>.wav. fold: the
    session to test on. Of the other four, `validation_share` of the utterances, drawn from `split_seed`, are valid.
    """
    if fold not in SESSIONS:
        raise EncoreError(f"fold {fold}: IEMOCAP has sessions 1 to 5; fold names the one to test on")
    sessions = {number: read_session(root / f"Session{number}") for number in SESSIONS}
    others = [clip for number in SESSIONS if number != fold for clip in sessions[number]]
    random.Random(split_seed).shuffle(others)
    count = round(len(others) * validation_share)
    if not 0 < count < len(others):
        raise EncoreError(
            f"validation_share {validation_share}: leaves {count} of {len(others)} utterances of {root} "
            "to validate on; training and validation need one or more each"
        )
    if not sessions[fold]:
        raise EncoreError(f"{root / f'Session{fold}'}: no utterance of {', '.join(EMOTIONS)} to test on")
    parts = (others[count:], others[:count], sessions[fold])
    return Parts(*(Clips([path for path, _ in p], torch.tensor([label for _, label in p])) for p in parts))


def read_session(folder: Path) -> list[tuple[Path, int]]:
    """One session's utterances of the four emotions, (wav, class), sorted by file; exc counts as hap.

    EncoreError when it has no EmoEvaluation file, or an utterance no recording.
    """
    tables = sorted(p for p in (folder / "dialog" / "EmoEvaluation").glob("*.txt") if not p.name.startswith("."))
    if not tables:
        raise EncoreError(f"{folder / 'dialog' / 'EmoEvaluation'}: no *.txt there; unpack IEMOCAP's full release")
    clips = []
    for table in tables:
        for utterance, code in read_emotions(table).items():
            emotion = MERGED.get(code, code)
            if emotion in EMOTIONS:
                wav = folder / "sentences" / "wav" / table.stem / f"{utterance}.wav"
                if not wav.exists():
                    raise EncoreError(f"{wav}: no such recording, but {table} labels it; unpack the full release")
                clips.append((wav, EMOTIONS.index(emotion)))
    return sorted(clips)


def read_emotions(path: Path) -> dict[str, str]:
    """An EmoEvaluation file -> {utterance: emotion code}.

    A turn is a line `[start - end]<tab>utterance<tab>code<tab>[valence, activation, dominance]`. Lines of single
    annotators, comments and blank ones are passed over. EncoreError names the line of a turn that reads otherwise or
    has a code that IEMOCAP does not know, and a file without any turn.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.startswith("["):
            continue
        turn = TURN.fullmatch(line.rstrip())
        if turn is None:
            raise EncoreError(
                f"{path}, line {number}: expected `[start - end]`, utterance, emotion and `[v, a, d]` between tabs"
            )
        if turn["emotion"] not in {*EMOTIONS, *MERGED, *LEFT_OUT}:
            raise EncoreError(f"{path}, line {number}: emotion {turn['emotion']!r} is none of IEMOCAP's codes")
        found[turn["utterance"]] = turn["emotion"]
    if not found:
        raise EncoreError(f"{path}: holds no turn (`[start - end]<tab>utterance<tab>...`); use IEMOCAP's own file")
    return found


def length_table(root: Path, subset: str, tables: Path | None = None) -> list[Entry]:
    """Audio files of LibriSpeech's root/subset (root/subset/speaker/chapter/*.flac) with their samples, longest first.

    With `tables` given, tables/<subset>.csv in s3prl's layout (index,file_path,length,label) is read, or written when
    it is not there: reading the headers of 281,000 files takes a while.
    """
    table = None if tables is None else tables / f"{subset}.csv"
    if table is not None and table.exists():
        return read_table(table)
    files = sorted((root / subset).rglob("*.flac"))
    if not files:
        raise EncoreError(f"{root / subset}: no .flac files below it; expected LibriSpeech's speaker/chapter/*.flac")
    entries = [(path.relative_to(root).as_posix(), _samples(path)) for path in files]
    entries.sort(key=lambda entry: -entry[1])
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["", "file_path", "length", "label"])
            writer.writerows([i, path, length, ""] for i, (path, length) in enumerate(entries))
    return entries


def read_table(table: Path) -> list[Entry]:
    """A length table (index,file_path,length,label), longest first."""
    try:
        entries = [(row["file_path"], int(row["length"])) for row in table_rows(table, "file_path", "length")]
    except ValueError as error:
        raise EncoreError(f"{table}: a length is no number ({error}); write it anew or delete it") from None
    return sorted(entries, key=lambda entry: -entry[1])


def _samples(path: Path) -> int:
    try:
        return soundfile.info(str(path)).frames
    except (soundfile.LibsndfileError, OSError) as error:
        raise EncoreError(f"{path}: not a readable audio file ({error}); remove or replace it") from None


def buckets(lengths: Sequence[int], size: int, *, longer_than: int = 0, fewest: int = 2) -> list[list[int]]:
    """Indices of utterances in batches of `size` of nearly equal length: sorted, longest first, cut in a row.

    Only utterances longer than `longer_than`; an incomplete last batch stays when it holds at least `fewest`.
    """
    order = sorted((i for i, length in enumerate(lengths) if length > longer_than), key=lambda i: -lengths[i])
    cut = [order[i : i + size] for i in range(0, len(order), size)]
    return [batch for batch in cut if len(batch) >= min(size, fewest)]


class Bucketed:
    """Map-style dataset whose item i is the list of a dataset's items in bucket i."""

    def __init__(self, dataset: Any, batches: Sequence[Sequence[int]]) -> None:
        self.dataset, self.batches = dataset, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[Any]:
        return [self.dataset[i] for i in self.batches[index]]


def bucket_loader(
    dataset: Bucketed, collate: Callable[[list[Any]], Any], *, trainer: Any, seed: int, num_workers: int = 0
) -> DataLoader:
    """Training batches from buckets in random order.

    An epoch is a multiple of the trainer's accumulation, so that every optimizer step has all its micro-batches.
    """
    world, accumulate = (1, 1) if trainer is None else (trainer.world_size, trainer.accumulate_grad_batches)
    return train_loader(
        dataset,
        1,
        seed=seed,
        num_batches=math.ceil(len(dataset) / world / accumulate) * accumulate,
        trainer=trainer,
        collate_fn=partial(_collate_bucket, collate),
        num_workers=num_workers,
    )


def _collate_bucket(collate: Callable[[list[Any]], Any], one: list[list[Any]]) -> Any:
    return collate(one[0])


class BucketLoaders(Loaders):
    """Loaders whose train, valid and test are Bucketed: a bucket is a batch."""

    def train_dataloader(self) -> DataLoader:
        return bucket_loader(
            self._there("train"), self.collate, trainer=self.trainer, seed=self.seed, num_workers=self.num_workers
        )

    def evaluation(self, dataset: Any, batch_size: int | None = None, collate: Any = None) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=None,
            collate_fn=collate or self.collate,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed),
        )


def crop(x: Tensor, longest: int) -> Tensor:
    """`longest` entries of the first dimension from a random place, or x when it has no more."""
    spare = len(x) - longest
    start = int(torch.randint(spare + 1, ())) if spare > 0 else 0
    return x[start : start + longest]


def pad(items: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[(L_i, H), ...] -> (B, L, H) padded with zeros, and the lengths (B,)."""
    return pad_sequence(list(items), batch_first=True), torch.tensor([len(item) for item in items])


def _below(root: Path, pattern: str) -> list[Path]:
    found = sorted(root.glob(pattern))
    if not found:
        raise EncoreError(f"{root}: no {pattern} there; unpack Speech Commands (and its test set) as published")
    return found


def read_text(path: Path) -> str:
    """A text file; what is not UTF-8 in it is replaced, for annotators' notes come in any encoding."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise EncoreError(f"{path}: cannot be read ({error.strerror}); check the data folder") from None

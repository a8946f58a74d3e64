"""Speech Commands V1 (12 classes) and IEMOCAP (4 emotions) on disk, split as SUPERB splits them.

Both have three parts. Fine-tuning reports the accuracy of `held_out` as val/accuracy: "validation" while training, to
choose the checkpoint, and "test" for the number of the paper:

    python -m papers.beats.train validate --config CONFIG --ckpt_path best.ckpt --data.init_args.held_out test
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from common.errors import EncoreError
from papers.beats.data import WaveClips, _Clips, pad_batch

Part = Literal["validation", "test"]

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "unknown", "silence")
BACKGROUND = "_background_noise_"

EMOTIONS = ("ang", "hap", "neu", "sad")
MERGED = {"exc": "hap"}
LEFT_OUT = {"fru", "sur", "fea", "dis", "oth", "xxx"}  # codes of IEMOCAP that are none of the four; xxx: no agreement
SESSIONS = range(1, 6)
TURN = re.compile(r"\[[\d.]+ - [\d.]+\]\t(?P<utterance>\S+)\t(?P<emotion>[a-z]+)\t\[.*\]")


class _ThreeParts(_Clips):
    """Adds a test set; val_dataloader serves the part that `held_out` names."""

    def __init__(self, batch_size: int, num_workers: int, seed: int, held_out: Part) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.held_out = held_out
        self.test_set: Any = None

    def _in_order(self, clips: Any) -> DataLoader:
        return DataLoader(clips, self.batch_size, collate_fn=pad_batch, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        return self._in_order(self.test_set if self.held_out == "test" else self.val_set)

    def test_dataloader(self) -> DataLoader:
        return self._in_order(self.test_set)


def command_class(folder: str) -> int:
    """Class of a word's folder, of _background_noise_, and of the test archive's _unknown_ and _silence_."""
    if folder in ("_silence_", BACKGROUND):
        return COMMANDS.index("silence")
    return COMMANDS.index(folder if folder in COMMANDS else "unknown")


class SpeechCommandsV1(_ThreeParts):
    """Speech Commands V1: ten words, every other word as "unknown", and one-second cuts of the background as "silence".

    root: <word>/*.wav, _background_noise_/*.wav, validation_list.txt, testing_list.txt; a clip in neither list is for
    training. The lists name no background recording: all of them serve every part, at a random second in training, at
    the first elsewhere. test_root: the folders of the official test archive, one a class, which then replace the
    testing list's clips (these stay out of training all the same). Training draws all classes equally often.
    """

    def __init__(
        self,
        root: str,
        *,
        test_root: str | None = None,
        held_out: Part = "validation",
        num_mel_bins: int = 128,
        batch_size: int = 64,
        num_workers: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, held_out)
        self.root, self.num_mel_bins = Path(root), num_mel_bins
        self.test_root = None if test_root is None else Path(test_root)

    def setup(self, stage: str | None = None) -> None:
        validation, testing = (self._listed(f"{part}_list.txt") for part in ("validation", "testing"))
        noises = _below(self.root, f"{BACKGROUND}/*.wav")
        words = [path for path in _below(self.root, "*/*.wav") if not path.parent.name.startswith("_")]
        train = [path for path in words if path not in validation | testing]
        if not train:
            raise EncoreError(f"{self.root}: no clip is left to train on; its lists name all of them")
        if self.test_root is None:
            test = [path for path in words if path in testing] + noises
        else:
            test = _below(self.test_root, "*/*.wav")
        self.train_set = self._clips(train + noises, True)
        self.val_set = self._clips([path for path in words if path in validation] + noises, False)
        self.test_set = self._clips(test, False)

    def _listed(self, name: str) -> set[Path]:
        """The clips that a split list names. EncoreError when it is not there or none of them is."""
        listed = {self.root / line for line in _read(self.root / name).split()}
        if not any(path.exists() for path in listed):
            raise EncoreError(f"{self.root / name}: names no clip below {self.root}; expected <word>/<clip>.wav a line")
        return listed

    def _clips(self, paths: Sequence[Path], train: bool) -> WaveClips:
        labels = torch.tensor([command_class(path.parent.name) for path in paths])
        if train:  # balanced sampling counts the columns of one-hot labels
            labels = F.one_hot(labels, len(COMMANDS)).float()
        return WaveClips(paths, labels, seconds=1.0, num_mel_bins=self.num_mel_bins, train=train, balance=train)


def read_emotions(path: Path) -> dict[str, str]:
    """An EmoEvaluation file -> {utterance: emotion code}.

    A turn is a line `[start - end]<tab>utterance<tab>code<tab>[valence, activation, dominance]`. Lines of single
    annotators, comments and blank ones are passed over. EncoreError names the line of a turn that reads otherwise or
    has a code that IEMOCAP does not know, and a file without any turn.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if not line.startswith("["):
            continue
        turn = TURN.fullmatch(line.rstrip())
        if turn is None:
            raise EncoreError(
                f"{path}, line {number}: expected `[start - end]`, utterance, emotion and `[v, a, d]` between tabs"
            )
        emotion = turn["emotion"]
        if emotion not in {*EMOTIONS, *MERGED, *LEFT_OUT}:
            raise EncoreError(f"{path}, line {number}: emotion {emotion!r} is none of IEMOCAP's codes")
        found[turn["utterance"]] = emotion
    if not found:
        raise EncoreError(f"{path}: holds no turn (`[start - end]<tab>utterance<tab>...`); use IEMOCAP's own file")
    return found


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


class IEMOCAP(_ThreeParts):
    """IEMOCAP's full release: 5,531 utterances of four emotions (ang, hap with exc, neu, sad) in five sessions.

    root: Session{1..5}/dialog/EmoEvaluation/*.txt and Session{1..5}/sentences/wav/<dialogue>/<utterance>.wav. fold: the
    session to test on. Of the other four, `validation_share` of the utterances, drawn from `split_seed`, choose the
    checkpoint; the rest are for training. Longer utterances are cut to `seconds`.
    """

    def __init__(
        self,
        root: str,
        *,
        fold: int = 1,
        held_out: Part = "validation",
        validation_share: float = 0.2,
        split_seed: int = 0,
        seconds: float = 10.0,
        num_mel_bins: int = 128,
        batch_size: int = 32,
        num_workers: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, held_out)
        self.root, self.fold, self.seconds, self.num_mel_bins = Path(root), fold, seconds, num_mel_bins
        self.validation_share, self.split_seed = validation_share, split_seed

    def setup(self, stage: str | None = None) -> None:
        if self.fold not in SESSIONS:
            raise EncoreError(f"fold {self.fold}: IEMOCAP has sessions 1 to 5; fold names the one to test on")
        sessions = {number: read_session(self.root / f"Session{number}") for number in SESSIONS}
        others = [clip for number in SESSIONS if number != self.fold for clip in sessions[number]]
        random.Random(self.split_seed).shuffle(others)
        count = round(len(others) * self.validation_share)
        if not 0 < count < len(others):
            raise EncoreError(
                f"validation_share {self.validation_share}: leaves {count} of {len(others)} utterances of {self.root} "
                "to validate on; training and validation need one or more each"
            )
        self.train_set = self._clips(others[count:], True)
        self.val_set, self.test_set = self._clips(others[:count], False), self._clips(sessions[self.fold], False)

    def _clips(self, clips: Sequence[tuple[Path, int]], train: bool) -> WaveClips:
        if not clips:
            raise EncoreError(f"{self.root / f'Session{self.fold}'}: no utterance of {', '.join(EMOTIONS)} to test on")
        labels = torch.tensor([label for _, label in clips])
        paths = [path for path, _ in clips]
        return WaveClips(paths, labels, seconds=self.seconds, num_mel_bins=self.num_mel_bins, train=train)


def _below(root: Path, pattern: str) -> list[Path]:
    found = sorted(root.glob(pattern))
    if not found:
        raise EncoreError(f"{root}: no {pattern} there; unpack Speech Commands V0.01 (and its test set) as published")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")  # free text of annotators may be in any encoding
    except OSError as error:
        raise EncoreError(f"{path}: cannot be read ({error.strerror}); check the data folder") from None

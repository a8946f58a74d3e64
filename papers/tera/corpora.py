"""The small corpora of the claims and the cpu scale: phones of Emo-DB and digits of FSDD, by held-out speakers."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.formats.speech import Bucketed, buckets
from papers.tera.data import IGNORED, load_source
from papers.tera.downstream import Item, Labelled
from papers.tera.features import HOP, SAMPLE_RATE, extract

# Emo-DB's phones with at least 50 segments once the marks of articulation are taken off; "." is a pause
PHONES = (
    *("t", "d", "a", "I", "n", "s", "g", "m", "p", "b", "k", "v", "i", ".", "z", "e", "l", "f", "@", "N", "S", "E"),
    *("U", "C", "x", "6", "o", "aI", "O", "4", "X", "aU", "OY", "j", "Y", "i6", "B", "9", "V", "y", "?", "u", "H", "D"),
)
FOLDS = 5
SPEAKERS = (("03", "08"), ("10", "09"), ("11", "13"), ("12", "14"), ("15", "16"))  # a man and a woman for each fold
TEXTS = ("a01", "a02", "a04", "a05", "a07", "b01", "b02", "b03", "b09", "b10")


class Held(NamedTuple):
    """Which clips have their speaker, and which their sentence, held out; (clips,) bool each."""

    speaker: np.ndarray
    text: np.ndarray


def held_out(speakers: Sequence[str], texts: Sequence[str], fold: int) -> Held:
    """Emo-DB's fold: a man and a woman (of five pairs), and three sentences of ten; every one is held out once or
    twice."""
    k = fold % FOLDS
    held = {TEXTS[(2 * k + i) % len(TEXTS)] for i in range(3)}
    return Held(np.isin(speakers, SPEAKERS[k]), np.isin(texts, sorted(held)))


def fold_phones(symbols: Sequence[str]) -> list[str]:
    """Emo-DB's segment symbols -> their phones, without marks of articulation.

    "_t" opens a word, "!t" is a release, "tasp" an aspiration, "t +nas" nasalised, "a 2" stressed; a segment that is
    only marks ("-lar", "+sth") continues the phone before it. What is no phone becomes "".
    """
    phones: list[str] = []
    for symbol in symbols:
        base = re.match(r"[_!]?\s*([A-Za-z@?0-9.]+)", symbol)
        if symbol.startswith(("+", "-", "[")):
            phones.append(phones[-1] if phones else "")
        else:
            phone = base[1] if base else ""
            phones.append(phone[:-3] if len(phone) > 3 and phone.endswith("asp") else phone)
    return phones


def phone_labels(symbols: Sequence[str], starts: Sequence[float], num_frames: int) -> Tensor:
    """Class (index in PHONES) of each 10 ms frame by the segment at its centre, (num_frames,).

    starts: seconds at which the segments begin; each lasts until the next, the last to the end. -100 marks frames
    before the first segment and of rare symbols.
    """
    labels = torch.full((num_frames,), IGNORED)
    for phone, start in zip(fold_phones(symbols), starts):
        first = int(np.ceil(start * SAMPLE_RATE / HOP - 1e-9))
        labels[first:] = PHONES.index(phone) if phone in PHONES else IGNORED
    return labels


def bucketed_subset(items: Sequence[Item], chosen: np.ndarray, batch_size: int) -> Bucketed:
    """The chosen (bool) items in batches of nearly equal length."""
    picked = [items[i] for i in np.flatnonzero(chosen).tolist()]
    return Bucketed(picked, buckets([len(x) for x, _ in picked], batch_size, fewest=1))


class EmoDBClips:
    """Emo-DB (named source emodb): features (L, 80) and, per clip, frame phones (L,), speaker and sentence."""

    def __init__(self) -> None:
        waveforms, columns = load_source("emodb")
        self.waveforms = waveforms
        self.features = [extract(waveform, "mel") for waveform in waveforms]
        # The times called phone_end are where segments begin: read as ends, "." has the energy of speech, and a linear
        # classifier on log-mel frames falls from 39 to 16 %.
        labelled = zip(columns["phone"], columns["phone_end"], self.features)
        self.phones = [phone_labels(symbols or [], starts or [], len(x)) for symbols, starts, x in labelled]
        self.speakers, self.texts = columns["speaker"], columns["text_code"]


class EmoDBProbe(Labelled):
    """Phones of Emo-DB on speakers and sentences never trained on.

    Test clips have both speaker and sentence held out by `fold` (0-4), training clips neither; validation is on the
    next fold's speakers saying training sentences.
    """

    def __init__(self, *, fold: int = 0, **loaders: Any) -> None:
        super().__init__(**loaders)
        self.fold = fold

    def setup(self, stage: str | None = None) -> None:
        clips = EmoDBClips()
        held = held_out(clips.speakers, clips.texts, self.fold)
        following = held_out(clips.speakers, clips.texts, self.fold + 1)
        items = list(zip(clips.features, clips.phones))
        seen = ~held.speaker & ~held.text
        parts = (seen & ~following.speaker, seen & following.speaker, held.speaker & held.text)
        self.train, self.valid, self.test = (bucketed_subset(items, chosen, self.batch_size) for chosen in parts)


class FSDDProbe(Labelled):
    """Digits of FSDD (named source fsdd) by a speaker never trained on: `fold` (0-5) names the test speaker, the next
    one is for validation."""

    def __init__(self, *, fold: int = 0, **loaders: Any) -> None:
        super().__init__(**loaders)
        self.fold = fold

    def setup(self, stage: str | None = None) -> None:
        waveforms, columns = load_source("fsdd")
        items = [(extract(w, "mel"), torch.tensor(digit)) for w, digit in zip(waveforms, columns["digit"])]
        names = sorted(set(columns["speaker"]))
        who = np.array([names.index(speaker) for speaker in columns["speaker"]])
        test, val = self.fold % len(names), (self.fold + 1) % len(names)

        parts = ((who != test) & (who != val), who == val, who == test)
        self.train, self.valid, self.test = (bucketed_subset(items, chosen, self.batch_size) for chosen in parts)

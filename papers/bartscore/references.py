"""What the references of the data-to-text sets say: texts of one meaning, and meanings one fact apart.

A meaning is `act(slot=value, ...)`; texts are grouped by what it says, whatever the order and quoting of its slots.
Names of places, streets and the like may first be replaced by the name of their slot, as BAGEL's X replaces them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from papers.bartscore.judged import Judged

_SLOT = re.compile(r"(\w+)=('[^']*'|[^,)]*)")


class Meaning(NamedTuple):
    """A dialogue act of a set and its slot=value facts."""

    set: str
    act: str
    facts: frozenset[str]


Groups = dict[Meaning, list[str]]  # distinct texts of every meaning


def meaning_of(name: str, source: str) -> Meaning:
    """The meaning of a source such as `inform(name='X',type=placetoeat,food=Indian)` in the set `name`.

    type=placetoeat is left out: every text of BAGEL is about a place to eat, and none says so.
    """
    act, _, body = source.partition("(")
    facts = {f"{slot}={value.strip(chr(39)).lower()}" for slot, value in _SLOT.findall(body)}
    return Meaning(name, act, frozenset(facts - {"type=placetoeat"}))


NAMED = ("name", "address", "phone", "postcode", "near", "area")
NO_NAME = {"", "x", "none", "dont_care"}


def delexicalised(row: Judged) -> Judged:
    """The row with NAME, AREA, ... in all its texts wherever the value stands that its meaning has for that slot."""
    values = [(value.strip("'"), slot) for slot, value in _SLOT.findall(row.source) if slot in NAMED]
    named = sorted((v for v in values if v[0].lower() not in NO_NAME), key=lambda v: -len(v[0]))
    patterns = [(re.compile(rf"(?<!\w){re.escape(value)}(?!\w)", re.IGNORECASE), slot.upper()) for value, slot in named]

    def replaced(text: str) -> str:
        for pattern, slot in patterns:
            text = pattern.sub(slot, text)
        return text

    references = tuple(replaced(text) for text in row.references)
    return replace(row, source=replaced(row.source), references=references, hypothesis=replaced(row.hypothesis))


def group(name: str, rows: Iterable[Judged]) -> Groups:
    """The distinct references of every meaning of a set, in order of appearance."""
    groups: Groups = {}
    for row in rows:
        texts = groups.setdefault(meaning_of(name, row.source), [])
        texts += [text for text in dict.fromkeys(row.references) if text not in texts]
    return groups


def folds_of(groups: Mapping[Meaning, Sequence[str]], folds: int) -> dict[Meaning, int]:
    """A fold for every meaning, the same for all arms and seeds."""
    order = np.random.default_rng(0).permutation(len(groups))
    return {meaning: int(place) % folds for meaning, place in zip(groups, order)}


def rewritings(groups: Mapping[Meaning, Sequence[str]], most: int = 4) -> list[tuple[str, str]]:
    """(text, another text of its meaning): every text with up to `most` others, so that no meaning takes over."""
    return [
        (text, texts[(i + step) % len(texts)])
        for texts in groups.values()
        for i, text in enumerate(texts)
        for step in range(1, min(most, len(texts) - 1) + 1)
    ]


def one_fact_apart(groups: Mapping[Meaning, Sequence[str]]) -> list[tuple[Meaning, Meaning]]:
    """(a meaning, the same with one fact less) for all such pairs of one set and act."""
    found = []
    for more in groups:
        for fact in sorted(more.facts):
            fewer = Meaning(more.set, more.act, more.facts - {fact})
            if fewer in groups:
                found.append((more, fewer))
    return found

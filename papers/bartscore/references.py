"""What the references of the data-to-text sets say: texts of one meaning, and meanings one fact apart.

A meaning is `act(slot=value, ...)`; texts are grouped by what it says, whatever the order and quoting of its slots.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from papers.bartscore.judged import Judged


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
    slots = re.findall(r"(\w+)=('[^']*'|[^,)]*)", body)
    facts = {f"{slot}={value.strip(chr(39)).lower()}" for slot, value in slots}
    return Meaning(name, act, frozenset(facts - {"type=placetoeat"}))


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

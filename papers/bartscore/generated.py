"""Generated data-to-text: restaurants described in many ways, and descriptions with known faults. Exact and seeded.

For runs in seconds and for tests; what it is like is not claimed to be like people's judgements.
"""

from collections.abc import Mapping

import numpy as np

from papers.bartscore.judged import Judged

NAMES = ("Alba", "Bento", "Castello", "Dragon House", "Eden", "Fino", "Golden Lamb", "Harbour Inn")
SLOTS = {
    "food": ("thai", "french", "indian", "mexican", "greek"),
    "area": ("old town", "harbour", "north side", "market"),
    "price": ("cheap", "moderate", "expensive"),
    "near": ("museum", "station", "park", "theatre"),
}
PHRASES = {
    "food": ("serves {} food", "offers {} dishes", "is a place for {} cooking"),
    "area": ("is in the {} area", "is located in the {}", "can be found in the {}"),
    "price": ("is {}", "has {} prices", "is a {} place"),
    "near": ("is near the {}", "is close to the {}", "is next to the {}"),
}
Act = dict[str, str]  # slot -> value, with the name first


def draw_act(rng: np.random.Generator) -> Act:
    """A name and two or three other slots."""
    slots = rng.permutation(list(SLOTS))[: rng.integers(2, 4)]
    return {"name": str(rng.choice(NAMES))} | {str(slot): str(rng.choice(SLOTS[slot])) for slot in slots}


def meaning(act: Mapping[str, str]) -> str:
    """inform(name='Alba',food='thai',...), the form of the real sets."""
    return f"inform({','.join(f'{slot}={value!r}' for slot, value in act.items())})"


def realise(act: Mapping[str, str], rng: np.random.Generator) -> str:
    """A sentence that says the act: clauses in a random order, each in one of three ways."""
    slots = [slot for slot in act if slot != "name"]
    clauses = [str(rng.choice(PHRASES[slots[i]])).format(act[slots[i]]) for i in rng.permutation(len(slots))]
    return f"{act['name']} {' and '.join(clauses)}."


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, another text that says the same)."""
    rng = np.random.default_rng(seed)
    acts = [draw_act(rng) for _ in range(count)]
    return [(realise(act, rng), realise(act, rng)) for act in acts]


def judged(count: int, seed: int = 1) -> list[Judged]:
    """Hypotheses that leave slots out (informativeness 6, 5, ...) or have words swapped (naturalness 6, 5, 4).

    Every second act is the one before it without its last slot.
    """
    rng = np.random.default_rng(seed)
    rows: list[Judged] = []
    act: Act = {}
    for i in range(count):
        act = draw_act(rng) if i % 2 == 0 else dict(list(act.items())[:-1])
        references = tuple(realise(act, rng) for _ in range(3))
        left_out = int(rng.integers(0, len(act) - 1))
        words = realise(dict(list(act.items())[: len(act) - left_out]), rng).split()
        swaps = int(rng.integers(0, 3))
        for place in rng.integers(0, len(words) - 1, swaps):
            words[place], words[place + 1] = words[place + 1], words[place]
        scores = {"informativeness": 6.0 - left_out, "naturalness": 6.0 - swaps, "quality": 6.0 - left_out - swaps}
        rows.append(Judged(str(i), "system", meaning(act), references, " ".join(words), scores))
    return rows

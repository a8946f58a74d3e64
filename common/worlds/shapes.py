"""Rendered shapes with captions: an exactly generated image-text set with unseen combinations of seen words.

A scene holds one or two objects; an object is a (shape, colour, size) triple. Captions are varied the way found text
is: several words for one thing, several sentence patterns, and details that are sometimes left out. Everything is a
pure function of the seed, so a split can be rebuilt anywhere without storing a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import EncoreError

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "heart", "crescent")
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 84, 200),
    "yellow": (240, 220, 40),
    "orange": (255, 127, 14),
    "purple": (130, 60, 170),
    "pink": (245, 130, 190),
    "cyan": (40, 200, 215),
}
SIZES = {"small": 0.11, "medium": 0.16, "large": 0.22}  # radius as a fraction of the image side
RELATIONS = ("left of", "right of", "above", "below")
SYNONYMS = {
    "circle": ("circle", "disc", "dot"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge", "pyramid"),
    "diamond": ("diamond", "rhombus", "lozenge"),
    "cross": ("cross", "plus", "x"),
    "ring": ("ring", "hoop", "donut"),
    "heart": ("heart", "valentine", "love sign"),
    "crescent": ("crescent", "moon", "sickle"),
    "red": ("red", "scarlet", "crimson"),
    "green": ("green", "emerald", "grassy"),
    "blue": ("blue", "navy", "azure"),
    "yellow": ("yellow", "golden", "lemon"),
    "orange": ("orange", "amber", "tangerine"),
    "purple": ("purple", "violet", "plum"),
    "pink": ("pink", "rosy", "blush"),
    "cyan": ("cyan", "turquoise", "teal"),
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "middling", "average"),
    "large": ("large", "big", "huge"),
}
TEMPLATES = (
    "a {}",
    "a picture of a {}",
    "someone drew a {} for us",
    "look , it is a {} on plain paper",
    "my favourite {} from the workshop",
)

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Scenes:
    """N scenes. objects (N, 2, 3): indices of shape, colour, size, -1 where there is no second object;
    relation (N,): index into RELATIONS of the first object to the second, or -1; centres (N, 2, 2): x, y in [0, 1]."""

    objects: Indices
    relation: Indices
    centres: Array

    def __len__(self) -> int:
        return len(self.objects)


def all_combinations() -> Indices:
    """Every (shape, colour, size) triple as indices, (192, 3)."""
    grid = np.meshgrid(np.arange(len(SHAPES)), np.arange(len(COLOURS)), np.arange(len(SIZES)), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 3)


def split_combinations(unseen: float = 0.2, seed: int = 0) -> tuple[Indices, Indices]:
    """Disjoint (seen, unseen) combinations; every single shape, colour and size still occurs among the seen ones."""
    if not 0 < unseen < 1:
        raise EncoreError(f"shapes: unseen fraction must lie between 0 and 1, got {unseen}")
    combinations = all_combinations()
    order = np.random.default_rng([seed, 0]).permutation(len(combinations))
    count = round(unseen * len(combinations))
    held_out, kept = combinations[np.sort(order[:count])], combinations[np.sort(order[count:])]
    for axis, names in enumerate((SHAPES, tuple(COLOURS), tuple(SIZES))):
        missing = set(range(len(names))) - set(kept[:, axis].tolist())
        if missing:
            raise EncoreError(f"shapes: {[names[i] for i in missing]} never seen with unseen={unseen}, seed={seed}")
    return kept, held_out


def sample_scenes(count: int, combinations: Indices, *, seed: int, two_objects: float = 0.5) -> Scenes:
    """count scenes whose objects are drawn from combinations (K, 3); a fraction two_objects holds a pair.

    With two_objects=0 the combinations are used in turn, so classes are balanced."""
    rng = np.random.default_rng([seed, 1])
    objects = combinations[rng.integers(len(combinations), size=(count, 2))]
    if two_objects == 0:
        objects[:, 0] = combinations[np.arange(count) % len(combinations)]
    pair = rng.random(count) < two_objects
    relation = np.where(pair, rng.integers(len(RELATIONS), size=count), -1)
    radius = np.array(list(SIZES.values()))[objects[..., 2]]  # (N, 2)
    centres = radius[..., None] + rng.random((count, 2, 2)) * (1 - 2 * radius[..., None])
    # A pair shares the image: along the axis of the relation each object stays inside its own half.
    side = np.where(np.isin(relation, (0, 2)), 0, 1)  # 0: the first object takes the low half (left, above)
    axis = np.where(relation < 2, 0, 1)
    inside = radius + rng.random((count, 2)) * (0.5 - 2 * radius)
    for slot in (0, 1):
        low = (side == 0) == (slot == 0)
        value = np.where(low, inside[:, slot], 0.5 + inside[:, slot])
        rows = np.flatnonzero(pair)
        centres[rows, slot, axis[rows]] = value[rows]
    objects = objects.copy()
    objects[~pair, 1] = -1
    return Scenes(objects, relation, centres)


def _inside(shape: int, u: Array, v: Array) -> NDArray[np.bool_]:
    """Which of the points u, v (in units of the radius, v pointing down) lie inside a shape given by its index."""
    r2, up = u**2 + v**2, -v
    match SHAPES[shape]:
        case "circle":
            return r2 < 1
        case "square":
            return np.maximum(abs(u), abs(v)) < 0.85
        case "triangle":
            return (up > -0.75) & (abs(u) < (1 - up) * 0.58)
        case "diamond":
            return abs(u) + abs(v) < 1
        case "cross":
            return (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1)
        case "ring":
            return (r2 < 1) & (r2 > 0.3)
        case "heart":
            x, y = 1.25 * u, 1.25 * up
            return (x**2 + y**2 - 1) ** 3 - x**2 * y**3 < 0
        case _:  # crescent
            return (r2 < 1) & ((u - 0.45) ** 2 + v**2 > 0.6)


def render(scenes: Scenes, image_size: int = 32, *, seed: int, noise: float = 10.0) -> NDArray[np.uint8]:
    """Images (N, image_size, image_size, 3), anti-aliased, on grey of varying lightness, with pixel noise (in
    levels).
    """
    rng = np.random.default_rng([seed, 2])
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    radii = np.array(list(SIZES.values()), dtype=np.float32)
    points = (np.arange(2 * image_size, dtype=np.float32) + 0.5) / (2 * image_size)
    count = len(scenes)
    image = np.empty((count, image_size, image_size, 3), dtype=np.float32)
    image[:] = rng.uniform(90, 235, size=(count, 1, 1, 1))
    paint = palette[scenes.objects[..., 1]] + rng.normal(0, 12, size=(count, 2, 3)).astype(np.float32)
    for slot in (0, 1):
        for shape in range(len(SHAPES)):
            rows = np.flatnonzero(scenes.objects[:, slot, 0] == shape)
            radius = radii[scenes.objects[rows, slot, 2]][:, None]
            centre = scenes.centres[rows, slot].astype(np.float32)
            u = ((points - centre[:, :1]) / radius)[:, None, :]
            v = ((points - centre[:, 1:]) / radius)[:, :, None]
            inside = np.broadcast_to(_inside(shape, u, v), (len(rows), 2 * image_size, 2 * image_size))
            cover = inside.reshape(-1, image_size, 2, image_size, 2).mean(axis=(2, 4), dtype=np.float32)[..., None]
            image[rows] = image[rows] * (1 - cover) + paint[rows, slot, None, None, :] * cover
    image += noise * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def describe(combination: Sequence[int], words: Sequence[str] | None = None) -> str:
    """'small red circle' for indices (shape, colour, size); words, if given, replace the three names."""
    shape, colour, size = combination
    names = words or (tuple(SIZES)[size], tuple(COLOURS)[colour], SHAPES[shape])
    return " ".join(names)


def captions(scenes: Scenes, *, seed: int, synonyms: bool = True, leave_out: float = 0.2) -> list[str]:
    """One sentence a scene. Each word is a random synonym and, with probability leave_out, a size or colour is left
    out; half of the pairs have only their first object mentioned.
    """
    rng = np.random.default_rng([seed, 3])
    sizes, colours = tuple(SIZES), tuple(COLOURS)

    def word(name: str) -> str:
        options = SYNONYMS[name]
        return options[rng.integers(len(options))] if synonyms else name

    def phrase(combination: Indices) -> str:
        shape, colour, size = (int(i) for i in combination)
        parts = [word(sizes[size]), word(colours[colour]), word(SHAPES[shape])]
        dropped = rng.random(2) < leave_out
        return " ".join(part for i, part in enumerate(parts) if i == 2 or not dropped[i])

    sentences = []
    for objects, relation in zip(scenes.objects, scenes.relation):
        text = phrase(objects[0])
        if relation >= 0 and rng.random() < 0.5:
            text += f" {RELATIONS[relation]} a {phrase(objects[1])}"
        sentences.append(TEMPLATES[rng.integers(len(TEMPLATES))].format(text))
    return sentences

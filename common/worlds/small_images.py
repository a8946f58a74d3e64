"""Small labelled image sets in memory, one function for all: digits (bundled with scikit-learn) and named sources."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from common import sources
from common.errors import EncoreError
from common.formats.tables import decode_images, read_table

COLOUR = {"mnist": "L", "fashion_mnist": "L", "omniglot": "L", "cifar10": "RGB", "emoji": "RGB"}
SPLITS = {"omniglot": ("background", "evaluation"), "emoji": ("all",)}
LABEL = {"emoji": "name"}
BESIDE = {"omniglot": ("drawer", "alphabet"), "emoji": ("vendor", "group", "keywords")}


class SmallImages(NamedTuple):
    """images: uint8 (N, H, W), or (N, H, W, 3) in colour; labels: int64 (N,); columns: what else is known, (N,) each.

    Labels of emoji number the sorted names; `columns["name"]` has them.
    """

    images: np.ndarray
    labels: np.ndarray
    columns: dict[str, np.ndarray]

    def at(self, rows: np.ndarray) -> "SmallImages":
        """These rows, a mask or indices."""
        return SmallImages(self.images[rows], self.labels[rows], {k: v[rows] for k, v in self.columns.items()})


def small_images(name: str, split: str, *, size: int | None = None, per_class: int | None = None) -> SmallImages:
    """A set and split: digits (8x8; every fourth is test), mnist, fashion_mnist, cifar10 ('train', 'test'), omniglot
    ('background', 'evaluation'; ink is dark), emoji ('all').

    size: resized to size x size (bicubic). per_class: the first so many of every class, class by class.
    """
    if name != "digits" and name not in COLOUR:
        raise EncoreError(f"there is no small image set {name!r}, only {', '.join(['digits', *COLOUR])}")
    known = SPLITS.get(name, ("train", "test"))
    if split not in known:
        raise EncoreError(f"{name} has no split {split!r}, only {', '.join(known)}")
    if name == "digits" and size not in (None, 8):
        raise EncoreError(f"digits are 8x8, not {size}x{size}")
    found = _digits(split) if name == "digits" else _read(name, split, size)
    if per_class is None:
        return found
    rows = [np.flatnonzero(found.labels == label)[:per_class] for label in np.unique(found.labels)]
    return found.at(np.concatenate(rows))


def _digits(split: str) -> SmallImages:
    from sklearn.datasets import load_digits

    content = load_digits()
    held_out = np.arange(len(content.target)) % 4 == 0
    images = (content.images * 15.9375).astype(np.uint8)
    return SmallImages(images, content.target.astype(np.int64), {}).at(held_out == (split == "test"))


@cache
def _read(name: str, split: str, size: int | None) -> SmallImages:
    label = LABEL.get(name, "label")
    table = read_table(sources.locate(name)[f"{split}.parquet"], ["image", label, *BESIDE.get(name, ())])
    columns = {key: _column(table[key]) for key in BESIDE.get(name, ())}
    labels = np.array(table[label])
    if labels.dtype.kind not in "iu":
        columns[label] = labels
        labels = np.unique(labels, return_inverse=True)[1]
    return SmallImages(decode_images(table["image"], COLOUR[name], size), labels.astype(np.int64), columns)


def _column(values: list[Any]) -> np.ndarray:
    """Numbers and texts as they are; lists one an element."""
    if not any(isinstance(value, list) for value in values):
        return np.array(values)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column

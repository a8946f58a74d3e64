"""The three problems as sequences: how a solved set of points becomes the target C_1..C_m, end (Sec. 3)."""

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from common.errors import EncoreError
from papers.pointer_networks.geometry import PAD, Floats, Ints, convex_hull, delaunay, held_karp, uniform_points
from papers.pointer_networks.model import END

Problem = Literal["hull", "delaunay", "tsp"]
IGNORE = -100  # target of a padded step


class Batch(NamedTuple):
    """points (B, n, 2); targets (B, m) in 0..n, IGNORE after the end; lengths (B,), or None where every set has n
    points.
    """

    points: Tensor
    targets: Tensor
    lengths: Tensor | None


def check_problem(problem: str) -> None:
    if problem not in get_args(Problem):
        raise EncoreError(f"unknown problem {problem!r}; one of {', '.join(get_args(Problem))}")


def max_steps(problem: Problem, n: int) -> int:
    """Steps of the longest right answer over n points, the end included; a triangulation has at most 2n - 5
    triangles.
    """
    return 3 * (2 * n - 5) + 1 if problem == "delaunay" else n + 1


def solve(problem: Problem, points: Floats | Tensor) -> Ints:
    """Exact canonical labels (B, m) of points (B, n, 2), 0-based, padded with -1."""
    if problem == "hull":
        return convex_hull(points)
    if problem == "tsp":
        return held_karp(points)
    return pad([delaunay(one).flatten() for one in np.asarray(points)])


def pad(labels: list[Ints]) -> Ints:
    """Labels of different lengths as one (B, m) array, padded with -1."""
    padded = np.full((len(labels), max(len(label) for label in labels)), PAD, dtype=np.int64)
    for row, label in zip(padded, labels):
        row[: len(label)] = label
    return padded


def to_targets(labels: Ints) -> Tensor:
    """Labels (B, m), 0-based and padded with -1 -> targets (B, longest + 1): positions 1..n, then the end, then
    IGNORE.
    """
    count = (labels != PAD).sum(axis=1)
    width = int(count.max()) + 1
    padded = np.pad(labels, ((0, 0), (0, 1)), constant_values=PAD)[:, :width]
    targets = np.where(padded == PAD, IGNORE, padded + 1)
    targets[np.arange(len(targets)), count] = END
    return torch.from_numpy(targets)


def draw(problem: Problem, count: int, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Ints]:
    """`count` sets of n uniform points (count, n, 2) and their labels (count, m). generator: None for torch's global
    one.
    """
    points = uniform_points(count, n, generator)
    return points, solve(problem, points)


def held_out(problem: Problem, count: int, n: int) -> tuple[Tensor, Ints]:
    """The `count` test sets of size n: the same for every model, arm and seed, and drawn by no training seed."""
    return draw(problem, count, n, torch.Generator().manual_seed(2**40 + n))

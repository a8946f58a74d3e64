"""Training data: drawn and solved on the fly, or read from text files in the form of the paper's release.

A file has one solved set a line, `x1 y1 x2 y2 ... output i1 i2 ...`, with indices from 1. Hulls and tours are closed
cycles: the first index stands again at the end (Fig. 2). Triangulations are a flat list of triples. `generate.py`
writes such files.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from common.errors import EncoreError
from common.formats.lines import byte_lines
from common.training.loaders import Loaders
from papers.pointer_networks.geometry import Ints
from papers.pointer_networks.metrics import is_tour, rows
from papers.pointer_networks.problems import Batch, Problem, check_problem, draw, held_out, pad, to_targets

SEPARATOR = " output "
LEAST = {"hull": 3, "delaunay": 3, "tsp": 2}


def as_is(batch: Any) -> Any:
    """Collates what `__getitems__` already made a batch."""
    return batch


class SolvedSets(Dataset):
    """An endless supply: each batch draws one size from min_points..max_points and as many uniform sets of it as
    asked for.

    Sizes differ between batches, not inside one; a solver then labels the whole batch at once and nothing is padded.
    """

    def __init__(self, problem: Problem, min_points: int, max_points: int, pass_length: int = 2**20) -> None:
        check_problem(problem)
        if not LEAST[problem] <= min_points <= max_points:
            raise EncoreError(
                f"min_points {min_points} and max_points {max_points}: {problem} needs "
                f"{LEAST[problem]} <= min_points <= max_points"
            )
        self.problem, self.sizes, self.pass_length = problem, (min_points, max_points), pass_length

    def __len__(self) -> int:
        return self.pass_length

    def __getitems__(self, indices: list[int]) -> Batch:
        low, high = self.sizes
        points, labels = draw(self.problem, len(indices), int(torch.randint(low, high + 1, ())))
        return Batch(points, to_targets(labels), None)


class HeldOut(Dataset):
    """The fixed sets of one size that training never draws."""

    def __init__(self, problem: Problem, count: int, n: int) -> None:
        self.points, self.labels = held_out(problem, count, n)

    def __len__(self) -> int:
        return len(self.points)

    def __getitems__(self, indices: list[int]) -> Batch:
        return Batch(self.points[indices], to_targets(self.labels[indices]), None)


class GeneratedProblems(Loaders):
    """Exactly solved random sets; validation on fixed sets of the largest size, in one batch."""

    collate = staticmethod(as_is)

    def __init__(
        self,
        problem: Problem,
        min_points: int,
        max_points: int,
        batch_size: int = 128,
        val_sets: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed, eval_batch_size=val_sets)
        self.train = SolvedSets(problem, min_points, max_points)
        self.held_out = problem, val_sets, max_points

    def setup(self, stage: str = "fit") -> None:
        self.valid = HeldOut(*self.held_out)


class ProblemFile(Dataset):
    """The sets of one text file. A line that is not a solved set of `problem` is an error that names file and line."""

    def __init__(self, path: str | Path, problem: Problem) -> None:
        check_problem(problem)
        self.path, self.problem = Path(path), problem
        if not self.path.is_file():
            raise EncoreError(
                f"{path}: no such file; write one with python -m papers.pointer_networks.generate, or correct the path"
            )
        self.points: list[np.ndarray] = []
        self.labels: list[Ints] = []
        for number, (_, line) in enumerate(byte_lines(self.path), 1):
            if not line.endswith(b"\n"):
                raise EncoreError(f"{path}:{number}: no line end, so the file is truncated; fetch or write it again")
            points, label = self.parse(line.decode(errors="replace"), number)
            self.points.append(points)
            self.labels.append(label)
        if not self.points:
            raise EncoreError(f"{path}: is empty; write it with python -m papers.pointer_networks.generate")

    def parse(self, line: str, number: int) -> tuple[np.ndarray, Ints]:
        """One line -> points (n, 2) float32 and its label, 0-based."""
        where = f"{self.path}:{number}"
        left, separator, right = line.partition(SEPARATOR)
        if not separator:
            raise EncoreError(f"{where}: has no '{SEPARATOR.strip()}' between coordinates and indices")
        try:
            coordinates = np.array(left.split(), dtype=np.float32)
            indices = [int(i) - 1 for i in right.split()]
        except ValueError as error:
            raise EncoreError(f"{where}: {error}") from None
        n = len(coordinates) // 2
        if len(coordinates) % 2 or n < LEAST[self.problem]:
            raise EncoreError(
                f"{where}: {len(coordinates)} coordinates are not {LEAST[self.problem]} or more points x y"
            )
        if not np.isfinite(coordinates).all():
            raise EncoreError(f"{where}: a coordinate is not finite")
        if not indices or min(indices) < 0 or max(indices) >= n:
            raise EncoreError(f"{where}: indices must lie in 1..{n}, the number of points on this line")
        return coordinates.reshape(n, 2), np.array(self.label(indices, n, where), dtype=np.int64)

    def label(self, indices: list[int], n: int, where: str) -> list[int]:
        """Indices as the model's label: a closed cycle without its repeated first index, or triples."""
        if self.problem == "delaunay":
            if len(indices) % 3 or any(len(set(indices[i : i + 3])) < 3 for i in range(0, len(indices), 3)):
                raise EncoreError(f"{where}: the {len(indices)} indices are not triples of different points")
            return indices
        cycle = indices[:-1]
        if indices[0] != indices[-1] or len(cycle) < LEAST[self.problem]:
            raise EncoreError(f"{where}: the {self.problem} is not closed: it must end with its first index")
        if self.problem == "tsp" and not is_tour(cycle, n):
            raise EncoreError(f"{where}: the tour does not visit each of the {n} points once")
        if len(set(cycle)) < len(cycle):
            raise EncoreError(f"{where}: the hull visits a point twice")
        return cycle

    def __len__(self) -> int:
        return len(self.points)

    def __getitems__(self, indices: list[int]) -> Batch:
        chosen = [self.points[i] for i in indices]
        lengths = torch.tensor([len(one) for one in chosen])
        points = torch.zeros(len(chosen), int(lengths.max()), 2)
        for row, one in zip(points, chosen):
            row[: len(one)] = torch.from_numpy(one)
        same = bool((lengths == lengths[0]).all())
        return Batch(points, to_targets(pad([self.labels[i] for i in indices])), None if same else lengths)


class ProblemFiles(Loaders):
    """Training and validation sets from two text files; a batch mixes sizes."""

    collate = staticmethod(as_is)

    def __init__(self, problem: Problem, train_file: str, val_file: str, batch_size: int = 128, seed: int = 0) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        self.problem, self.files = problem, (train_file, val_file)

    def setup(self, stage: str = "fit") -> None:
        if self.train is None:
            self.train, self.valid = (ProblemFile(path, self.problem) for path in self.files)


def write_problems(path: str | Path, problem: Problem, batches: Iterable[tuple[torch.Tensor, Ints]]) -> int:
    """Write solved sets (points (B, n, 2), labels (B, m) padded with -1) in the form above; returns how many. Appears
    whole or not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    count = 0
    with partial.open("w") as file:
        for points, labels in batches:
            for one, label in zip(points.tolist(), rows(labels)):
                cycle = label if problem == "delaunay" else [*label, label[0]]
                coordinates = " ".join(repr(x) for point in one for x in point)
                file.write(coordinates + SEPARATOR + " ".join(str(i + 1) for i in cycle) + "\n")
                count += 1
    partial.replace(path)
    return count

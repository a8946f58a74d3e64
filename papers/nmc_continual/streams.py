"""Streams: which training image arrives when, what is tested after each task, and batches that can be resumed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from common.errors import EncoreError

# fmt: off
CIFAR100_ORDER = (
    87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86, 84, 96, 18, 24, 32,
    45, 88, 11, 4, 67, 69, 66, 77, 47, 79, 93, 29, 50, 57, 83, 17, 81, 41, 12, 37, 59, 25, 20, 80, 73,
    1, 28, 6, 46, 62, 82, 53, 9, 31, 75, 38, 63, 33, 74, 27, 22, 36, 3, 16, 21, 60, 19, 70, 90, 89,
    43, 5, 42, 65, 76, 40, 30, 23, 85, 2, 95, 56, 48, 71, 64, 98, 13, 99, 7, 34, 55, 54, 26, 35, 39,
)
# fmt: on
"""Class order of Split-CIFAR-100 in the released script: the fixed order that came with iCaRL."""

CORE50_TRAIN = (1, 2, 4, 5, 6, 8, 9, 11)
CORE50_TEST = (3, 7, 10)
"""Sessions of CORe50's new-instances protocol, in the order of the released script."""
CORE50_CLASSES = 50

IMAGENET_R_SEED = 42
TASKS, CLASSES_A_TASK = 10, {"cifar100": 10, "imagenet_r": 20}


@dataclass(frozen=True)
class Stream:
    """What a learner meets, task after task; the classifier is asked about all classes seen, without a task id.

    tasks: training indices of each task; classes: its classes; tests: test indices that are due after it.
    """

    tasks: tuple[np.ndarray, ...]
    classes: tuple[np.ndarray, ...]
    tests: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        for number, (task, test) in enumerate(zip(self.tasks, self.tests)):
            if not len(task) or not len(test):
                raise EncoreError(f"task {number} of the stream has {len(task)} training and {len(test)} test images")

    @property
    def num_classes(self) -> int:
        return 1 + max(int(classes.max()) for classes in self.classes)

    def joint(self) -> "Stream":
        """The same images as one task: the upper bound of every learner."""
        everything = np.unique(np.concatenate(self.classes))
        return Stream((np.concatenate(self.tasks),), (everything,), (self.tests[-1],))


def class_incremental(
    train_labels: np.ndarray, test_labels: np.ndarray, order: Sequence[int], classes_a_task: int
) -> Stream:
    """New classes in every task, in the given order; tested on all classes seen so far."""
    if len(order) % classes_a_task or len(set(order)) < len(order):
        raise EncoreError(f"{len(order)} classes ({len(set(order))} different) cannot form tasks of {classes_a_task}")
    groups = tuple(np.array(order[i : i + classes_a_task]) for i in range(0, len(order), classes_a_task))
    tasks = tuple(np.flatnonzero(np.isin(train_labels, group)) for group in groups)
    tests = tuple(np.flatnonzero(np.isin(test_labels, order[: (t + 1) * classes_a_task])) for t in range(len(groups)))
    return Stream(tasks, groups, tests)


def domain_incremental(domains: np.ndarray, order: Sequence[int], num_classes: int, num_tests: int) -> Stream:
    """All classes in every task, seen in a new domain each time; tested on the whole test set after each."""
    tasks = tuple(np.flatnonzero(domains == domain) for domain in order)
    everything, tests = np.arange(num_classes), np.arange(num_tests)
    return Stream(tasks, (everything,) * len(order), (tests,) * len(order))


class StreamBatches(Sampler[list[int]]):
    """Batches of a stream, each a pure function of (seed, position), so a stopped run goes on where it stopped.

    Every task is passed `epochs` times, each time in a new order; a batch never mixes tasks, and the last one of a
    pass may be smaller, so every image comes exactly once a pass. Yields [position, index, index, ...].
    """

    def __init__(self, stream: Stream, batch_size: int, *, epochs: int = 1, seed: int = 0, start: int = 0) -> None:
        if batch_size < 1 or epochs < 1:
            raise EncoreError(f"a stream needs batch_size and epochs of at least 1, got {batch_size} and {epochs}")
        self.stream, self.batch_size, self.epochs, self.seed, self.next = stream, batch_size, epochs, seed, start
        self.a_pass = [-(-len(task) // batch_size) for task in stream.tasks]
        self.ends = np.cumsum([epochs * batches for batches in self.a_pass])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def task_at(self, position: int) -> int:
        """Task of the batch at `position`."""
        return int(np.searchsorted(self.ends, position, side="right"))

    def ends_task(self, position: int) -> bool:
        """Whether the batch at `position` is the last of its task."""
        return position + 1 == self.ends[self.task_at(position)]

    def __iter__(self) -> Iterator[list[int]]:
        current, order = (-1, -1), np.empty(0, dtype=np.int64)
        for position in range(self.next, len(self)):
            task = self.task_at(position)
            first = int(self.ends[task - 1]) if task else 0
            epoch, batch = divmod(position - first, self.a_pass[task])
            if (task, epoch) != current:
                order = np.random.default_rng([self.seed, task, epoch]).permutation(self.stream.tasks[task])
                current = (task, epoch)
            self.next = position + 1
            yield [position, *order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()]

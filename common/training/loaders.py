"""Training batches that are a pure function of (seed, position), so a resumed run sees exactly what it would have
seen."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from common.errors import EncoreError


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, Python's, numpy's and torch's global generators are seeded from `key`; afterwards they are as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    state = int(np.random.SeedSequence([k % 2**63 for k in key]).generate_state(1, np.uint32)[0])
    random.seed(state)
    np.random.seed(state)  # noqa: NPY002
    torch.default_generator.manual_seed(state)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


class Positions(Sampler[list[int]]):
    """Endless shuffled passes over `length` items, cut into epochs of `num_batches` batches.

    Batch t of the run holds stream positions t * B * W ... of which rank r of W takes the r-th part of B. Every pass
    is a
    new permutation drawn from (seed, pass). Yields [t, index, index, ...].

    taken: how many batches the run has been given so far, which workers that fetch ahead make this sampler overshoot.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        num_batches: int | None,
        rank: int,
        world: int,
        start: int,
        taken: Callable[[], int] | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed, self.rank, self.world = length, batch_size, seed, rank, world
        together = batch_size * world
        self.num_batches = num_batches or length // together
        self.per_pass = length if num_batches else self.num_batches * together
        if not self.num_batches:
            raise EncoreError(
                f"the training set has {length} samples, fewer than one batch of {together} "
                f"({batch_size} on each of {world} processes); lower batch_size or add data"
            )
        self.next, self.taken = start, taken

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        if self.taken is not None:
            self.next = self.taken()
        end = (self.next // self.num_batches + 1) * self.num_batches
        current, order = -1, np.empty(0, dtype=np.int64)
        for t in range(self.next, end):
            batch = [t]
            first = (t * self.world + self.rank) * self.batch_size
            for position in range(first, first + self.batch_size):
                number, offset = divmod(position, self.per_pass)
                if number != current:
                    order = np.random.default_rng([self.seed % 2**63, number]).permutation(self.length)
                    current = number
                batch.append(int(order[offset]))
            self.next = t + 1
            yield batch


class _Batches(Dataset):
    """Draws and collates a whole batch under a seed of its own."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], seed: int, rank: int) -> None:
        self.dataset, self.collate, self.seed, self.rank = dataset, collate, seed, rank

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, batch: list[int]) -> Any:
        t, *indices = batch
        with seeded(self.seed, t, self.rank):
            if hasattr(self.dataset, "__getitems__"):
                items = self.dataset.__getitems__(indices)
            else:
                items = [self.dataset[i] for i in indices]
            return self.collate(items)


def _identity(batch: Any) -> Any:
    return batch


def train_loader(
    dataset: Any,
    batch_size: int,
    *,
    seed: int,
    num_batches: int | None = None,
    trainer: L.Trainer | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
) -> DataLoader:
    """Shuffled training batches of a map-style dataset.

    What a dataset or collate function draws from the global generators (augmentation, noise, masks) is seeded per batch
    from (seed, batch number, rank). With `trainer` given the loader starts where the trainer's restored checkpoint
    stopped
    and takes this rank's share. batch_size is per process. `num_batches` cuts epochs of that many batches (default: one
    pass without the incomplete last batch).

    A dataset may offer __getitems__(indices) -> what collate_fn takes, to make a batch at once.
    """
    if batch_size < 1:
        raise EncoreError(f"batch_size must be at least 1, not {batch_size}")
    rank, world, taken = 0, 1, None
    if trainer is not None:
        rank, world = trainer.global_rank, trainer.world_size

        def taken(trainer: L.Trainer = trainer) -> int:
            return trainer.fit_loop.epoch_loop.batch_progress.total.ready

    positions = Positions(
        len(dataset), batch_size, seed=seed, num_batches=num_batches, rank=rank, world=world, start=0, taken=taken
    )
    return DataLoader(
        _Batches(dataset, collate_fn or default_collate, seed, rank),
        batch_sampler=positions,
        collate_fn=_identity,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),  # else each pass would draw from the global generator
        persistent_workers=num_workers > 0,
    )


class Loaders(L.LightningDataModule):
    """Loaders over the map-style datasets `train`, `valid` and `test`, which a subclass fills in its constructor or in
    `setup`. Training resumes exactly (see train_loader); validation and test take every example once, in order.

    collate: what makes a batch of items, a function of the class or of the instance; None stacks tensors.
    batch_size: examples a process takes in a step. eval_batch_size: the same in validation and test, where it differs.
    batches_per_epoch cuts epochs of that many batches (default: one pass without the incomplete last batch).
    """

    collate: ClassVar[Any] = None

    def __init__(
        self,
        *,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        batches_per_epoch: int | None = None,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise EncoreError(f"{type(self).__name__}: batch_size must be at least 1, not {batch_size}")
        if num_workers < 0:
            raise EncoreError(f"{type(self).__name__}: num_workers must not be negative, got {num_workers}")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.batches_per_epoch, self.eval_batch_size = batches_per_epoch, eval_batch_size or batch_size
        self.train: Any = None
        self.valid: Any = None
        self.test: Any = None

    def train_dataloader(self) -> DataLoader:
        return train_loader(
            self._there("train"),
            self.batch_size,
            seed=self.seed,
            num_batches=self.batches_per_epoch,
            trainer=self.trainer,
            collate_fn=self.collate,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> Any:
        return [] if self.valid is None else self.evaluation(self.valid)

    def test_dataloader(self) -> Any:
        return self.evaluation(self._there("test"))

    def evaluation(self, dataset: Any, batch_size: int | None = None, collate: Any = None) -> DataLoader:
        """Every example of a dataset once, in order. collate: another way to make batches than in training."""
        return DataLoader(
            dataset,
            batch_size or self.eval_batch_size,
            collate_fn=collate or self.collate,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed),  # workers' seeds must not come from the training's
        )

    def _there(self, split: str) -> Any:
        if getattr(self, split) is None:
            raise EncoreError(f"{type(self).__name__} has no {split} split; name its files in the data section")
        return getattr(self, split)


class Balanced:
    """Map-style dataset that draws every item anew: all classes equally often, their items too.

    labels: (N,) classes, or (N, C) 0/1, where an item counts 1 / (items of the class) for each class that it has.
    """

    def __init__(self, dataset: Any, labels: Tensor) -> None:
        self.dataset = dataset
        table = labels if labels.dim() == 2 else F.one_hot(labels).float()
        self.cumulative = (table / table.sum(0).clamp(min=1)).sum(1, dtype=torch.float64).cumsum(0)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        draw = torch.rand((), dtype=torch.float64) * self.cumulative[-1]
        return self.dataset[min(int(torch.searchsorted(self.cumulative, draw, right=True)), len(self) - 1)]

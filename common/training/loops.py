"""Lightning's loops where a run must be exact: when `last.ckpt` is written, and validation that leaves no trace."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loops import _EvaluationLoop, _TrainingEpochLoop
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from common.errors import EncoreError
from common.training.loaders import seeded


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` into `folder` every `every` optimizer steps and at the end.

    It is written when all that belongs to a step is done: the optimizer's step, never the midst of an accumulation, its
    rows in the log, the hooks, a validation that was due. So whatever moment a kill comes at, the run that goes on
    repeats whole steps and lacks nothing.
    """

    def __init__(self, folder: str | Path, every: int) -> None:
        if every < 1:
            raise EncoreError(f"checkpoint_every must be at least 1, not {every}")
        self.path, self.every, self.saved = Path(folder) / "last.ckpt", every, 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and not isinstance(trainer.fit_loop.epoch_loop, StepLoop):
            trainer.fit_loop.epoch_loop = StepLoop(trainer, trainer.fit_loop.epoch_loop, self)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved = trainer.global_step

    def due(self, trainer: L.Trainer) -> bool:
        """Whether the step just done is one to keep."""
        quick: Any = getattr(trainer, "fast_dev_run")  # noqa: B009  (set by a connector, which types do not show)
        if quick or self.saved == trainer.global_step:
            return False
        loop, epochs = trainer.fit_loop, trainer.max_epochs or -1
        last_epoch = epochs != -1 and trainer.current_epoch + 1 >= epochs
        ends = loop.epoch_loop._num_ready_batches_reached() and last_epoch
        ends = ends or trainer.should_stop or 0 <= loop.max_steps <= trainer.global_step
        return ends or trainer.global_step % self.every == 0

    def save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved = trainer.global_step


class StepLoop(_TrainingEpochLoop):
    """Batches of an epoch, with a checkpoint after steps that are wholly done."""

    def __init__(self, trainer: L.Trainer, replaced: _TrainingEpochLoop, checkpoint: LastCheckpoint) -> None:
        super().__init__(trainer, replaced.min_steps, replaced.max_steps)
        self.val_loop = OwnRandomness(
            trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False
        )
        self.val_loop._data_source = replaced.val_loop._data_source
        self.checkpoint = checkpoint

    def on_advance_end(self, data_fetcher: Any) -> None:
        try:
            super().on_advance_end(data_fetcher)
        except SIGTERMException:
            alone = self.trainer.world_size == 1  # processes need not have got the signal at the same step
            if alone and not self._should_accumulate() and self.checkpoint.saved != self.trainer.global_step:
                self._save()
            raise
        if not self._should_accumulate() and self.checkpoint.due(self.trainer):
            self._save()

    def _save(self) -> None:
        """Save with counters from which Lightning restarts exactly, taking a validation of this step as done: as they
        stand in `on_train_batch_end`, or, after the last batch of an epoch, between two epochs."""
        batches, epochs = self.batch_progress, self.trainer.fit_loop.epoch_progress
        now = batches.state_dict(), epochs.state_dict()
        batches.total.completed -= 1  # a restart counts this batch, and the logged step
        batches.current.completed -= 1
        self._batches_that_stepped -= 1
        if self._num_ready_batches_reached():
            batches.is_last_batch = False
            batches.current.reset()
            batches.current.completed -= 1
            counters: list[Any] = [epochs.total, epochs.current]
            for counter in counters:
                counter.processed = counter.completed = counter.ready
        try:
            self.checkpoint.save(self.trainer)
        finally:
            batches.load_state_dict(now[0])
            epochs.load_state_dict(now[1])
            self._batches_that_stepped += 1


class OwnRandomness(_EvaluationLoop):
    """Validation within training. What it draws comes from (seed, step, rank), and training draws as if it had not
    been."""

    def setup_data(self) -> None:
        fresh = self._combined_loader is None or self._should_reload_val_dl
        with own_randomness(self.trainer):
            super().setup_data()
        if fresh and self._combined_loader is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            self._refuse_uneven()

    def run(self) -> Any:
        self.setup_data()
        with own_randomness(self.trainer) as seed:
            for loader in self._combined_loader.flattened if self._combined_loader is not None else ():
                if getattr(loader, "generator", None) is not None:  # the seeds of its workers come from there
                    loader.generator.manual_seed(seed)
            return super().run()

    def increment_progress_to_evaluation_end(self) -> None:
        with own_randomness(self.trainer):  # it makes an iterator, which draws a seed
            super().increment_progress_to_evaluation_end()

    def _refuse_uneven(self) -> None:
        """Every process takes part in each layer's forward, so one with batches left would wait for ever."""
        numbers: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(numbers, self._max_batches)
        if any(number != numbers[0] for number in numbers):
            found = ", ".join(str(sum(number)) for number in numbers)
            raise EncoreError(
                f"validation under fsdp needs equally many batches on every process, and these have {found}; "
                "choose another eval_batch_size, or set trainer.limit_val_batches to the smallest of them"
            )


@contextmanager
def own_randomness(trainer: L.Trainer) -> Iterator[int]:
    """Inside, all global generators are seeded from the run's seed, the step and the rank; after it they are as before.
    Gives a seed made of the same."""
    key = int(os.environ.get("PL_GLOBAL_SEED") or 0), trainer.global_step, trainer.global_rank
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    with seeded(*key):
        seed = int(torch.randint(2**31, ()))
        if devices is not None:
            torch.cuda.manual_seed_all(seed)
        try:
            yield seed
        finally:
            if devices is not None:
                torch.cuda.set_rng_state_all(devices)

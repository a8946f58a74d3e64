"""The Lightning trainer as Encore sets it up: exact resume, atomic checkpoints, a stop on NaN, CSV logs."""

import csv
import os
import random
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from common.errors import EncoreError

# Said by Lightning of every resumed run; train_loader does resume mid-epoch, and MetricsCSV keeps the log.
for message in (".*dataloader is not resumable.*", "Experiment logs directory.*", "Checkpoint directory.*exists.*"):
    warnings.filterwarnings("ignore", message)
warnings.filterwarnings("ignore", ".*does not have many workers.*")


def atomic_save(payload: Any, path: Path) -> None:
    """torch.save that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(payload, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class RandomState(Callback):
    """Keeps the state of every random generator in the checkpoint: a resumed run draws what it would have drawn."""

    def __init__(self) -> None:
        self.restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        version, internal, gauss = random.getstate()
        legacy: Any = np.random.get_state(legacy=True)  # noqa: NPY002
        kind, keys, position, has_gauss, cached = legacy
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [str(kind), torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
            "python": [version, list(internal), gauss],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restored = state

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.restored is None:
            return
        state, self.restored = self.restored, None
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
        kind, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))


class StopOnNaN(Callback):
    """Ends training with a clear error at the first loss that is not finite, before the optimizer uses it."""

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss.detach()).all():
            raise EncoreError(
                f"{type(pl_module).__name__}: the loss is {loss.detach().item()} at step {trainer.global_step}; "
                "lower the learning rate, clip gradients, or look for a bad sample in this batch"
            )


class MetricsCSV(CSVLogger):
    """`metrics.csv` straight in the run's folder. A resumed run goes on in the same file, from the step it resumes
    at."""

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / "metrics.csv"
        self.earlier: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.earlier = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
            path.unlink()
        super().__init__(save_dir=str(folder), name="", version="", flush_logs_every_n_steps=1)

    def keep_before(self, step: int) -> None:
        """Put back the rows of an earlier run up to `step` (exclusive)."""
        self.experiment.metrics = [row for row in self.earlier if int(row["step"]) < step] + self.experiment.metrics
        self.earlier = []


class ContinueLog(Callback):
    """Tells a MetricsCSV logger at which step this run starts."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.keep_before(trainer.global_step)


def standard_callbacks(folder: str | Path, checkpoint_every: int) -> list[Callback]:
    """What every Encore run has: random state in checkpoints, a stop on NaN, `last.ckpt` every so many steps."""
    checkpoint = ModelCheckpoint(
        dirpath=folder, filename="last", every_n_train_steps=checkpoint_every, enable_version_counter=False
    )
    return [RandomState(), StopOnNaN(), ContinueLog(), checkpoint]


def last_checkpoint(folder: str | Path) -> str | None:
    """Path of the newest complete checkpoint in a run's folder, or None."""
    path = Path(folder) / "last.ckpt"
    return str(path) if path.exists() else None


def build_trainer(
    folder: str | Path,
    *,
    max_steps: int,
    checkpoint_every: int = 100,
    log_every: int = 10,
    callbacks: list[Callback] | None = None,
    **kwargs: Any,
) -> L.Trainer:
    """A quiet single-device Trainer that writes metrics.csv and last.ckpt into `folder` and resumes from there
    exactly."""
    options: dict[str, Any] = {
        "accelerator": "auto",
        "devices": 1,
        "max_epochs": -1,
        "max_steps": max_steps,
        "logger": MetricsCSV(folder),
        "log_every_n_steps": max(1, min(log_every, max_steps)),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    return L.Trainer(callbacks=standard_callbacks(folder, checkpoint_every) + (callbacks or []), **(options | kwargs))

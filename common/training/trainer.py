"""The Lightning trainer as Encore sets it up: exact resume, atomic checkpoints, a stop on NaN, CSV logs."""

import random
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from common.errors import EncoreError
from common.files import replacing
from common.interop.weights import read_checkpoint
from common.training.log import ContinueLog, MetricsCSV
from common.training.loops import LastCheckpoint

# Said by Lightning of every resumed run; train_loader does resume mid-epoch.
for message in (".*dataloader is not resumable.*", "Checkpoint directory.*exists.*"):
    warnings.filterwarnings("ignore", message)
warnings.filterwarnings("ignore", ".*does not have many workers.*")


def atomic_save(payload: Any, path: Path) -> None:
    """torch.save that appears whole or not at all."""
    with replacing(path) as temporary:
        torch.save(payload, temporary)


class AtomicIO(TorchCheckpointIO):
    """Checkpoints written beside their target, and read only when every checksum in them is right."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        atomic_save(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)


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


class EndedBySignal(Callback):
    """A training ended by SIGTERM says so by its exit status, 143: Lightning would end with 0, as if it were done."""

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException):
            exception.code = 128 + signal.SIGTERM


def standard_callbacks(folder: str | Path, checkpoint_every: int) -> list[Callback]:
    """What every Encore run has: random state in checkpoints, a stop on NaN, `last.ckpt` every so many steps."""
    return [RandomState(), StopOnNaN(), EndedBySignal(), ContinueLog(), LastCheckpoint(folder, checkpoint_every)]


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
        "plugins": [AtomicIO()],
    }
    return L.Trainer(callbacks=standard_callbacks(folder, checkpoint_every) + (callbacks or []), **(options | kwargs))

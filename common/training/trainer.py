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


class SameOptimizer(Callback):
    """Refuses to go on from a checkpoint with other settings of the optimizer: those of the checkpoint would be used
    and the new ones recorded."""

    TECHNICAL = frozenset({"params", "foreach", "fused", "capturable", "differentiable"})  # how, not what

    def __init__(self) -> None:
        self.settings: list[dict[str, Any]] = []
        self.kept: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"settings": self.settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state["settings"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.settings = [
            {"optimizer": type(optimizer).__name__} | self._plain(group)
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
        ]
        if self.kept is None:
            return
        if len(self.kept) != len(self.settings):
            raise EncoreError(
                f"optimizer: {len(self.settings)} parameter groups, and {len(self.kept)} in the checkpoint; give the "
                "settings of that run, or start afresh"
            )
        for kept, now in zip(self.kept, self.settings):
            for name in kept.keys() | now.keys():
                if kept.get(name) != now.get(name):
                    raise EncoreError(
                        f"optimizer: {name} is {now.get(name)}, and {kept.get(name)} in the checkpoint that is gone on "
                        "with; give that value, or start afresh in another folder"
                    )

    def _plain(self, group: dict[str, Any]) -> dict[str, Any]:
        """Settings of a group as they were given: the schedule keeps the peak rate as initial_lr."""
        lr = group.get("initial_lr", group["lr"])
        rest = {k: v for k, v in group.items() if k not in {*self.TECHNICAL, "lr", "initial_lr"}}
        plain = {"lr": lr} | rest
        plain = {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in plain.items()}
        return {k: list(v) if isinstance(v, tuple | list) else v for k, v in plain.items() if _is_plain(v)}


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str | tuple | list | None)


class EndedBySignal(Callback):
    """A training ended by SIGTERM says so by its exit status, 143: Lightning would end with 0, as if it were done."""

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException):
            exception.code = 128 + signal.SIGTERM


def standard_callbacks(folder: str | Path, checkpoint_every: int) -> list[Callback]:
    """What every Encore run has: random state in checkpoints, a stop on NaN, `last.ckpt` every so many steps."""
    own = [RandomState(), StopOnNaN(), SameOptimizer(), EndedBySignal(), ContinueLog()]
    return [*own, LastCheckpoint(folder, checkpoint_every)]


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

"""One unit of work of a claim, and training inside it so that a kill costs at most one checkpoint interval."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning as L
from torch.utils.data import DataLoader

from common.interop import check_and_load, read_checkpoint
from common.training.trainer import atomic_save, build_trainer, last_checkpoint

Scale = Literal["smoke", "cpu", "gpu"]
M = TypeVar("M", bound=L.LightningModule)


@dataclass(frozen=True)
class Run:
    """(paper, claim, arm, seed) at a scale. `dir` belongs to this unit alone and survives a kill."""

    paper: str
    claim: str
    arm: str
    seed: int
    scale: Scale
    dir: Path
    threads: int = 1


class _FromFunction(L.LightningDataModule):
    """A data module around a function trainer -> training loader."""

    def __init__(self, make: Callable[[L.Trainer], DataLoader]) -> None:
        super().__init__()
        self.make = make

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        return self.make(self.trainer)


def fit(
    module: M,
    data: L.LightningDataModule | Callable[[L.Trainer], DataLoader],
    *,
    run: Run,
    max_steps: int,
    name: str = "fit",
    checkpoint_every: int = 100,
    log_every: int = 10,
    **trainer: Any,
) -> M:
    """Train `module` for max_steps on `data`: a data module, or a function `lambda trainer: train_loader(...,
    trainer=trainer)`.

    Training is seeded with run.seed; build the module under a seed of your own choice (lightning.seed_everything).
    Checkpoints
    go to run.dir / name: a killed fit continues from the last one with the same numbers, a finished fit is not
    repeated (its
    weights are loaded). Returns the module, in eval mode, on the device it was trained on.
    """
    folder = run.dir / name
    done = folder / "done.ckpt"
    if done.exists():
        check_and_load(module, read_checkpoint(done)["state_dict"], done)
        return module.eval()
    L.seed_everything(run.seed, verbose=False)
    loop = build_trainer(folder, max_steps=max_steps, checkpoint_every=checkpoint_every, log_every=log_every, **trainer)
    source = data if isinstance(data, L.LightningDataModule) else _FromFunction(data)
    loop.fit(module, datamodule=source, ckpt_path=last_checkpoint(folder), weights_only=True)
    if loop.interrupted:
        raise KeyboardInterrupt
    atomic_save({"state_dict": module.state_dict()}, done)
    return module.eval()

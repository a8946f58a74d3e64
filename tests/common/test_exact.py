"""Nothing is lost and no number changes, whatever moment a training is killed at."""

import random
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from common.training.cli import run
from common.training.optim import adamw, schedule
from common.training.trainer import build_trainer, last_checkpoint
from tests.common.test_training_resume import Noisy, ToyData
from tests.kills import assert_kills_change_nothing, assert_same_run, in_child, logged


class ToyWithValidation(ToyData):
    def val_dataloader(self) -> DataLoader:
        return DataLoader(Noisy(), 5, shuffle=True)  # draws from the global generators


class Averaged(L.LightningModule):
    """Dropout, a running mean of the weights kept by a hook, and a validation that draws from every generator."""

    def __init__(self, lr: float = 0.01, slow: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.register_buffer("mean", torch.zeros(1))
        self.lr, self.slow = lr, slow

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        time.sleep(self.slow)
        loss = self.net(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        self.mean += self.net[2].bias.detach()  # type: ignore[operator]

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        time.sleep(self.slow)
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        self.log("val/loss", self.net(batch).square().mean() + noise)

    def configure_optimizers(self) -> dict:
        return schedule(adamw(self, lr=self.lr), "cosine", warmup=2, total=12)


def train(folder: Path, steps: int = 12, every: int = 3, slow: float = 0.004, **options: Any) -> None:
    L.seed_everything(7, verbose=False)
    options = {"val_check_interval": 6, "check_val_every_n_epoch": None} | options
    loop = build_trainer(folder, max_steps=steps, checkpoint_every=every, log_every=1, accelerator="cpu", **options)
    loop.fit(Averaged(slow=slow), ToyWithValidation(), ckpt_path=last_checkpoint(folder), weights_only=True)


@pytest.mark.parametrize("accumulated", [1, 2, 3])
def test_kills_at_random_moments_change_nothing(tmp_path: Path, accumulated: int) -> None:
    """An epoch has five batches, so the last accumulation of each is cut; validations and checkpoints coincide."""
    hit = assert_kills_change_nothing(
        lambda folder: train(folder, accumulate_grad_batches=accumulated, slow=0.01), tmp_path, 4, accumulated
    )
    assert hit, "no kill came in time"


@pytest.mark.parametrize("accumulated", [2, 3])
def test_a_run_stopped_after_every_step_equals_one_left_alone(tmp_path: Path, accumulated: int) -> None:
    options = {"accumulate_grad_batches": accumulated, "every": 1, "slow": 0.0}
    train(tmp_path / "whole", **options)
    for steps in range(1, 13):
        train(tmp_path / "often", steps=steps, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "often")


def test_validation_leaves_training_as_it_was_and_is_itself_reproducible(tmp_path: Path) -> None:
    train(tmp_path / "often", val_check_interval=1, slow=0.0)
    train(tmp_path / "seldom", val_check_interval=6, slow=0.0)
    often, seldom = ({r["step"]: r for r in rows} for rows in (merged(tmp_path / "often"), merged(tmp_path / "seldom")))
    assert [often[s]["train/loss"] for s in often] == [seldom[s]["train/loss"] for s in seldom]
    assert often["5"]["val/loss"] == seldom["5"]["val/loss"] != often["4"]["val/loss"]


def merged(folder: Path) -> list[dict[str, str]]:
    """One row a step."""
    steps: dict[str, dict[str, str]] = {}
    for row in logged(folder):
        steps.setdefault(row["step"], {}).update(row)
    return list(steps.values())


def test_a_validation_due_at_the_checkpoint_is_in_the_log_after_a_kill_within_it(tmp_path: Path) -> None:
    train(tmp_path / "whole", every=6, slow=0.0)
    killer = Averaged.validation_step

    def killed() -> None:
        Averaged.validation_step = lambda self, batch, batch_idx: __import__("os")._exit(9)  # type: ignore
        train(tmp_path / "often", every=6, slow=0.0)

    assert in_child(killed) == 9
    assert Averaged.validation_step is killer
    train(tmp_path / "often", every=6, slow=0.0)
    assert_same_run(tmp_path / "whole", tmp_path / "often")


@pytest.mark.parametrize("workers", [0, 2])
def test_cut_epochs_go_on_with_the_next_batch_whatever_workers_fetched_ahead(tmp_path: Path, workers: int) -> None:
    seen: list[int] = []

    class Watched(Averaged):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            seen.extend(batch[:, 0].floor().int().tolist())
            return super().training_step(batch, batch_idx)

    class Workers(ToyData):
        def train_dataloader(self) -> DataLoader:
            from common.training.loaders import train_loader

            return train_loader(
                torch.arange(20.0)[:, None].repeat(1, 3), 2, seed=3, trainer=self.trainer, num_workers=workers
            )

    build_trainer(tmp_path, max_steps=10, accelerator="cpu", limit_train_batches=3).fit(Watched(), Workers())
    assert sorted(seen) == list(range(20)), "ten batches of two are one pass over twenty"


@pytest.mark.parametrize(("slug", "accumulated"), [("pointer_networks", 2), ("tera", 3)])
def test_kills_change_nothing_in_a_paper(tmp_path: Path, slug: str, accumulated: int) -> None:
    __import__(f"papers.{slug}.module")

    def through_the_command_line(folder: Path) -> None:
        config = ["--config", f"papers/{slug}/configs/smoke.yaml", "--checkpoint_every", "3"]
        options = {"default_root_dir": folder, "accumulate_grad_batches": accumulated, "max_steps": 12}
        given = [part for name, value in options.items() for part in (f"--trainer.{name}", str(value))]
        run(["fit", *config, *given, "--ckpt_path", "last"])

    assert_kills_change_nothing(through_the_command_line, tmp_path, 3, accumulated)

"""What the tests of several papers need."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from common.training.trainer import build_trainer


def requires_mirror(name: str) -> Any:
    """Marks a test that needs the real data `name`; it is skipped, with the reason, where ENCORE_MIRROR lacks it."""
    from common.sources import available

    reason = f"needs the data source {name!r}: set ENCORE_MIRROR to a folder that holds it"
    skip = pytest.mark.skipif(not (os.environ.get("ENCORE_MIRROR") and available(name)), reason=reason)
    return lambda test: pytest.mark.mirror(skip(test))


def train_steps(
    make_module: Callable[[], L.LightningModule],
    make_data: Callable[[], Any],
    folder: Path,
    steps: int,
    ckpt: Path | None = None,
    **trainer: Any,
) -> tuple[L.LightningModule, list[float]]:
    """Train from scratch or a checkpoint; returns the module and the logged train/loss of every step."""
    import csv

    L.seed_everything(7, verbose=False)
    module = make_module()
    loop = build_trainer(folder, max_steps=steps, checkpoint_every=1, log_every=1, **trainer)
    loop.fit(module, datamodule=make_data(), ckpt_path=ckpt, weights_only=True)
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    return module, losses


def assert_resumes_exactly(
    make_module: Callable[[], L.LightningModule],
    make_data: Callable[[], Any],
    tmp_path: Path,
    steps: int = 6,
    **trainer: Any,
) -> None:
    """`steps` at once equal half of them, a checkpoint, a fresh process's start, and the rest: bit for bit.

    make_data returns a LightningDataModule. The module must log `train/loss`.
    """
    whole, losses = train_steps(make_module, make_data, tmp_path / "whole", steps, **trainer)
    folder = tmp_path / "halves"
    train_steps(make_module, make_data, folder, steps // 2, **trainer)
    torch.manual_seed(12345)  # a fresh process would start from another random state
    resumed, both = train_steps(make_module, make_data, folder, steps, ckpt=folder / "last.ckpt", **trainer)
    assert both == losses, f"losses differ after resuming: {losses} against {both}"
    assert len(losses) == steps
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), f"{name} differs after resuming"

"""Nothing is lost and no number changes, whatever moment a training is killed at."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from common.files import replacing
from common.training.cli import main, run
from common.training.log import MetricsCSV
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
def test_a_run_that_dies_in_the_midst_of_every_accumulation_equals_one_left_alone(
    tmp_path: Path, accumulated: int
) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": accumulated, "every": 1, "slow": 0.0}
    train(tmp_path / "whole", **options)
    step = Averaged.training_step

    def dies() -> None:
        calls = iter(range(accumulated + 2))

        def once_more(self: Averaged, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            next(calls, None) is not None or os._exit(9)
            return step(self, batch, batch_idx)

        Averaged.training_step = once_more  # type: ignore[method-assign]
        train(tmp_path / "often", **options)

    assert [in_child(dies) for _ in range(3)] == [9, 9, 9]
    train(tmp_path / "often", **options)
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
        Averaged.validation_step = lambda self, batch, batch_idx: os._exit(9)  # type: ignore
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


CONFIG = """
seed_everything: 1
checkpoint_every: 100
model: {class_path: tests.common.test_exact.Averaged, init_args: {slow: 0.05}}
data: {class_path: tests.common.test_exact.ToyWithValidation, init_args: {num_batches: 1000}}
trainer: {max_steps: 400, log_every_n_steps: 1, accelerator: cpu, default_root_dir: ROOT}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.argv", ["train"])
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.replace("ROOT", str(tmp_path / "out")))
    return path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the train script says on its one line, with exit code 2."""
    with pytest.raises(SystemExit) as end:
        main(["fit", *arguments])
    assert end.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(said) == 1
    return said[0]


def test_sigterm_ends_with_143_and_keeps_the_step_it_came_at(config: Path, tmp_path: Path) -> None:
    def stopped() -> None:
        main(["fit", "--config", str(config)])

    assert in_child(stopped, kill_after=4, number=signal.SIGTERM) == 143
    kept = torch.load(tmp_path / "out/last.ckpt", weights_only=True)["global_step"]
    assert 0 < kept < 400
    assert len(logged(tmp_path / "out")) == kept


FEW = ["--model.init_args.slow", "0", "--trainer.max_steps", "4", "--checkpoint_every", "3"]


def test_another_rate_on_resume_is_refused_with_both_values(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--config", str(config), *FEW]
    run(["fit", *given])
    said = refused([*given, "--ckpt_path", "last", "--model.init_args.lr", "0.05"], capsys)
    assert "lr is 0.05, and 0.01 in the checkpoint" in said
    run(["fit", *given, "--ckpt_path", "last", "--trainer.max_steps", "6"])


def test_a_second_fit_over_a_run_is_refused_unless_it_is_to_start_afresh(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, folder = ["--config", str(config), *FEW], tmp_path / "out"
    run(["fit", *given])
    said = capsys.readouterr().out
    assert f"after 4 steps, kept in {folder / 'last.ckpt'}" in said.splitlines()[-1]
    assert said.splitlines()[-1].startswith("loss ")
    before = (folder / "last.ckpt").read_bytes(), (folder / "metrics.csv").read_bytes()
    assert "--ckpt_path last goes on with it" in refused(given, capsys)
    run(["validate", *given[:2], "--ckpt_path", "last"])  # neither this nor a resumed finished run loses anything
    run(["fit", *given, "--ckpt_path", "last"])
    assert before[1] == (folder / "metrics.csv").read_bytes()
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4
    run(["fit", *given, "--overwrite", "true", "--seed_everything", "2"])
    assert before[1] != (folder / "metrics.csv").read_bytes()
    (folder / "last.ckpt").unlink()
    assert "metrics.csv: a run is there" in refused(given, capsys)
    run(["fit", *given, "--ckpt_path", "last"])  # killed before its first checkpoint: the same command starts afresh


def test_a_flipped_bit_in_a_checkpoint_is_not_resumed(config: Path, tmp_path: Path, capsys: Any) -> None:
    given = ["--config", str(config), *FEW]
    run(["fit", *given])
    path = tmp_path / "out/last.ckpt"
    content = bytearray(path.read_bytes())
    where = content.find(torch.load(path, weights_only=True)["state_dict"]["net.0.weight"].numpy().tobytes())
    content[where + 2] ^= 4
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # which sees nothing
    assert "has changed since it was written" in refused([*given, "--ckpt_path", "last"], capsys)


def test_more_processes_than_cores_are_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "trainer.devices: 99 processes" in refused(["--config", str(config), "--trainer.devices", "99"], capsys)


def write_half(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content[:100])
        raise RuntimeError("no space")


def test_a_checkpoint_needs_no_other_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full or foreign TMPDIR plays no part, and a write that fails leaves the old file."""
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    train(tmp_path, steps=2, slow=0.0)
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(RuntimeError, match="no space"):
        write_half(tmp_path / "last.ckpt", before)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "metrics.csv"]


def test_columns_that_come_later_widen_the_log_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path)
    log.log_metrics({"a": 1.0}, 0)
    log.log_metrics({"a": 2.0, "b": torch.tensor(5)}, 1)
    with log.file.open("a") as file:
        file.write("3.0,7")
    again = MetricsCSV(tmp_path)
    again.keep_before(2)
    again.log_metrics({"b": 4}, 2)
    assert logged(tmp_path) == [{"a": "1.0", "step": "0"}, {"a": "2.0", "b": "5", "step": "1"}, {"b": "4", "step": "2"}]

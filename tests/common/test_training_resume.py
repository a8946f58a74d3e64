"""Exact resume, loaders, optimizers, the command line."""

import csv
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from common.errors import EncoreError
from common.training.cli import ClipBesideFused, main, run
from common.training.loaders import train_loader
from common.training.optim import adamw, factor, parameter_groups, schedule
from common.training.run import Run, fit
from common.training.trainer import build_trainer
from tests.helpers import assert_resumes_exactly


class Noisy(Dataset):
    """Ten samples whose noise comes from the global generators, as augmentations do."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = torch.rand(3) + random.random() + np.random.rand()  # noqa: NPY002
        return torch.full((3,), float(index)) + noise


class ToyData(L.LightningDataModule):
    def __init__(self, batch_size: int = 2, num_batches: int | None = None) -> None:
        super().__init__()
        self.batch_size, self.num_batches = batch_size, num_batches

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return train_loader(Noisy(), self.batch_size, seed=3, num_batches=self.num_batches, trainer=self.trainer)


class Toy(L.LightningModule):
    def __init__(self, width: int = 4, lr: float = 0.01, nan_at: int = -1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.5), nn.Linear(width, 1))
        self.lr, self.nan_at = lr, nan_at

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.net(batch).square().mean()
        if self.global_step == self.nan_at:
            loss = loss * math.nan
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> dict:
        return schedule(adamw(self, lr=self.lr), "cosine", warmup=2, total=12)


@pytest.mark.parametrize("num_batches", [None, 100], ids=["in the second epoch", "in a long epoch"])
def test_training_resumed_from_a_checkpoint_equals_training_at_once(tmp_path: Path, num_batches: int | None) -> None:
    """Dropout, data noise, shuffling, schedule and optimizer state all go on where they stopped."""
    assert_resumes_exactly(Toy, lambda: ToyData(num_batches=num_batches), tmp_path, steps=14)


def test_batches_are_a_function_of_seed_and_position() -> None:
    def batches(seed: int) -> list[torch.Tensor]:
        return list(train_loader(Noisy(), 5, seed=seed, num_batches=4))

    torch.manual_seed(0)
    first = batches(1)
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, batches(1), strict=True))
    assert not torch.equal(first[0], batches(2)[0])


def order(seed: int, start: int = 0) -> list[int]:
    """Which of 20 examples come in 4 batches of 10, without any noise."""
    loader = train_loader(range(20), 10, seed=seed, num_batches=4, trainer=at(start))
    return torch.cat(list(loader)).tolist()


def at(step: int, rank: int = 0, world: int = 1) -> Any:
    """A trainer that has taken so many batches, on one of several processes."""
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(ready=step)))
    return SimpleNamespace(global_rank=rank, world_size=world, fit_loop=SimpleNamespace(epoch_loop=progress))


def test_every_pass_and_every_seed_has_an_order_of_its_own() -> None:
    first, second = order(seed=1)[:20], order(seed=1)[20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second, "the number of the pass is not in the seed"
    assert first != order(seed=2)[:20], "the seed does not reach the order"
    assert order(seed=1, start=3) == second[10:], "a resumed run goes on where it stopped"


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), lambda: random.random(), lambda: np.random.rand()])  # noqa: NPY002
def test_noise_is_seeded_by_seed_and_step_and_rank(draw: Any) -> None:
    """The example is always the same, so that what differs between batches is the noise alone."""

    class Noise(Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> float:
            return float(draw())

    def noise(seed: int, **where: int) -> torch.Tensor:
        return torch.stack(list(train_loader(Noise(), 4, seed=seed, num_batches=4, trainer=at(**where))))

    whole = noise(1, step=0)
    assert len(whole.unique()) == whole.numel(), "the step is not in the seed"
    assert torch.equal(noise(1, step=0), whole)
    assert torch.equal(noise(1, step=3), whole[3:]), "noise depends on the number of the step alone"
    assert not torch.equal(noise(2, step=0), whole), "the seed is not in the seed"
    ranks = [noise(1, step=0, rank=rank, world=2) for rank in (0, 1)]
    assert not torch.isin(ranks[0], ranks[1]).any(), "the rank is not in the seed"


def test_drawing_a_batch_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    next(iter(train_loader(Noisy(), 2, seed=0)))
    assert torch.equal(torch.rand(1), expected)


def test_ranks_share_each_global_batch_without_overlap() -> None:
    from common.training.loaders import Positions

    def indices(rank: int, world: int, batch: int) -> list[list[int]]:
        return [b[1:] for b in Positions(24, batch, seed=0, num_batches=None, rank=rank, world=world, start=0)]

    whole = indices(0, 1, 6)
    assert [a + b for a, b in zip(indices(0, 2, 3), indices(1, 2, 3), strict=True)] == whole
    assert sorted(index for batch in whole for index in batch) == list(range(24))


def test_a_training_set_smaller_than_a_batch_is_an_error() -> None:
    with pytest.raises(EncoreError, match="10 samples, fewer than one batch of 11"):
        train_loader(Noisy(), 11, seed=0)


def test_nan_loss_ends_training_before_the_weights_are_spoiled(tmp_path: Path) -> None:
    module = Toy(nan_at=2)
    with pytest.raises(EncoreError, match="loss is nan at step 2"):
        build_trainer(tmp_path, max_steps=5).fit(module, datamodule=ToyData())
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_killed_fit_continues_and_a_finished_one_is_not_repeated(tmp_path: Path) -> None:
    def unit(name: str) -> Run:
        return Run("toy", "claim", "arm", 1, "smoke", tmp_path / name)

    def train(where: str, **options: int) -> Toy:
        L.seed_everything(1, verbose=False)
        data = ToyData(num_batches=100)
        return fit(Toy(**options), data, run=unit(where), max_steps=6, checkpoint_every=2, log_every=1)

    whole = train("whole")
    with pytest.raises(EncoreError):
        train("killed", nan_at=5)
    assert not (tmp_path / "killed/fit/done.ckpt").exists()
    continued = train("killed")
    for a, b in zip(whole.state_dict().values(), continued.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    rows = [
        [r["train/loss"] for r in csv.DictReader((tmp_path / name / "fit/metrics.csv").open())]
        for name in ("whole", "killed")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 6
    again = train("killed", nan_at=0)  # would raise if it trained
    assert torch.equal(again.net[0].weight, whole.net[0].weight)


def test_fit_is_seeded_by_the_seed_of_the_run_alone(tmp_path: Path) -> None:
    """Same initial weights, same batches: what is left is dropout."""

    def weights(where: str, seed: int, before: int) -> torch.Tensor:
        torch.manual_seed(0)
        module = Toy()
        torch.manual_seed(before)
        run = Run("toy", "claim", "arm", seed, "smoke", tmp_path / where)
        return fit(module, ToyData(), run=run, max_steps=3).net[0].weight

    one = weights("a", seed=1, before=5)
    assert torch.equal(one, weights("b", seed=1, before=6)), "what was drawn before reaches the training"
    assert not torch.equal(one, weights("c", seed=2, before=5)), "the seed does not reach the training"


def test_gains_and_biases_get_no_weight_decay_and_layers_get_their_share_of_the_rate() -> None:
    module = nn.ModuleDict({"embed": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "head": nn.Linear(2, 2)})
    ids = {"embed": 0, "norm": 1, "head": 2}
    groups = parameter_groups(
        module, weight_decay=0.1, lr=1.0, layer_decay=0.5, layer_id=lambda name: ids[name.split(".")[0]]
    )
    table = {
        name: (g["weight_decay"], g["lr"])
        for name, p in module.named_parameters()
        for g in groups
        if any(p is q for q in g["params"])
    }
    assert table == {
        "embed.weight": (0.1, 0.25),
        "embed.bias": (0.0, 0.25),
        "norm.weight": (0.0, 0.5),
        "norm.bias": (0.0, 0.5),
        "head.weight": (0.1, 1.0),
        "head.bias": (0.0, 1.0),
    }
    assert parameter_groups(module, weight_decay=0.1, no_decay=["head.weight"])[0]["weight_decay"] == 0.0


def test_schedules_have_their_closed_forms() -> None:
    def at(step: int, kind: str, floor: float = 0.0) -> float:
        return factor(step, kind, warmup=10, total=110, floor=floor)

    assert at(0, "cosine") == pytest.approx(0.1)
    assert at(9, "linear") == pytest.approx(1.0)
    assert at(60, "linear") == pytest.approx(0.5)
    assert at(60, "cosine", floor=0.2) == pytest.approx(0.6)
    assert at(110, "cosine", floor=0.2) == pytest.approx(0.2)
    assert at(10_000, "linear") == 0.0
    assert at(39, "inverse_sqrt") == pytest.approx(0.5)
    assert at(500, "constant") == 1.0


CONFIG = """
seed_everything: 1
model: {class_path: tests.common.test_training_resume.Toy}
data: {class_path: tests.common.test_training_resume.ToyData, init_args: {num_batches: 100}}
trainer: {max_steps: 4, log_every_n_steps: 1, accelerator: cpu, default_root_dir: ROOT}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.argv", ["train"])
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.replace("ROOT", str(tmp_path / "out")))
    return path


def test_the_train_script_resumes_from_last_and_logs_speed(config: Path, tmp_path: Path) -> None:
    whole = run(["fit", "--config", str(config), "--trainer.default_root_dir", str(tmp_path / "whole")]).model
    run(["fit", "--config", str(config), "--trainer.max_steps", "2", "--checkpoint_every", "1"])
    rest = run(["fit", "--config", str(config), "--ckpt_path", "last"]).model
    assert torch.equal(whole.net[0].weight, rest.net[0].weight)
    rows = list(csv.DictReader((tmp_path / "out/metrics.csv").open()))
    assert [int(r["step"]) for r in rows] == [0, 1, 2, 3]
    assert float(rows[-1]["speed/samples_per_second"]) > 0
    assert float(rows[-1]["speed/flops_per_second"]) > 0


def test_gradients_are_clipped_under_mixed_precision(config: Path) -> None:
    mixed = ["--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", "0.1"]
    assert run(["fit", "--config", str(config), *mixed]).trainer.global_step > 0


def test_scaled_gradients_are_divided_before_they_are_clipped() -> None:
    moved = []
    for scale in (1.0, 1024.0):
        weight = torch.nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
        trainer: Any = SimpleNamespace(gradient_clip_val=0.5, optimizers=[optimizer])
        ClipBesideFused().on_fit_start(trainer, None)  # type: ignore[arg-type]
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale((weight * torch.tensor([3.0, 0.0, 4.0])).sum()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([weight], 0.5)
        scaler.step(optimizer)
        moved.append(weight.detach())
    torch.testing.assert_close(moved[0], torch.tensor([-0.3, 0.0, -0.4]))
    torch.testing.assert_close(moved[1], moved[0])


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_other_loggers_write_beside_the_csv(
    config: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(["fit", "--config", str(config), "--log", kind])
    if kind == "wandb":
        import wandb

        wandb.finish()
    pattern = {"tensorboard": "out/tensorboard/events*", "wandb": "out/wandb/offline-run-*/run-*.wandb"}[kind]
    assert list(tmp_path.glob(pattern))
    assert (tmp_path / "out/metrics.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path", "nowhere.ckpt"], "no such checkpoint"),
        (["--ckpt_path", "DAMAGED"], "not a readable checkpoint"),
        (["--ckpt_path", "OTHER"], "the model wants"),
        (["--trainer.max_stepz", "3"], "max_stepz"),
        (["--data.init_args.batch_size", "11", "--data.init_args.num_batches", "null"], "fewer than one batch"),
        (["--model.init_args.nan_at", "1"], "loss is nan"),
        (["--trainer.strategy", "fsdp", "--trainer.precision", "16-mixed"], "does not support"),
    ],
)
def test_bad_input_is_one_clear_error_and_exit_code_2(
    config: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "OTHER" in arguments:
        torch.save({"state_dict": Toy(width=5).state_dict()}, tmp_path / "other.ckpt")
    (tmp_path / "damaged.ckpt").write_bytes(b"PK\x03\x04 cut")
    names = {"DAMAGED": str(tmp_path / "damaged.ckpt"), "OTHER": str(tmp_path / "other.ckpt")}
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(config), *(names.get(a, a) for a in arguments)])
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not torch.nn.modules.module._global_forward_pre_hooks, "what counts operations was left switched on"

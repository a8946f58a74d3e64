"""common.training.recipe and Loaders: what a config says of optimizer, schedule and data is what training does."""

import math

import lightning as L
import pytest
import torch
from torch import nn

from common.errors import EncoreError
from common.training.loaders import Loaders
from common.training.recipe import Optim, Recipe, batch_length
from common.training.trainer import build_trainer


class Toy(Recipe):
    def __init__(self, optim: Optim, extra: bool = False) -> None:
        super().__init__(optim)
        self.extra = extra
        self.model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))

    def loss(self, batch):
        value = self.model(batch["x"]).square().mean()
        return {"loss": value, "twice": 2 * value} if self.extra else value

    def layer_id(self, name: str) -> int:
        return int(name.split(".")[1])


class Points(Loaders):
    def __init__(self, n: int = 12, **options) -> None:
        super().__init__(**options)
        x = torch.arange(float(n)).unsqueeze(1).expand(n, 3) / n
        self.train = [{"x": row} for row in x]
        self.valid = self.train[:5]


def rates(optim: Optim, total: int) -> list[float]:
    return [optim.lr * optim.factor(step, total) for step in range(total)]


def test_warmup_is_a_number_of_steps_or_a_share_of_all():
    assert rates(Optim(lr=1.0, warmup=4), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rates(Optim(lr=1.0, warmup=0.25), 16)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_schedules_follow_their_closed_forms():
    total, lr = 20, 0.5
    linear = rates(Optim(lr=lr, schedule="linear", warmup=4, floor=0.1), total)
    assert linear[4:] == pytest.approx([lr * (0.1 + 0.9 * (1 - t / 16)) for t in range(16)])
    cosine = rates(Optim(lr=lr, schedule="cosine", warmup=4, min_lr=0.05), total)
    assert cosine[4:] == pytest.approx([0.05 + 0.45 * (1 + math.cos(math.pi * t / 16)) / 2 for t in range(16)])
    root = rates(Optim(lr=lr, schedule="inverse_sqrt", warmup=4), total)
    assert root[3:] == pytest.approx([lr * math.sqrt(4 / (t + 1)) for t in range(3, 20)])
    stable = rates(Optim(lr=lr, schedule="wsd", warmup=2, cooldown=0.25), total)
    assert stable[2:15] == [lr] * 13
    assert stable[15:] == pytest.approx([lr * (1 - t / 5) for t in range(5)])
    stairs = rates(Optim(lr=lr, schedule="step", milestones=[5, 10], gamma=0.1), total)
    assert stairs == pytest.approx([lr] * 5 + [lr / 10] * 5 + [lr / 100] * 10)


@pytest.mark.parametrize(
    "name, wanted", [("adamw", "AdamW"), ("adam", "Adam"), ("sgd", "SGD"), ("lars", "Lars"), ("adafactor", "Adafactor")]
)
def test_every_optimizer_is_the_named_one_with_its_settings(name, wanted):
    module = Toy(Optim(lr=0.2, name=name, betas=[0.8, 0.9], eps=1e-4, momentum=0.7, weight_decay=0.3, total=10))
    optimizer = module.configure_optimizers()["optimizer"]
    assert type(optimizer).__name__ == wanted
    decayed, spared = optimizer.param_groups[1], optimizer.param_groups[0]
    assert decayed["weight_decay"] == 0.3
    assert spared["weight_decay"] == 0
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in spared["params"]} == {1}
    if name.startswith("adam"):
        assert decayed["betas"] == (0.8, 0.9)
        assert decayed["eps"] == 1e-4
    elif name != "adafactor":
        assert decayed["momentum"] == 0.7
    before = [p.detach().clone() for p in module.parameters()]
    module.loss({"x": torch.ones(2, 3)}).backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters()))


def test_decay_can_reach_everything_and_be_decoupled_from_the_peak_rate():
    groups = Toy(Optim(lr=0.1, weight_decay=0.02, decay_all=True, decoupled=True, total=1)).configure_optimizers()
    (only,) = groups["optimizer"].param_groups
    assert only["weight_decay"] == pytest.approx(0.2)
    assert len(only["params"]) == 6
    named = Toy(Optim(lr=0.1, weight_decay=0.02, no_decay=["0.weight"], total=1)).configure_optimizers()["optimizer"]
    assert [len(group["params"]) for group in named.param_groups] == [5, 1]


def test_layer_decay_gives_every_layer_its_rate():
    groups = Toy(Optim(lr=1.0, layer_decay=0.5, total=1)).configure_optimizers()["optimizer"].param_groups
    found = {group["lr"]: {p.shape[0] for p in group["params"]} for group in groups}
    assert found == {0.25: {4}, 0.5: {4}, 1.0: {1}}


def test_a_run_takes_the_rates_of_the_schedule_and_logs_what_the_loss_gives(tmp_path):
    module = Toy(Optim(lr=0.1, schedule="linear", warmup=2), extra=True)
    seen = []
    module.optimizer_step = lambda *args, **kwargs: (  # type: ignore[method-assign]
        seen.append(args[2].param_groups[0]["lr"]), L.LightningModule.optimizer_step(module, *args, **kwargs)
    )  # fmt: skip
    loop = build_trainer(tmp_path, max_steps=6, log_every=1, val_check_interval=3, check_val_every_n_epoch=None)
    loop.fit(module, datamodule=Points(batch_size=4))
    assert seen == pytest.approx([0.05, 0.1, 0.1, 0.075, 0.05, 0.025])
    assert {
        "train/loss",
        "train/twice",
        "val/loss",
        "val/twice",
    } <= loop.logged_metrics.keys() | loop.callback_metrics.keys()
    assert float(loop.callback_metrics["val/twice"]) == pytest.approx(2 * float(loop.callback_metrics["val/loss"]))


def test_validation_weighs_batches_by_their_examples(tmp_path):
    module = Toy(Optim(lr=0.1))
    loop = build_trainer(tmp_path, max_steps=1)
    data = Points(batch_size=4)  # five examples: batches of four and one
    (found,) = loop.validate(module, datamodule=data, verbose=False)
    with torch.no_grad():
        each = [float(module.loss({"x": item["x"][None]})) for item in data.valid]
    assert found["val/loss"] == pytest.approx(sum(each) / 5, rel=1e-6)


def test_the_length_of_a_batch_is_that_of_its_first_tensor():
    assert batch_length({"name": "x", "x": torch.ones(3, 2)}) == 3
    assert batch_length([torch.ones(5), torch.ones(2)]) == 5


def test_data_without_validation_trains_and_without_training_says_so(tmp_path):
    data = Points(batch_size=4)
    data.valid = None
    build_trainer(tmp_path, max_steps=2).fit(Toy(Optim(lr=0.1)), datamodule=data)
    data.train = None
    with pytest.raises(EncoreError, match="Points has no train split"):
        data.train_dataloader()


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": 1.0, "warmup": -1}, "warmup"),
        ({"lr": 1.0, "floor": 2.0}, "floor"),
        ({"lr": 1.0, "floor": 0.1, "min_lr": 0.1}, "not both"),
        ({"lr": 1.0, "min_lr": 2.0}, "min_lr"),
        ({"lr": 1.0, "layer_decay": 0.0}, "layer_decay"),
        ({"lr": 1.0, "weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(wrong, said):
    with pytest.raises(EncoreError, match=said):
        Optim(**wrong)


def test_a_config_sets_the_optimizer(tmp_path):
    from common.training.cli import run

    where = f"{__name__}."
    config = tmp_path / "toy.yaml"
    config.write_text(
        f"model:\n  class_path: {where}Toy\n  init_args:\n"
        "    optim: {lr: 0.3, schedule: cosine, betas: [0.8, 0.95]}\n"
        f"data:\n  class_path: {where}Points\n  init_args: {{batch_size: 4}}\n"
        f"trainer: {{max_steps: 2, default_root_dir: {tmp_path}/run, accelerator: cpu}}\n"
    )
    over = tmp_path / "over.yaml"
    over.write_text("model:\n  init_args:\n    optim: {warmup: 1}\n")
    cli = run(["fit", "--config", str(config), "--config", str(over), "--model.init_args.optim.weight_decay", "0.2"])
    wanted = Optim(lr=0.3, schedule="cosine", betas=(0.8, 0.95), warmup=1, weight_decay=0.2)
    assert cli.model.optim == wanted

"""A unit's splits, settings, trainings and hand-overs are recorded, and what is wired wrongly is refused."""

import random
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from common.errors import EncoreError
from common.training.run import Run, hand_over, sizes, train_on
from common.training.wiring import MOST, digest_of


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run("toy", "claim", "arm", 0, "smoke", tmp_path)


class Model(L.LightningModule):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, width), nn.Linear(width, 2)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(batch)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        rates = [{"params": self.body.parameters(), "lr": 0.1}, {"params": self.head.parameters(), "lr": 0.2}]
        return torch.optim.SGD(rates)


class Noisy(Dataset):
    """Examples of which a part comes from the global generators."""

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return self.numbers[index], torch.rand(2) + random.random() + np.random.rand()  # noqa: NPY002


def pictures(shades: list[int]) -> list[Image.Image]:
    return [Image.new("L", (4, 4), shade) for shade in shades]


@pytest.mark.parametrize(
    "make",
    [
        lambda ids: torch.tensor(ids),
        lambda ids: torch.tensor(ids, dtype=torch.bfloat16)[:, None],
        lambda ids: np.array(ids, dtype=np.float32),
        lambda ids: [f"text {i}" for i in ids],
        lambda ids: [{"ids": [i, None], "image": torch.full((2,), i)} for i in ids],
        lambda ids: pictures(ids),
        lambda ids: Noisy(range(ids[0], ids[-1] + 1)),
    ],
    ids=["rows", "bfloat16", "arrays", "text", "containers", "pictures", "noisy dataset"],
)
def test_an_example_in_two_splits_is_refused_and_counted(run: Run, make) -> None:
    data = make([0, 1, 2, 3])
    assert run.split("train", data) is data
    run.split("test", make([4, 5, 6]))
    with pytest.raises(EncoreError, match="2 examples of split 'valid' are in split 'train' too"):
        run.split("valid", make([2, 3, 9] if not isinstance(data, Noisy) else [2, 3]))
    assert run.record.splits["train"]["examples"] == 4


def test_splits_are_told_apart_by_content_and_order(run: Run) -> None:
    digests = set()
    for name, data in {"a": ["x", "y"], "b": ["y", "x"], "c": ["xy"], "d": ["x", "z"]}.items():
        run.split(f"train:{name}", data)
        digests.add(run.record.splits[f"train:{name}"]["digest"])
    assert len(digests) == 4
    assert digest_of(("a", "b")) != digest_of(("ab",))
    assert digest_of(torch.zeros(2)) != digest_of(torch.zeros(2, 1))
    assert digest_of(1) != digest_of("1") != digest_of(1.0)


def test_declaring_draws_nothing_and_leaves_generators_alone(run: Run) -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    run.split("train", Noisy(range(5)))
    assert (torch.rand(1), random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_groups_overlap_and_names(run: Run) -> None:
    run.split("train:fold0", ["a", "b"])
    run.split("test:fold1", ["a"])
    with pytest.raises(EncoreError, match="1 examples of split 'test:fold0'"):
        run.split("test:fold0", ["b"])
    with pytest.raises(EncoreError, match="1 examples of split 'test'"):
        run.split("test", ["a"])
    run.split("valid", ["a"], overlap="the same people judge both")
    assert run.record.splits["valid"]["overlap"] == "the same people judge both"
    with pytest.raises(EncoreError, match="declared twice"):
        run.split("train:fold0", ["a", "c"])
    with pytest.raises(EncoreError, match="a name is train, valid, test"):
        run.split("held-out", ["a"])
    with pytest.raises(EncoreError, match="no digest of a object"):
        run.split("train:odd", [object()])
    with pytest.raises(EncoreError, match="has no length"):
        run.split("train:stream", iter("ab"))


def test_of_a_large_split_the_same_examples_are_looked_at_every_time(run: Run) -> None:
    read: list[int] = []

    class Large(Dataset):
        def __len__(self) -> int:
            return 10 * MOST

        def __getitem__(self, index: int) -> int:
            read.append(index)
            return index

    run.split("train", Large())
    assert len(read) == MOST
    assert read[-1] == 10 * MOST - 10
    run.split("train", Large())
    assert read[:MOST] == read[MOST:]


def test_a_training_records_what_it_used(run: Run) -> None:
    data = run.split("train", torch.arange(30.0).view(10, 3))
    torch.manual_seed(0)
    model = Model()
    model.head.bias.requires_grad_(False)
    train_on(run, model, data, steps=3, batch_size=4, accumulate_grad_batches=2)
    found = run.record.fits["fit"]
    assert {key: found[key] for key in ("module", "steps", "batch_size", "examples", "lr", "parameters", "data")} == {
        "module": "Model", "steps": 3, "batch_size": 8, "examples": 24, "lr": 0.2, "parameters": 24, "data": "train"
    }  # fmt: skip
    assert found["handed_over"] is None
    assert found["start"] != found["end"]
    again = Run("toy", "claim", "arm", 0, "smoke", run.dir)
    train_on(again, Model(), data, steps=3, batch_size=4)
    assert again.record.fits == run.record.fits, "a finished training tells what it was when it ran"
    other = Run("toy", "claim", "arm", 0, "smoke", run.dir / "other")
    torch.manual_seed(1)
    train_on(other, Model(), data, steps=3, batch_size=4)
    assert other.record.fits["fit"]["start"] != found["start"]
    assert other.record.fits["fit"]["data"] is None


def test_training_on_the_test_split_is_refused(run: Run) -> None:
    run.split("train", torch.zeros(4, 3))
    test = run.split("test:unseen", torch.ones(4, 3))
    with pytest.raises(EncoreError, match="claim, arm arm: trains on its split 'test:unseen'"):
        train_on(run, Model(), test, steps=1, batch_size=2)


def test_train_on_sees_the_examples_in_the_order_of_the_seed_in_whole_passes(run: Run) -> None:
    seen: list[int] = []

    class Watching(Model):
        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            seen.extend(batch[:, 0].mul(10).round().int().tolist())
            return super().training_step(batch)

    data = torch.arange(10)[:, None].expand(10, 3) / 10
    train_on(run, Watching(), data, steps=5, batch_size=4)
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)), "the incomplete last batch of a pass is used too"
    first, seen[:] = list(seen), []
    train_on(Run("toy", "claim", "other", 0, "smoke", run.dir / "b"), Watching(), data, steps=5, batch_size=4)
    assert seen == first
    seen.clear()
    train_on(Run("toy", "claim", "arm", 1, "smoke", run.dir / "c"), Watching(), data, steps=5, batch_size=4)
    assert seen != first


def test_a_hand_over_reaches_every_weight_and_is_recorded(run: Run) -> None:
    source, target = Model(), Model()
    old_head = target.head.weight.clone()
    hand_over(source, target, fresh=["head"])
    assert torch.equal(source.body.weight, target.body.weight)
    assert torch.equal(target.head.weight, old_head), "what is fresh stays as it was"
    train_on(run, target, torch.zeros(4, 3), steps=1, batch_size=2)
    assert len(run.record.fits["fit"]["handed_over"]) == 8
    part = Model()
    theirs = {f"encoder.{key}": value for key, value in source.state_dict().items()}
    hand_over(theirs, part.body, rename={"encoder.body.": ""})
    assert torch.equal(part.body.bias, source.body.bias)
    train_on(run, part, torch.zeros(4, 3), steps=1, batch_size=2, name="part")
    assert run.record.fits["part"]["handed_over"]


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        (lambda: {"body.weight": torch.zeros(4, 3)}, {"fresh": ["head"]}, "nothing reaches body.bias"),
        (lambda: Model().state_dict(), {"rename": {"encoder.": ""}, "fresh": ["head"]}, "no weight is used"),
        (lambda: Model(), {"fresh": ["body", "head"]}, "no weight is used"),
        (lambda: Model(5), {}, "other shape: body.weight, body.bias, head.weight"),
        (lambda: Model(), {"fresh": ["classifier"]}, "fresh names nothing: classifier"),
        (lambda: Model(), {"fresh": ["hea"]}, "fresh names nothing: hea"),
    ],
)
def test_a_hand_over_that_leaves_something_out_is_refused(source, options, says) -> None:
    target = Model()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(EncoreError, match=f"hand-over to Model: .*{says}"):
        hand_over(source(), target, **options)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_tied_weights_are_reached_by_one_name() -> None:
    target = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    target["b"].weight = target["a"].weight
    hand_over({"a.weight": torch.ones(3, 3)}, target)
    assert torch.equal(target["b"].weight, torch.ones(3, 3))


def test_sizes_and_settings(run: Run, tmp_path: Path) -> None:
    scales = {scale: Run("toy", "claim", "arm", 0, scale, tmp_path) for scale in ("smoke", "cpu", "gpu")}
    assert [sizes(one, smoke=1, cpu=2) for one in scales.values()] == [1, 2, 2]
    assert [sizes(one, smoke=1, cpu=2, gpu=3) for one in scales.values()] == [1, 2, 3]
    run.settings(objective="pixels", shape=(8, 8))
    run.settings(rate=0.1)
    assert run.record.as_json() == {"settings": {"objective": "pixels", "shape": [8, 8], "rate": 0.1}}
    with pytest.raises(EncoreError, match="settings of arm arm"):
        run.settings(loss=nn.MSELoss())

"""The classification recipe: what it minimises, mixes, decays and scores, for pictures, video and several labels."""

import math

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from common.errors import EncoreError
from common.eval.classification import Classification, Scores, top_scores
from common.training.recipe import Optim


def recipe(classes=4, objective="ce", **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, classes))
    return Classification(model, Optim(lr=0.1), num_classes=classes, objective=objective, **options)


def batch(label, shape=(3, 2, 2)):
    torch.manual_seed(1)
    return {"image": torch.rand(len(label), *shape), "label": torch.as_tensor(label)}


@pytest.mark.parametrize("shape", [(3, 2, 2), (3, 1, 2, 2)])
def test_mixup_mixes_inputs_and_labels_by_one_share(shape):
    module, data = recipe(mixup=1.0), batch([0, 1, 2, 3], shape)
    mixed = module.augment(data)
    share = mixed["label"][0, 0].item()
    assert 0 < share < 1
    torch.testing.assert_close(mixed["label"], share * torch.eye(4) + (1 - share) * torch.eye(4).roll(1, 0))
    x = data["image"]
    torch.testing.assert_close(mixed["image"], share * x + (1 - share) * x.roll(1, 0))
    assert type(mixed["image"]) is torch.Tensor
    assert recipe().augment(data) is data


def test_mixup_and_cutmix_take_turns_and_are_not_for_evaluation():
    module = recipe(mixup=1.0, cutmix=1.0)
    data = batch([0, 1, 2, 3], (3, 8, 8))
    torch.manual_seed(0)
    cut = [bool(torch.isin(module.augment(data)["image"], data["image"]).all()) for _ in range(40)]
    assert 5 < sum(cut) < 35
    module, seen = recipe(mixup=1.0), {}
    module.log = lambda name, value, **_: seen.update({name: value})
    data = batch([0, 1, 2, 3])
    module.validation_step(data, 0)
    assert seen["val/loss"] == module.criterion(module.logits(data), data["label"])


def test_the_objectives_cost_what_uniform_logits_cost():
    for objective, label, cost in (
        ("ce", torch.tensor([1, 3]), math.log(4)),
        ("ce", torch.full((2, 4), 0.25), math.log(4)),
        ("bce", torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]]), math.log(2)),
    ):
        module = recipe(objective=objective)
        assert module.criterion(torch.zeros(2, 4), label).item() == pytest.approx(cost)
    sure = torch.tensor([[20.0, 0, 0, 0]])
    assert recipe(label_smoothing=0.2).criterion(sure, torch.tensor([0])).item() == pytest.approx(0.15 * 20, abs=1e-4)


def test_scores_are_over_the_whole_set_whatever_the_batches():
    logits, label = torch.randn(10, 7), torch.randint(7, (10,))
    scores = Scores()
    scores.update(logits[:7], label[:7])
    scores.update(logits[7:], label[7:])
    assert scores.compute() == top_scores(logits, label)
    assert scores.compute()["top1"] == pytest.approx(100 * float((logits.argmax(1) == label).float().mean()))
    assert scores.compute()["top5"] >= scores.compute()["top1"]
    scores.reset()
    with pytest.raises(EncoreError, match="evaluation set has no batch"):
        scores.compute()


def test_views_of_an_item_count_once_together():
    scores = Scores()
    # item 5: one certain view against two mildly opposed ones
    scores.update(torch.tensor([[9.0, 0.0], [0.0, 2.0]]), torch.tensor([1, 1]), torch.tensor([5, 5]), torch.arange(2))
    scores.update(
        torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([1, 0]), torch.tensor([5, 2]), torch.arange(2, 4)
    )
    assert scores.compute() == {"top1": 100.0, "top5": 100.0}


def test_multi_label_scores_are_macro_average_precision():
    scores = Scores(multilabel=True)
    logits = torch.tensor([[0.9, 0.2], [0.8, 0.6], [0.1, 0.4]]).logit()
    # class 0: the positives are ranked 1 and 3; class 1: the one positive is ranked second
    scores.update(logits, torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]))
    assert scores.compute() == {"map": pytest.approx(100 * ((1 + 2 / 3) / 2 + 1 / 2) / 2)}


def test_fit_validate_and_test_log_losses_and_scores(tmp_path):
    module = recipe()
    items = [{"image": x, "label": y} for x, y in zip(torch.rand(9, 3, 2, 2), torch.arange(9) % 4)]
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False)
    loader = DataLoader(items, 4)
    trainer.fit(module, loader, loader)
    assert {"train/loss", "val/loss", "val/top1", "val/top5"} <= trainer.callback_metrics.keys()
    found = trainer.test(module, loader, verbose=False)[0]
    logits = module.model(torch.stack([item["image"] for item in items]))
    assert found["test/top1"] == pytest.approx(top_scores(logits, torch.arange(9) % 4)["top1"])
    assert not any("scores" in name for name in module.state_dict())

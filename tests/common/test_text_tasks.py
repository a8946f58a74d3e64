"""Fine-tuning on labelled texts, with models whose answers are known."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from common.eval.text_tasks import UNLABELLED, TextTask
from common.formats.labelled_text import GLUETask, Labelled, collate_labels
from common.training.recipe import Optim


class Echo(nn.Module):
    """Reads scores and gives them back."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, scores):
        return scores * self.weight


def task(num_classes, *measures) -> TextTask:
    module = TextTask(Optim(lr=1e-3), num_classes, measures or ("accuracy",))
    module.model = Echo()
    return module


def validated(module, *sets) -> dict[str, float]:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    loaders = [DataLoader(rows, 2, collate_fn=lambda rows: [torch.stack(part) for part in zip(*rows)]) for rows in sets]
    (metrics, *_) = L.Trainer(accelerator="cpu", **off).validate(module, loaders, verbose=False)
    return metrics


def test_classes_are_measured_over_the_whole_set_and_the_score_is_the_mean_of_the_measures():
    scores = torch.tensor([[2.0, 1.0], [0.0, 3.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 0])
    found = validated(task(2, "accuracy", "f1"), list(zip(scores, labels)))
    assert found["val/accuracy"] == pytest.approx(2 / 3)
    assert found["val/f1"] == pytest.approx(2 / 3)
    assert found["val/score"] == pytest.approx(2 / 3)
    assert found["val/loss"] == pytest.approx(nn.functional.cross_entropy(scores, labels).item())
    assert not any(name.endswith("_mm") for name in found)


def test_a_second_set_has_measures_of_its_own_that_enter_the_score():
    right, wrong = torch.eye(2), torch.eye(2).flip(0)
    labels = torch.tensor([0, 1])
    module = task(2)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(accelerator="cpu", **off)
    trainer.validate(module, [DataLoader([(s, labels)], None) for s in (right, wrong)], verbose=False)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert (found["val/accuracy"], found["val/accuracy_mm"], found["val/score"]) == (1.0, 0.0, 0.5)
    assert found["val/loss"] < found["val/loss_mm"]


def test_numbers_are_learned_by_squared_error_and_measured_by_correlation():
    scores, labels = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 3.0, 5.0])
    module = task(1, "pearson", "spearman")
    assert module.loss((scores, labels)).item() == pytest.approx(2 / 3)
    found = validated(module, list(zip(scores, labels)))
    assert found["val/pearson"] == pytest.approx(torch.corrcoef(torch.stack([scores[:, 0], labels]))[0, 1].item())
    assert found["val/spearman"] == pytest.approx(1.0, abs=1e-5)


def test_tags_count_where_there_are_some():
    scores = torch.zeros(2, 3, 4)
    scores[..., 1] = 5.0
    labels = torch.tensor([[1, 2, UNLABELLED], [UNLABELLED, 1, 1]])
    module = task(4)
    real = labels != UNLABELLED
    expected = nn.functional.cross_entropy(scores[real], labels[real])
    torch.testing.assert_close(module.loss((scores, labels)), expected)
    assert validated(module, list(zip(scores, labels)))["val/accuracy"] == pytest.approx(3 / 4)


def test_a_glue_task_gives_the_rows_of_a_paper_and_validates_on_both_parts_of_mnli(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split, count in (("train", 4), ("validation_matched", 3), ("validation_mismatched", 2)):
        rows = [{"premise": "a" * i, "hypothesis": "b", "label": i % 3} for i in range(count)]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{split}.parquet")

    class Lengths(GLUETask):
        def rows(self, examples):
            ids = [[[0] * len(text) for text in texts] for texts in examples.texts]
            return Labelled(ids, examples.labels, lambda parts: [len(part) for part in parts])

        def collate(self, items):
            return torch.tensor([row for row, _ in items]), collate_labels(items)

    data = Lengths(str(tmp_path), "mnli", batch_size=2)
    data.setup()
    assert sorted(data.train[i] for i in range(4)) == [([0, 1], 0), ([1, 1], 1), ([2, 1], 2), ([3, 1], 0)]
    sizes = [[rows.tolist() for rows, _ in loader] for loader in data.val_dataloader()]
    assert sizes == [[[[0, 1], [1, 1]], [[2, 1]]], [[[0, 1], [1, 1]]]]

"""Fine-tuning on labelled texts: classes, numbers, or a class for every token; with the measures of GLUE."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MatthewsCorrCoef, Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy

from common.training.recipe import Optim, Recipe

Measure = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]
MEASURES: dict[Measure, Callable[[int], Metric]] = {
    "accuracy": lambda classes: MulticlassAccuracy(classes, average="micro"),
    "f1": lambda _: BinaryF1Score(),
    "matthews": lambda classes: MatthewsCorrCoef(task="multiclass", num_classes=classes),
    "pearson": lambda _: PearsonCorrCoef(),
    "spearman": lambda _: SpearmanCorrCoef(),
}
SUFFIXES = ("", "_mm")  # of a second validation set: MNLI's mismatched one
UNLABELLED = -100  # a token that no tag belongs to


class TextTask(Recipe):
    """Fine-tuning of `self.model`, which a subclass builds, on batches (what the model reads, ..., labels).

    The model's scores are (B, C) for labels (B,) of int64, or of floats where num_classes is 1 (mean squared error);
    or (B, N, C) for tags (B, N), of which UNLABELLED ones do not count. Validation logs val/loss, every measure, and
    their mean val/score, which is what enters GLUE's average; those of a second validation set end in `_mm`.
    """

    model: nn.Module

    def __init__(self, optim: Optim, num_classes: int, measures: Sequence[Measure] = ("accuracy",)) -> None:
        super().__init__(optim)
        self.num_classes = num_classes
        self.measures = nn.ModuleDict(
            {name + suffix: MEASURES[name](num_classes) for suffix in SUFFIXES for name in measures}
        )

    def loss(self, batch: Any) -> Tensor:
        *inputs, labels = batch
        return self.scored(self.model(*inputs), labels)

    def scored(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of the model's scores."""
        if self.num_classes == 1:
            return F.mse_loss(scores[:, 0], labels)
        return F.cross_entropy(scores.flatten(0, -2), labels.flatten(), ignore_index=UNLABELLED)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        *inputs, labels = batch
        scores, suffix = self.model(*inputs), SUFFIXES[dataloader_idx]
        loss = self.scored(scores, labels)
        self.log(f"val/loss{suffix}", loss, batch_size=len(labels), add_dataloader_idx=False)
        predicted = scores[:, 0].float() if self.num_classes == 1 else scores.argmax(-1)
        real = labels != UNLABELLED
        for name, measure in self._measures():
            if name.endswith("_mm") == bool(suffix):
                measure.update(predicted[real], labels[real])

    def on_validation_epoch_end(self) -> None:
        values: dict[str, Tensor] = {}
        for name, measure in self._measures():
            if measure.update_called:
                values[f"val/{name}"] = measure.compute()
                measure.reset()
        self.log_dict(values | {"val/score": torch.stack([*values.values()]).mean()}, prog_bar=True)

    def _measures(self) -> list[tuple[str, Metric]]:
        return [(name, measure) for name, measure in self.measures.items() if isinstance(measure, Metric)]

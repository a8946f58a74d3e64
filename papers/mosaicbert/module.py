"""Training: masked words and GLUE fine-tuning, for MosaicBERT and for the BERT baseline alike."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MatthewsCorrCoef, MeanMetric, Metric, SpearmanCorrCoef
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy

from common.errors import EncoreError
from common.training.optim import schedule
from papers.mosaicbert import data, glue
from papers.mosaicbert.interop import start_from
from papers.mosaicbert.model import ENCODERS, VOCAB, Classifier, Encoder, MaskedLM

WARMUP = 0.06  # of all steps


def decoupled_adamw(module: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW whose decay follows the schedule but not the peak rate: w <- (1 - lr_t / lr * weight_decay) w, then Adam.

    torch's AdamW takes lr_t times its own coefficient, so that is weight_decay / lr. All parameters decay, gains and
    biases too, as in the released code. betas (0.9, 0.98), eps 1e-6.
    """
    decay = weight_decay / lr
    return torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=decay, fused=True)


class _Recipe(L.LightningModule):
    """DecoupledAdamW, linear warm-up over 6 % of total_steps, linear decay to `floor` of the peak."""

    def __init__(self, lr: float, weight_decay: float, total_steps: int, floor: float) -> None:
        super().__init__()
        self.lr, self.weight_decay, self.total_steps, self.floor = lr, weight_decay, total_steps, floor

    def configure_optimizers(self) -> Any:
        optimizer = decoupled_adamw(self, lr=self.lr, weight_decay=self.weight_decay)
        warmup = max(1, round(WARMUP * self.total_steps))
        return schedule(optimizer, "linear", warmup=warmup, total=self.total_steps, floor=self.floor)


def build(encoder: str, vocab_size: int) -> Encoder:
    """The encoder of that name in model.ENCODERS; EncoreError naming the others."""
    if encoder not in ENCODERS:
        raise EncoreError(f"no encoder {encoder!r}; choose {', '.join(ENCODERS)}")
    return ENCODERS[encoder](vocab_size)


class Pretraining(_Recipe):
    """Masked-word prediction; there is no next-sentence loss. The share of masked words is the data module's."""

    def __init__(
        self,
        encoder: str = "mosaicbert_base",
        vocab_size: int = VOCAB,
        lr: float = 5e-4,
        weight_decay: float = 1e-5,
        total_steps: int = 70_000,
        floor: float = 0.02,
    ) -> None:
        super().__init__(lr, weight_decay, total_steps, floor)
        self.model = MaskedLM(build(encoder, vocab_size))
        self.val_loss, self.val_accuracy = MeanMetric(), MeanMetric()

    def training_step(self, batch: data.Batch, batch_idx: int) -> Tensor:
        loss = self.model.loss(*batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: data.Batch, batch_idx: int) -> None:
        logits, labels = self.model.labelled(*batch)
        self.val_loss.update(F.cross_entropy(logits.float(), labels, reduction="none"))
        self.val_accuracy.update((logits.argmax(-1) == labels).float())
        self.log_dict({"val/loss": self.val_loss, "val/accuracy": self.val_accuracy}, prog_bar=True)


METRICS: dict[str, Any] = {
    "accuracy": lambda classes: MulticlassAccuracy(classes, average="micro"),
    "f1": lambda classes: BinaryF1Score(),
    "matthews": lambda classes: MatthewsCorrCoef(task="multiclass", num_classes=classes),
    "spearman": lambda classes: SpearmanCorrCoef(),
}


class FineTuning(_Recipe):
    """One GLUE task. `checkpoint`: a training checkpoint of Pretraining, for RTE, MRPC and STS-B one of MNLI's
    FineTuning, or released weights (see interop.start_from).
    """

    def __init__(
        self,
        task: str,
        lr: float,
        weight_decay: float,
        total_steps: int,
        encoder: str = "mosaicbert_base",
        vocab_size: int = VOCAB,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(lr, weight_decay, total_steps, floor=0.0)
        self.task = glue.task(task)
        self.model = Classifier(build(encoder, vocab_size), self.task.num_classes)
        if checkpoint is not None:
            start_from(self.model, Path(checkpoint))
        self.scores = nn.ModuleDict(
            {f"{name}{part}": METRICS[name](self.task.num_classes) for part in self.parts for name in self.task.metrics}
        )

    @property
    def parts(self) -> list[str]:
        """Suffixes of the validation sets: MNLI's mismatched one is `_mm`."""
        return ["", "_mm"][: len(self.task.validation)]

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """scores: (B, C); labels: (B,) classes, or values for regression."""
        return F.mse_loss(scores[:, 0], labels) if self.task.num_classes == 1 else F.cross_entropy(scores, labels)

    def training_step(self, batch: glue.Batch, batch_idx: int) -> Tensor:
        *inputs, labels = batch
        loss = self.loss(self.model(*inputs), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: glue.Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        *inputs, labels = batch
        scores = self.model(*inputs)
        predicted = scores[:, 0].float() if self.task.num_classes == 1 else scores.argmax(-1)
        for name in self.task.metrics:
            self.score(name + self.parts[dataloader_idx]).update(predicted, labels)

    def score(self, name: str) -> Metric:
        """The running measure of that name."""
        metric = self.scores[name]
        assert isinstance(metric, Metric)
        return metric

    def on_validation_epoch_end(self) -> None:
        """Every measure, and their mean `val/score`, which is what enters the GLUE average."""
        values: dict[str, Tensor] = {}
        for name in self.scores:
            values[f"val/{name}"] = self.score(name).compute()
            self.score(name).reset()
        self.log_dict(values | {"val/score": torch.stack([*values.values()]).mean()}, prog_bar=True)

"""Training BART: denoising pre-training (Sec. 2.2), sequence classification (3.1, 5.2) and summarisation (3.3, 5.3)."""

from typing import Any, Literal

import lightning as L
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MatthewsCorrCoef, Metric, PearsonCorrCoef
from torchmetrics.classification import MulticlassAccuracy

from common.eval.rouge import rouge
from common.training.optim import adamw, schedule
from papers.bart.generate import Decoding, generate
from papers.bart.interop import load_into
from papers.bart.model import BART, BARTClassifier, bart_base, bart_large, bart_tiny, set_dropout

Size = Literal["tiny", "base", "large"]
Batch = tuple[Tensor, Tensor]
SIZES = {"tiny": bart_tiny, "base": bart_base, "large": bart_large}


def decayed(
    module: L.LightningModule,
    *,
    lr: float,
    warmup_steps: int,
    total_steps: int,
    betas: tuple[float, float],
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Any:
    """AdamW with linear warm-up and linear ("polynomial, power 1") decay to zero: every BART recipe."""
    optimizer = adamw(module, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
    return schedule(optimizer, "linear", warmup=warmup_steps, total=total_steps)


class Denoising(L.LightningModule):
    """Pre-training: the decoder writes the whole original block while it reads the corrupted one.

    Cross entropy over all tokens without label smoothing. Dropout is off for the last `dropout_off` of the steps.
    """

    def __init__(
        self,
        size: Size = "base",
        vocab_size: int = 50265,
        max_positions: int = 1024,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        lr: float = 4e-4,
        warmup_steps: int = 10_000,
        total_steps: int = 500_000,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        dropout_off: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model: BART = SIZES[size](
            vocab_size, dropout=dropout, attention_dropout=attention_dropout, max_positions=max_positions
        )
        self.optimizer = {
            "lr": lr,
            "warmup_steps": warmup_steps,
            "total_steps": total_steps,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        self.last_step_with_dropout = round((1 - dropout_off) * total_steps)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.trainer.global_step >= self.last_step_with_dropout:
            set_dropout(self.model, 0.0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        source, target = batch
        loss = self.model.loss(source, target)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        source, target = batch
        self.log("val/loss", self.model.loss(source, target), batch_size=len(source), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return decayed(self, **self.optimizer)  # type: ignore[arg-type]


class SequenceClassification(L.LightningModule):
    """GLUE fine-tuning from a pre-trained checkpoint (a hub directory); num_classes 1 is regression (STS-B)."""

    def __init__(
        self,
        size: Size = "large",
        num_classes: int = 2,
        vocab_size: int = 50265,
        max_positions: int = 1024,
        checkpoint: str | None = None,
        metric: Literal["accuracy", "matthews", "pearson"] = "accuracy",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        lr: float = 1e-5,
        warmup_steps: int = 61,
        total_steps: int = 1018,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        bart = SIZES[size](
            vocab_size, dropout=dropout, attention_dropout=attention_dropout, max_positions=max_positions
        )
        self.model = BARTClassifier(bart, num_classes)
        if checkpoint is not None:
            load_into(self.model, checkpoint)
        self.regression = num_classes == 1
        self.metric_name = metric
        self.metric: Metric = {
            "accuracy": lambda: MulticlassAccuracy(num_classes, average="micro"),
            "matthews": lambda: MatthewsCorrCoef(task="multiclass", num_classes=num_classes),
            "pearson": PearsonCorrCoef,
        }[metric]()
        self.optimizer = {"lr": lr, "warmup_steps": warmup_steps, "total_steps": total_steps, "betas": (0.9, 0.98)}

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """scores: (B, C); labels: (B,) classes, or values for regression."""
        return F.mse_loss(scores[:, 0], labels) if self.regression else F.cross_entropy(scores, labels)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        ids, labels = batch
        loss = self.loss(self.model(ids), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        ids, labels = batch
        scores = self.model(ids)
        self.metric.update(scores[:, 0] if self.regression else scores.argmax(dim=-1), labels)
        self.log("val/loss", self.loss(scores, labels), batch_size=len(ids))
        self.log(f"val/{self.metric_name}", self.metric, batch_size=len(ids), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return decayed(self, **self.optimizer)  # type: ignore[arg-type]


class Summarisation(L.LightningModule):
    """Fine-tuning on (document, summary) pairs with label smoothing; `test` writes summaries and measures ROUGE.

    Label smoothing spreads its share evenly over the whole vocabulary, the right token included.
    """

    def __init__(
        self,
        size: Size = "large",
        vocab_size: int = 50265,
        max_positions: int = 1024,
        checkpoint: str | None = None,
        label_smoothing: float = 0.1,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        lr: float = 3e-5,
        warmup_steps: int = 500,
        total_steps: int = 20_000,
        decoding: Decoding = Decoding(),  # noqa: B008 (a frozen dataclass)
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model: BART = SIZES[size](
            vocab_size, dropout=dropout, attention_dropout=attention_dropout, max_positions=max_positions
        )
        if checkpoint is not None:
            load_into(self.model, checkpoint)
        self.label_smoothing, self.decoding = label_smoothing, decoding
        self.optimizer = {"lr": lr, "warmup_steps": warmup_steps, "total_steps": total_steps, "betas": (0.9, 0.999)}
        self.written: list[tuple[str, str]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        source, target = batch
        loss = self.model.loss(source, target, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        source, target = batch
        self.log("val/loss", self.model.loss(source, target), batch_size=len(source), prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        source, target = batch
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        tokens, _ = generate(self.model, source, self.decoding)
        self.written += [(tokenizer.decode(a).strip(), tokenizer.decode(b).strip()) for a, b in zip(tokens, target)]

    def on_test_epoch_end(self) -> None:
        scores = rouge([ours for ours, _ in self.written], [reference for _, reference in self.written])
        self.log_dict({f"test/{name}": value for name, value in scores.items()})
        self.written.clear()

    def configure_optimizers(self) -> Any:
        return decayed(self, **self.optimizer)  # type: ignore[arg-type]

"""Training: masked words and GLUE fine-tuning, for MosaicBERT and for the BERT baseline alike.

The optimizer (set in the configs) is the released DecoupledAdamW: its decay follows the schedule but not the peak rate,
w <- (1 - lr_t / lr * weight_decay) w, then Adam; gains and biases decay too.
"""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from common.errors import EncoreError
from common.eval.text_tasks import Measure, TextTask
from common.formats.labelled_text import glue_task
from common.training.recipe import Optim, Recipe
from papers.mosaicbert.data import Batch
from papers.mosaicbert.interop import start_from
from papers.mosaicbert.model import ENCODERS, VOCAB, Classifier, Encoder, MaskedLM

MEASURES: dict[str, tuple[Measure, ...]] = {  # of the other tasks: accuracy
    "qqp": ("accuracy", "f1"),
    "mrpc": ("accuracy", "f1"),
    "cola": ("matthews",),
    "stsb": ("spearman",),
}


def build(encoder: str, vocab_size: int) -> Encoder:
    """The encoder of that name in model.ENCODERS; EncoreError naming the others."""
    if encoder not in ENCODERS:
        raise EncoreError(f"no encoder {encoder!r}; choose {', '.join(ENCODERS)}")
    return ENCODERS[encoder](vocab_size)


class Pretraining(Recipe):
    """Masked-word prediction; there is no next-sentence loss. The share of masked words is the data module's."""

    def __init__(self, optim: Optim, encoder: str = "mosaicbert_base", vocab_size: int = VOCAB) -> None:
        super().__init__(optim)
        self.model = MaskedLM(build(encoder, vocab_size))
        self.val_loss, self.val_accuracy = MeanMetric(), MeanMetric()

    def loss(self, batch: Batch) -> Tensor:
        return self.model.loss(*batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits, labels = self.model.labelled(*batch)
        self.val_loss.update(F.cross_entropy(logits.float(), labels, reduction="none"))
        self.val_accuracy.update((logits.argmax(-1) == labels).float())
        self.log_dict({"val/loss": self.val_loss, "val/accuracy": self.val_accuracy}, prog_bar=True)


class FineTuning(TextTask):
    """One GLUE task. `checkpoint`: a training checkpoint of Pretraining, for RTE, MRPC and STS-B one of MNLI's
    FineTuning, or released weights (see interop.start_from).
    """

    def __init__(
        self,
        optim: Optim,
        task: str,
        encoder: str = "mosaicbert_base",
        vocab_size: int = VOCAB,
        checkpoint: str | None = None,
    ) -> None:
        classes = glue_task(task).num_classes
        super().__init__(optim, classes, MEASURES.get(task, ("accuracy",)))
        self.model = Classifier(build(encoder, vocab_size), classes)
        if checkpoint is not None:
            start_from(self.model, Path(checkpoint))

"""Training BART: denoising pre-training (Sec. 2.2, 5.1) and the fine-tuning of Sec. 3 and 5.

Every module takes the model of a size (model.bart_base, ...) and, to fine-tune, `checkpoint`: the hub directory its
weights come from.
"""

import math
from collections.abc import Sequence
from typing import Any

import sacrebleu
from torch import Tensor
from torchmetrics.text import SQuAD

from common.eval.questions import SpanExtraction, update_score
from common.eval.rouge import rouge
from common.eval.seq2seq import Seq2Seq
from common.eval.text_tasks import Measure, TextTask
from common.training.recipe import Optim, Recipe
from papers.bart.generate import Decoding, generate
from papers.bart.interop import load_into
from papers.bart.model import BART, PAD, BARTClassifier, BARTTokenClassifier, BARTTranslator, set_dropout

Batch = tuple[Tensor, Tensor]


class Denoising(Recipe):
    """Pre-training: the decoder writes the whole original block while it reads the corrupted one.

    Cross entropy over all tokens without label smoothing. Dropout is off for the last `dropout_off` of the steps.
    """

    def __init__(self, model: BART, optim: Optim, dropout_off: float = 0.1) -> None:
        super().__init__(optim)
        self.model, self.dropout_off = model, dropout_off

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.trainer.global_step >= round((1 - self.dropout_off) * self.total_steps):
            set_dropout(self.model, 0.0)

    def loss(self, batch: Batch) -> Tensor:
        source, target = batch
        return self.model.loss(source, target)


class SequenceClassification(TextTask):
    """GLUE (Sec. 3.1, 5.2) through the decoder's state at the last `</s>`; num_classes 1 is regression (STS-B)."""

    def __init__(
        self,
        model: BART,
        optim: Optim,
        num_classes: int = 2,
        measures: Sequence[Measure] = ("accuracy",),
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(optim, num_classes, measures)
        self.model: BARTClassifier = BARTClassifier(model, num_classes)
        if checkpoint is not None:
            load_into(self.model, checkpoint)


class Answering(SpanExtraction):
    """SQuAD (Sec. 3.2, 5.2): start and end of an answer over the decoder's states."""

    def __init__(self, model: BART, optim: Optim, checkpoint: str | None = None) -> None:
        super().__init__(optim)
        self.model: BARTTokenClassifier = BARTTokenClassifier(model, num_classes=2)
        if checkpoint is not None:
            load_into(self.model, checkpoint)


class Summarisation(Seq2Seq):
    """Summaries and long answers (Sec. 3.3, 5.3): `test` writes them and measures ROUGE."""

    def __init__(
        self,
        model: BART,
        optim: Optim,
        label_smoothing: float = 0.1,
        decoding: Decoding = Decoding(),  # noqa: B008 (a frozen dataclass)
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(optim, label_smoothing)
        self.model: BART = model
        self.decoding = decoding
        if checkpoint is not None:
            load_into(self.model, checkpoint)

    def write(self, source: Tensor) -> Tensor:
        return generate(self.model, source, self.decoding)[0]

    def measure(self, written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        return rouge(written, references)


class Replies(Summarisation):
    """ConvAI2 (Sec. 5.3, Table 4): pairs of (persona and dialogue, reply).

    `test` logs test/f1, the mean over replies of the F1 of their words in percent (lower case, no punctuation, no
    articles), and test/perplexity: e to the nats of all tokens of the references over their words, each reply's end
    counted as one word. A word between spaces may be several tokens.
    """

    nats = 0.0

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        self.nats += self.pair_loss(batch, 0.0).item() * int(batch[1].ne(PAD).sum())

    def measure(self, written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        nats, self.nats = self.nats, 0.0
        words = sum(len(reference.split()) + 1 for reference in references)
        score = SQuAD()
        update_score(score, written, [[reference] for reference in references])
        return {"f1": float(score.compute()["f1"]), "perplexity": math.exp(nats / words)}


class Translation(Seq2Seq):
    """Into BART's language with a new source encoder (Sec. 3.4, 5.4). For `new_parts_steps` only that encoder, BART's
    positions and the input projection of its first encoder layer learn, then everything does."""

    def __init__(
        self,
        model: BART,
        optim: Optim,
        source_vocab_size: int = 40000,
        source_depth: int = 6,
        new_parts_steps: int = 40_000,
        label_smoothing: float = 0.1,
        decoding: Decoding = Decoding(beam=5, max_length=256),  # noqa: B008 (a frozen dataclass)
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(optim, label_smoothing)
        if checkpoint is not None:
            load_into(model, checkpoint)
        self.model: BARTTranslator = BARTTranslator(model, source_vocab_size, source_depth)
        self.new_parts_steps, self.decoding = new_parts_steps, decoding

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.trainer.global_step < self.new_parts_steps:
            self.model.train_new_parts()
        else:
            self.model.train_everything()

    def configure_optimizers(self) -> Any:
        self.model.train_everything()  # the optimizer must know all parameters; frozen ones have no gradient
        return super().configure_optimizers()

    def write(self, source: Tensor) -> Tensor:
        return generate(self.model, source, self.decoding)[0]

    def measure(self, written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """BLEU in percent by sacreBLEU."""
        return {"bleu": sacrebleu.corpus_bleu(list(written), [list(references)]).score}

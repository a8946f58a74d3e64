"""Fine-tuning on pairs of texts: teacher-forced training, and a test that writes and measures what is written."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from common.training.recipe import Optim, Recipe

Batch = tuple[Tensor, Tensor]


class Seq2Seq(Recipe):
    """Fine-tuning of `self.model`, which a subclass builds and whose `loss(source, target, label_smoothing=...)` is the
    mean over target tokens. Validation logs val/loss without smoothing. `test` writes a text for every source, decoded
    by the data module's tokenizer, and logs test/<name> of what `measure` says.

    Label smoothing spreads its share evenly over the whole vocabulary, the right token included.
    """

    model: nn.Module

    def __init__(self, optim: Optim, label_smoothing: float = 0.0) -> None:
        super().__init__(optim)
        self.label_smoothing = label_smoothing
        self.written: list[tuple[str, str]] = []

    def write(self, source: Tensor) -> Tensor:
        """Token ids (B, L) of a text for every source (B, N)."""
        raise NotImplementedError

    def measure(self, written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """How good the texts are."""
        raise NotImplementedError

    def pair_loss(self, batch: Batch, label_smoothing: float) -> Tensor:
        """Scalar, nats a token."""
        source, target = batch
        return self.model.loss(source, target, label_smoothing=label_smoothing)  # type: ignore[operator]

    def loss(self, batch: Batch) -> Tensor:
        return self.pair_loss(batch, self.label_smoothing)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log_loss("val", self.pair_loss(batch, 0.0), batch_size=len(batch[0]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        source, target = batch
        tokenizer: Any = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        rows = zip(self.write(source), target, strict=True)
        self.written += [(tokenizer.decode(ours).strip(), tokenizer.decode(theirs).strip()) for ours, theirs in rows]

    def on_test_epoch_end(self) -> None:
        written, references = zip(*self.written)
        self.log_dict({f"test/{name}": value for name, value in self.measure(written, references).items()})
        self.written.clear()

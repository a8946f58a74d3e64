"""Learners on a stream: what they share (tests after each task and the record of them), and the paper's."""

import warnings
from collections.abc import Iterator
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from common.errors import EncoreError
from common.eval.extract import extract_features
from papers.nmc_continual.metrics import summarise
from papers.nmc_continual.model import CosineMean, NearestMean, SharedCovariance, unnormalised_mean
from papers.nmc_continual.streams import Stream

# Both are meant here: class means have no optimizer, and a frozen encoder stays in eval mode.
warnings.filterwarnings("ignore", ".*returned `None`, this fit will run with no optimizer.*")
warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")

Variant = Literal["nearest_mean", "unnormalised", "cosine", "lda"]
VARIANTS: dict[str, Any] = {
    "nearest_mean": NearestMean,
    "unnormalised": unnormalised_mean,
    "cosine": CosineMean,
    "lda": SharedCovariance,
}


class StreamLearner(L.LightningModule):
    """Learns batch by batch and is tested after each task on what the stream says is due.

    A subclass says how it learns from a batch and how it scores images, and what it does when a task ends
    (`consolidate`). The record is kept in buffers, (tasks, classes) counts of test images, so that a run that was
    stopped ends with the same figures. Tests run inside the optimizer step of a task's last batch: a checkpoint is
    written after it, so none can fall between a task and its tests.
    """

    frozen = False
    """Whether the encoder is left as it comes."""
    correct: Tensor
    restricted: Tensor
    tested: Tensor

    def __init__(self, backbone: nn.Module, *, num_classes: int, num_tasks: int, **module: Any) -> None:
        super().__init__(**module)  # a learner that is a Recipe too passes its optim on
        self.backbone = backbone.requires_grad_(not self.frozen).train(not self.frozen)
        self.num_classes, self.num_tasks = num_classes, num_tasks
        for name in ("correct", "restricted", "tested"):
            self.register_buffer(name, torch.zeros(num_tasks, num_classes, dtype=torch.long))
        self.ending: int | None = None

    def learn(self, batch: dict[str, Tensor]) -> Tensor:
        """Take in a batch; returns its loss, a scalar."""
        raise NotImplementedError

    def scores(self, images: Tensor) -> Tensor:
        """(B, ...) -> (B, C), larger is likelier, -inf for classes not seen."""
        raise NotImplementedError

    def consolidate(self, task: int) -> None:
        """Called when a task has ended, before the tests."""

    @property
    def data(self) -> Any:
        """The data module, which knows the stream."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def train(self, mode: bool = True) -> "StreamLearner":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def on_fit_start(self) -> None:
        stream = self.data.stream
        if (len(stream.tasks), stream.num_classes) != (self.num_tasks, self.num_classes):
            raise EncoreError(
                f"the stream has {len(stream.tasks)} tasks and {stream.num_classes} classes, the model was built for "
                f"{self.num_tasks} and {self.num_classes}; set num_tasks and num_classes of the model accordingly"
            )
        if self.trainer.world_size > 1:
            raise EncoreError("a stream has one order, so it is read by one process: set trainer.devices to 1")
        if self.trainer.max_epochs != 1 and self.trainer.max_steps < 0:
            raise EncoreError("a stream is read once: set trainer.max_epochs to 1 (data.epochs repeats within a task)")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.ending = int(batch["task"]) if bool(batch["ends_task"]) else None
        loss = self.learn(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ending is not None:
            self.consolidate(self.ending)
            self.evaluate(self.ending)

    @torch.no_grad()
    def evaluate(self, task: int) -> None:
        """Test what is due after `task` and write the counts down."""
        self.eval()
        own = self.own_classes()
        for scores, labels in self.test_scores(task):
            hit = scores.argmax(dim=1) == labels
            inside = scores.masked_fill(~own[labels], -torch.inf).argmax(dim=1) == labels
            for counts, values in ((self.correct, hit), (self.restricted, inside), (self.tested, hit | True)):
                counts[task].index_add_(0, labels, values.long())
        self.train()
        self.log("stream/accuracy", 100 * self.correct[task].sum() / self.tested[task].sum())
        if task == self.num_tasks - 1:
            results = self.results(self.data.stream)
            self.log_dict({f"stream/{name}": value for name, value in results.items()})
            rank_zero_info(", ".join(f"{name} {value:.2f}" for name, value in results.items()))

    def test_scores(self, task: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(scores (B, C), labels (B,)) of the test images that are due after `task`."""
        for batch in self.data.test_loader(self.data.stream.tests[task]):
            yield self.scores(batch["image"].to(self.device)), batch["label"].to(self.device)

    def own_classes(self) -> Tensor:
        """(C, C) bool: row c marks the classes that come in the same task as class c."""
        own = torch.zeros(self.num_classes, self.num_classes, dtype=torch.bool)
        for classes in map(torch.from_numpy, self.data.stream.classes):
            own[classes[:, None], classes] = True
        return own.to(self.device)

    def results(self, stream: Stream) -> dict[str, float]:
        """The metrics of metrics.summarise for the stream that was learned to its end."""
        correct, restricted, tested = (c.cpu().numpy() for c in (self.correct, self.restricted, self.tested))
        return summarise(correct, restricted, tested, stream.classes)


class NMC(StreamLearner):
    """The paper's learner: a frozen encoder and class means that are updated as images come (Sec. 3).

    No parameter is trained. The loss is the mean squared distance of a batch to its own class means right after the
    update: the quantity a mean minimises, for the log. Task ends are used for nothing but the tests.
    """

    frozen = True

    def __init__(
        self, backbone: nn.Module, *, num_classes: int, num_tasks: int, variant: Variant = "nearest_mean"
    ) -> None:
        super().__init__(backbone, num_classes=num_classes, num_tasks=num_tasks)
        dim: Any = backbone.feature_dim
        self.classifier: NearestMean = VARIANTS[variant](dim, num_classes)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def learn(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.backbone(batch["image"])
        self.classifier.update(features, batch["label"])
        return self.classifier.spread(features, batch["label"]).float()

    def scores(self, images: Tensor) -> Tensor:
        return self.classifier.scores(self.backbone(images))

    def test_scores(self, task: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A test image passes the encoder once: nothing will change its feature, which is kept for the later tests."""
        due = self.data.stream.tests[task].tolist()
        new = [index for index in due if index not in self.kept]
        if new:
            batches = ((batch["image"], batch["label"]) for batch in self.data.test_loader(new))
            features, labels = extract_features(self.backbone, batches, self.device)
            self.kept |= dict(zip(new, zip(features, labels)))
        for part in (due[i : i + 4096] for i in range(0, len(due), 4096)):
            features, labels = (torch.stack(rows) for rows in zip(*(self.kept[index] for index in part)))
            yield self.classifier.scores(features.to(self.device)), labels.to(self.device)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Nothing to propagate."""

    def configure_optimizers(self) -> None:
        """Nothing to optimise."""

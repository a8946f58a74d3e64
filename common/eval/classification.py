"""Classification by fine-tuning: one recipe for pictures, video and audio, scored on whole test sets and over views."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MultilabelAveragePrecision
from torchmetrics.utilities import dim_zero_cat
from torchvision import tv_tensors
from torchvision.transforms import v2

from common.errors import EncoreError
from common.training.recipe import Optim, Recipe

Objective = Literal["ce", "bce"]


class Classification(Recipe):
    """Supervised fine-tuning of `model`, whose output is (B, num_classes) logits; a paper's subclass says what differs.

    A batch holds the input under the name `key` and "label": (B,) class for "ce" (softmax), (B, C) 0/1 for "bce" (a
    sigmoid a class: multi-label). For evaluation it may hold "index" (B,), the number of the item, where one item is
    seen in several views; "view" (B,) then numbers them. mixup, cutmix: alpha of the Beta that mixes the batch in
    training (with both, one of the two is drawn for each batch); 0 is none.

    Logs train/loss, val/loss and val/<score>, see `Scores`.
    """

    key = "image"  # what a batch calls its input

    def __init__(
        self,
        model: nn.Module,
        optim: Optim,
        *,
        num_classes: int,
        objective: Objective = "ce",
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        super().__init__(optim)
        self.model = model
        self.objective, self.label_smoothing, self.num_classes = objective, label_smoothing, num_classes
        with torch.device("cpu"):  # their Beta reads its alpha, which a model built on the meta device could not give
            mixes: list[v2.Transform] = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
            mixes += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []
        self.mix = v2.RandomChoice(mixes) if mixes else None
        self.scores = Scores(multilabel=objective == "bce")

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, num_classes)."""
        return self.model(batch[self.key])

    def augment(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What training does to a batch; its labels may become shares (B, C)."""
        if self.mix is None:
            return batch
        kind = tv_tensors.Video if batch[self.key].dim() == 5 else tv_tensors.Image
        mixed, label = self.mix(kind(batch[self.key]), batch["label"])
        return batch | {self.key: mixed.as_subclass(Tensor), "label": label}

    def criterion(self, logits: Tensor, label: Tensor) -> Tensor:
        """label: (B,) class or (B, C) share of each class."""
        if self.objective == "bce":
            return F.binary_cross_entropy_with_logits(logits.float(), label)
        return F.cross_entropy(logits.float(), label, label_smoothing=self.label_smoothing)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        batch = self.augment(batch)
        return self.criterion(self.logits(batch), batch["label"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _evaluate(self, prefix: str, batch: dict[str, Tensor]) -> None:
        logits, label = self.logits(batch), batch["label"]
        self.log(f"{prefix}/loss", self.criterion(logits, label), batch_size=len(label))
        self.scores.update(logits, label, batch.get("index"), batch.get("view"))

    def _report(self, prefix: str) -> None:
        scores = self.scores.compute()
        self.scores.reset()
        # the metric has gathered all ranks already
        self.log_dict({f"{prefix}/{name}": value for name, value in scores.items()}, prog_bar=True, sync_dist=False)


class Scores(Metric):
    """Scores of a test set in percent: {"top1", "top5"}, or with multilabel {"map"}, macro over the classes that occur.

    Rows of one "index" are views of one item: their probabilities (softmax) are averaged before they are ranked. Kept
    over all batches and gathered over ranks, so batches may differ in size.
    """

    full_state_update = False
    logits: list[Tensor]
    label: list[Tensor]
    index: list[Tensor]
    view: list[Tensor]

    def __init__(self, *, multilabel: bool = False) -> None:
        super().__init__()
        self.multilabel = multilabel
        for name in ("logits", "label", "index", "view"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, label: Tensor, index: Tensor | None = None, view: Tensor | None = None) -> None:
        """logits: (B, C); label: (B,) class or (B, C) 0/1; index, view: (B,) numbers."""
        self.logits.append(logits.detach().float())
        self.label.append(label)
        if index is not None:
            self.index.append(index)
            self.view.append(torch.zeros_like(index) if view is None else view)

    def compute(self) -> dict[str, float]:
        if not len(self.logits):
            raise EncoreError("there is nothing to score: the evaluation set has no batch; check its files and splits")
        logits, label = dim_zero_cat(self.logits), dim_zero_cat(self.label)
        if self.multilabel:
            precision = MultilabelAveragePrecision(logits.shape[1], thresholds=None).to(logits.device)
            return {"map": 100 * float(precision(logits.sigmoid(), label.long()))}
        if not len(self.index):
            return top_scores(logits, label)
        return multi_view_accuracy(logits, label, dim_zero_cat(self.index), dim_zero_cat(self.view))


def top_scores(scores: Tensor, label: Tensor) -> dict[str, float]:
    """top1 and top5 in percent. scores: (N, C), any monotone measure; label: (N,)."""
    ranked = scores.topk(min(5, scores.shape[1])).indices == label[:, None]
    return {"top1": 100 * float(ranked[:, 0].double().mean()), "top5": 100 * float(ranked.any(1).double().mean())}


def multi_view_accuracy(logits: Tensor, label: Tensor, index: Tensor, view: Tensor | None = None) -> dict[str, float]:
    """top1 and top5 in percent after averaging the softmax scores of each item's views.

    logits: (V, classes); label, index (the item's number), view: (V,). A view that occurs twice counts once.
    """
    scores, ids = average_views(logits, index, view)
    truth = torch.zeros_like(ids)
    truth[torch.searchsorted(ids, index)] = label
    return top_scores(scores, truth)


def average_views(logits: Tensor, items: Tensor, views: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean of the views' softmax scores, (V, C), and the V items' numbers, ascending.

    logits: (N, C), one row a view (clip x crop of a video); items: (N,) number of the row's item. views: (N,) number of
    the view within its item; when given, a view seen twice (a sampler that pads its last batch) counts once.
    """
    if len(logits) != len(items):
        raise EncoreError(f"multi-view: {len(logits)} rows of logits for {len(items)} item numbers")
    if views is not None:
        pairs = torch.stack([items, views], 1)
        _, inverse = pairs.unique(dim=0, return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), len(pairs), device=inverse.device)
        first.scatter_reduce_(0, inverse, torch.arange(len(pairs), device=inverse.device), "amin")
        logits, items = logits[first], items[first]
    ids, index, counts = items.unique(return_inverse=True, return_counts=True)
    scores = logits.double().softmax(-1)
    total = scores.new_zeros(len(ids), scores.shape[1]).index_add_(0, index, scores)
    return total / counts[:, None], ids

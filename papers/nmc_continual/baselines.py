"""Learners that train along the stream, from the same encoder: what the class means are compared with.

All have one linear head whose rows appear with their classes. Loss: cross-entropy over the classes seen so far, or
(own_task_only, as the prompt-based methods do it) over the classes of the current task. Joint training, the upper
bound, is FineTuning on a stream with data.joint.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from common.training.recipe import Optim, Recipe
from papers.nmc_continual.model import ScaleShifted
from papers.nmc_continual.module import StreamLearner


class FineTuning(StreamLearner, Recipe):
    """Sequential fine-tuning of all weights, with an optimizer that starts afresh in every task.

    The head has all rows from the start; a class has no logit before its task, so its row gets no gradient and Adam
    leaves it where it was: the same as a head that grows. Adam forgets its moments between tasks, as in L2P's code;
    kept step counts would give new rows several times larger first steps.
    """

    seen: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_classes: int,
        num_tasks: int,
        optim: Optim,
        own_task_only: bool = False,
    ) -> None:
        super().__init__(backbone, num_classes=num_classes, num_tasks=num_tasks, optim=optim)
        dim: Any = backbone.feature_dim
        self.head = nn.Linear(dim, num_classes)
        self.own_task_only = own_task_only
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    def features(self, images: Tensor) -> Tensor:
        """(B, ...) -> (B, D)"""
        return self.backbone(images)

    def scores(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)).masked_fill(~self.seen, -torch.inf)

    def learn(self, batch: dict[str, Tensor]) -> Tensor:
        own = self.own_classes()[batch["label"]]
        self.seen |= own.any(dim=0)
        scores = self.scores(batch["image"])
        if self.own_task_only:
            scores = scores.masked_fill(~own, -torch.inf)
        return F.cross_entropy(scores, batch["label"])

    def consolidate(self, task: int) -> None:
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()


class LinearHead(FineTuning):
    """Frozen features and a linear head trained along the stream."""

    frozen = True

    def features(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.backbone(images)


class ScaleAndShift(FineTuning):
    """Frozen encoder, one learned scale and shift a channel behind each of its stages, and the head: few parameters
    steer a frozen network, which is what prompts do."""

    frozen = True

    def __init__(self, backbone: nn.Module, **options: Any) -> None:
        super().__init__(backbone, **options)
        encoder: Any = backbone
        self.adapted = ScaleShifted(encoder)

    def features(self, images: Tensor) -> Tensor:
        return self.adapted(images)


class EWC(FineTuning):
    """Elastic weight consolidation (Kirkpatrick et al. 2017): loss + beta / 2 * sum_k F_k (theta_k - theta*_k)^2.

    F: diagonal Fisher information on `fisher_images` images of a task at its end, summed over tasks. theta*: the
    weights at the end of the last task (one penalty around the latest weights, Huszár 2018).
    """

    fisher: Tensor
    anchor: Tensor

    def __init__(self, backbone: nn.Module, *, beta: float = 100.0, fisher_images: int = 500, **options: Any) -> None:
        super().__init__(backbone, **options)
        self.beta, self.fisher_images = beta, fisher_images
        weights = parameters_to_vector(self.parameters()).detach()
        self.register_buffer("fisher", torch.zeros_like(weights))
        self.register_buffer("anchor", torch.zeros_like(weights))

    def learn(self, batch: dict[str, Tensor]) -> Tensor:
        return super().learn(batch) + self.penalty()

    def penalty(self) -> Tensor:
        """beta / 2 * sum_k F_k (theta_k - theta*_k)^2, a scalar; zero in the first task."""
        weights = parameters_to_vector(self.parameters())
        return self.beta / 2 * (self.fisher * (weights - self.anchor).square()).sum()

    def consolidate(self, task: int) -> None:
        super().consolidate(task)
        self.eval()
        batches = self.data.sample_loader(task, self.fisher_images)
        images = torch.cat([batch["image"] for batch in batches]).to(self.device)
        generator = torch.Generator().manual_seed(1000 * self.data.seed + task)
        self.fisher += self.fisher_information(images, generator)
        self.anchor.copy_(parameters_to_vector(self.parameters()).detach())

    @torch.enable_grad()
    def fisher_information(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(P,): mean over images of the squared gradient of log p(y | x), y drawn from the model's own p(y | x).

        Drawn labels make it the Fisher information; with the true labels it would vanish where the model is certain and
        right, whatever its curvature. One image at a time: the square of a mean gradient is another quantity.
        """
        weights = list(self.parameters())
        total = torch.zeros_like(self.fisher)
        for image in images:
            log_p = self.scores(image[None])[0].log_softmax(dim=0)
            label = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
            gradient = torch.autograd.grad(log_p[int(label)], weights)
            total += parameters_to_vector(gradient).square()
        return total / len(images)

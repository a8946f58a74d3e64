"""How a module is trained, in one place: optimizer, parameter groups, schedule and logging; a paper adds its loss."""

from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from common.errors import EncoreError
from common.training.optim import Schedule, factor, parameter_groups

Loss = Tensor | dict[str, Tensor]


@dataclass
class Optim:
    """An optimizer with its schedule, as a config states it: `model.init_args.optim: {lr: 4e-4, schedule: linear}`.

    lr: the peak. warmup: steps, or below 1 a share of all. total: all optimizer steps; None asks the trainer. The rate
    falls to floor * lr, or to min_lr. weight_decay spares gains, biases, what else has fewer than two dimensions and
    names that end in `no_decay`, unless decay_all; decoupled: it is not multiplied by the peak rate (w loses
    lr_t / lr * weight_decay of itself). layer_decay: see Recipe.layer_id. momentum is that of sgd and lars; betas and
    eps are Adam's. cooldown: share of all steps in which `wsd` falls; milestones (steps) and gamma are those of `step`.
    """

    lr: float
    name: Literal["adamw", "adam", "sgd", "lars", "adafactor"] = "adamw"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    schedule: Schedule = "constant"
    warmup: float = 0
    total: int | None = None
    floor: float = 0.0
    min_lr: float | None = None
    cooldown: float = 0.1
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    layer_decay: float | None = None
    no_decay: tuple[str, ...] = ()
    decay_all: bool = False
    decoupled: bool = False

    def __post_init__(self) -> None:
        checks = {
            f"lr must be above 0, not {self.lr}": self.lr > 0,
            f"weight_decay must not be negative, got {self.weight_decay}": self.weight_decay >= 0,
            f"warmup must not be negative, got {self.warmup}": self.warmup >= 0,
            f"total must be above 0, not {self.total}": self.total is None or self.total > 0,
            f"floor must lie in [0, 1], not {self.floor}": 0 <= self.floor <= 1,
            "give floor or min_lr, not both": self.min_lr is None or self.floor == 0,
            f"min_lr must lie in [0, lr], not {self.min_lr}": self.min_lr is None or 0 <= self.min_lr <= self.lr,
            f"cooldown must lie in (0, 1], not {self.cooldown}": 0 < self.cooldown <= 1,
            f"layer_decay must lie in (0, 1], not {self.layer_decay}": self.layer_decay is None
            or 0 < self.layer_decay <= 1,
        }
        for message, holds in checks.items():
            if not holds:
                raise EncoreError(f"optim: {message}")
        self.betas = (self.betas[0], self.betas[1])  # a config gives a list
        self.no_decay, self.milestones = tuple(self.no_decay), tuple(self.milestones)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over parameter groups."""
        adam: dict[str, Any] = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
        if self.name == "adamw":
            return torch.optim.AdamW(groups, **adam, fused=True)
        if self.name == "adam":
            return torch.optim.Adam(groups, **adam)
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        if self.name == "adafactor":
            return torch.optim.Adafactor(groups, lr=self.lr)
        from timm.optim import Lars

        return Lars(groups, lr=self.lr, momentum=self.momentum)

    def factor(self, step: int, total: int) -> float:
        """Multiplier of the peak rate at optimizer step `step` (0-based) of `total`."""
        warmup = round(self.warmup * total) if self.warmup < 1 else int(self.warmup)
        floor = self.floor if self.min_lr is None else self.min_lr / self.lr
        return factor(
            step,
            self.schedule,
            warmup=warmup,
            total=total,
            floor=floor,
            cooldown=self.cooldown,
            milestones=self.milestones,
            gamma=self.gamma,
        )


class Recipe(L.LightningModule):
    """A paper's objective is a subclass: its constructor, which builds `self.model`, and its `loss`."""

    def __init__(self, optim: Optim) -> None:
        super().__init__()
        self.optim = optim
        self._total = optim.total

    def loss(self, batch: Any) -> Loss:
        """The training loss of a batch: a scalar, or {"loss": scalar, what else is logged beside it: scalar}."""
        raise NotImplementedError

    def layer_id(self, name: str) -> int:
        """0 (embedding) .. L (head) of a parameter: with layer_decay d its rate is lr * d^(L - id)."""
        raise NotImplementedError(f"{type(self).__name__} has no layers to decay over")

    def factor(self, step: int) -> float:
        """Multiplier of the peak rate at optimizer step `step` (0-based)."""
        # a constant rate need not ask the trainer, which would set up its loader before a checkpoint is restored
        asks = self.optim.schedule != "constant" or 0 < self.optim.warmup < 1
        return self.optim.factor(step, self.total_steps if asks else 0)

    @property
    def total_steps(self) -> int:
        """All optimizer steps of the schedule."""
        if self._total is None:
            self._total = int(self.trainer.estimated_stepping_batches)
        return self._total

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.log_loss("train", self.loss(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log_loss("val", self.loss(batch), batch_size=batch_length(batch))

    def log_loss(self, prefix: str, loss: Loss, **options: Any) -> Tensor:
        """Log what `loss` gave as <prefix>/<name>; returns the scalar to minimise."""
        values = loss if isinstance(loss, dict) else {"loss": loss}
        for name, value in values.items():
            self.log(f"{prefix}/{name}", value.detach(), prog_bar=name == "loss", **options)
        return values["loss"]

    def configure_optimizers(self) -> Any:
        optim, self._total = self.optim, self.optim.total
        groups = parameter_groups(
            self,
            weight_decay=optim.weight_decay / optim.lr if optim.decoupled else optim.weight_decay,
            lr=optim.lr,
            layer_decay=optim.layer_decay,
            layer_id=self.layer_id if optim.layer_decay is not None else None,
            no_decay=optim.no_decay,
            decay_all=optim.decay_all,
        )
        optimizer = optim.build(groups)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, self.factor), "interval": "step"},
        }


def batch_length(batch: Any) -> int:
    """Number of examples in a batch: the first length found in its tensors, lists, tuples and dicts."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = list(batch.values()) if isinstance(batch, dict) else list(batch) if isinstance(batch, list | tuple) else []
    for part in parts:
        if isinstance(part, Tensor | dict | list | tuple):
            return batch_length(part)
    return max(len(parts), 1)

"""Training: maximum likelihood of solver outputs with teacher forcing (Eq. 2), for Ptr-Net and both baselines."""

from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from common.errors import EncoreError
from common.training.optim import Kind, schedule
from papers.pointer_networks.model import LSTMAttention, LSTMSeq2Seq, PointerNetwork, Seq2Seq
from papers.pointer_networks.problems import IGNORE, Batch

Architecture = Literal["pointer", "attention", "lstm"]


def build(architecture: Architecture, hidden_dim: int, num_points: int | None = None) -> Seq2Seq:
    """One of the three models; the baselines need num_points, the one size they are for."""
    if architecture == "pointer":
        return PointerNetwork(hidden_dim)
    if num_points is None:
        raise EncoreError(
            f"{architecture} has a fixed output dictionary: give num_points, the size of the sets it is trained on"
        )
    return LSTMAttention(hidden_dim, num_points) if architecture == "attention" else LSTMSeq2Seq(hidden_dim, num_points)


def sequence_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(C_i | C_<i, P) averaged over the steps that count. logits (B, m, n + 1), targets (B, m)."""
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


def exact_share(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of sequences whose every step has the target as its most probable position, given the right prefix."""
    return ((logits.argmax(dim=-1) == targets) | (targets == IGNORE)).all(dim=1).float().mean()


class PointerNetworks(L.LightningModule):
    """Trains one model. sgd at a constant rate of 1.0 is the paper's recipe; adam with cosine decay is quicker to
    start.
    """

    def __init__(
        self,
        architecture: Architecture = "pointer",
        hidden_dim: int = 256,
        num_points: int | None = None,
        optimizer: Literal["sgd", "adam"] = "sgd",
        lr: float = 1.0,
        decay: Kind = "constant",
        warmup: int = 0,
        total_steps: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = build(architecture, hidden_dim, num_points)
        self.optimizer, self.lr = optimizer, lr
        self.decay, self.warmup, self.total_steps = decay, warmup, total_steps
        if decay != "constant" and total_steps <= warmup:
            raise EncoreError(f"decay {decay} needs total_steps above warmup ({warmup}), got {total_steps}")

    def forward(self, batch: Batch) -> Tensor:
        return self.model(batch.points, batch.targets, batch.lengths)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = sequence_loss(self(batch), batch.targets)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self(batch)
        sets = len(batch.points)
        self.log("val/loss", sequence_loss(logits, batch.targets), batch_size=sets)
        self.log("val/exact", 100.0 * exact_share(logits, batch.targets), batch_size=sets)

    def configure_optimizers(self) -> Any:
        kind = torch.optim.SGD if self.optimizer == "sgd" else torch.optim.Adam
        optimizer = kind(self.parameters(), lr=self.lr)
        return schedule(optimizer, self.decay, warmup=self.warmup, total=self.total_steps)

"""Training: maximum likelihood of solver outputs with teacher forcing (Eq. 2), for Ptr-Net and both baselines."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from common.training.recipe import Optim, Recipe
from papers.pointer_networks.model import Architecture, build
from papers.pointer_networks.problems import IGNORE, Batch


def sequence_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(C_i | C_<i, P) averaged over the steps that count. logits (B, m, n + 1), targets (B, m)."""
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


def exact_share(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of sequences whose every step has the target as its most probable position, given the right prefix."""
    return ((logits.argmax(dim=-1) == targets) | (targets == IGNORE)).all(dim=1).float().mean()


class PointerNetworks(Recipe):
    """Trains one model. SGD at a constant rate of 1.0 is the paper's recipe; Adam with cosine decay is quicker to
    start.
    """

    def __init__(
        self,
        architecture: Architecture = "pointer",
        hidden_dim: int = 256,
        num_points: int | None = None,
        *,
        optim: Optim,
    ) -> None:
        super().__init__(optim)
        self.model = build(architecture, hidden_dim, num_points)

    def forward(self, batch: Batch) -> Tensor:
        return self.model(batch.points, batch.targets, batch.lengths)

    def loss(self, batch: Batch) -> Tensor:
        return sequence_loss(self(batch), batch.targets)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self(batch)
        values = {
            "loss": sequence_loss(logits, batch.targets),
            "exact": 100.0 * exact_share(logits, batch.targets),
        }
        self.log_loss("val", values, batch_size=len(batch.points))

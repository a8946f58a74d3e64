"""SIGMA's pre-training: video model and projection network predict each other's prototype assignments."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import EncoreError
from common.formats.video_clips import IMAGENET_STD
from common.layers.attention import take_tokens
from common.training.recipe import Optim, Recipe
from papers.sigma.assignment import MIN_EPS, assign, symmetric_loss
from papers.sigma.collapse import spread, usage_entropy
from papers.sigma.interop import load_dino
from papers.sigma.model import DINO, SIGMA
from papers.videomae_v2.model import true_indices
from papers.videomae_v2.module import cube_targets, log_skipped


def standardise_channels(features: Tensor) -> Tensor:
    """(B, N, D): every channel of a clip gets mean 0 and (unbiased) standard deviation 1 over the clip's N tokens."""
    variance, mean = torch.var_mean(features, dim=1, keepdim=True)
    return (features - mean) / (variance.sqrt() + 1e-6)


class Pretraining(Recipe):
    """Batches: video (B, C, T, H, W), hidden (B, N) bool, the same number M of True in each row; [skipped].

    objective: "sinkhorn" is the method; "l2" is the ablation that regresses x_phi and collapses when phi is trained.
    assignment: "hard" targets, the most likely prototype, as in the released code; "soft" ones as in the paper.
    dino_weights: a hub directory or official .pth for a DINO phi, which needs one. The rates in `optim` are the ones
    reached (the public scripts scale theirs by clips a step / 256). std: of the input's standardisation, undone before
    the MLP's pixels are normalised.
    """

    def __init__(
        self,
        model: SIGMA,
        optim: Optim,
        *,
        objective: Literal["sinkhorn", "l2"] = "sinkhorn",
        assignment: Literal["hard", "soft"] = "hard",
        eps: float = 0.05,
        iterations: int = 10,
        temperature: float = 0.1,
        dino_weights: str | None = None,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__(optim)
        if eps < MIN_EPS:
            raise EncoreError(f"eps {eps}: exp(cosine / eps) leaves float32's range; take at least {MIN_EPS}")
        if isinstance(model.phi, DINO) != (dino_weights is not None):
            raise EncoreError("dino_weights belongs to a DINO target: give it for one, and for no other")
        self.model = model
        self.objective, self.hard = objective, assignment == "hard"
        self.eps, self.iterations, self.temperature = eps, iterations, temperature
        self.std = std
        if objective == "l2":
            model.prototypes.requires_grad_(False)
        if isinstance(model.phi, DINO) and dino_weights is not None:
            load_dino(model.phi, dino_weights)

    def targets(self, video: Tensor, masked: Tensor) -> Tensor:
        """x_phi (B, M, D) of the masked tubes. masked: (B, M) indices."""
        phi = self.model.phi
        if isinstance(phi, DINO):
            return take_tokens(standardise_channels(phi(video)), masked)
        return phi(cube_targets(video, masked, self.model.video.encoder.embed, self.std))

    def features(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """x_phi and x_psi of all masked tubes of the batch, (B * M, D) each."""
        x_phi = self.targets(batch["video"], true_indices(batch["hidden"]))
        x_psi = self.model.video(batch["video"], batch["hidden"])
        return x_phi.flatten(0, 1), x_psi.flatten(0, 1)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.feature_loss(*self.features(batch))

    def feature_loss(self, x_phi: Tensor, x_psi: Tensor) -> dict[str, Tensor]:
        """The loss and what to log beside it, from features (N, D) of the same N tubes."""
        logged = {"target_spread": spread(x_phi)}
        if self.objective == "l2":
            return {"loss": F.mse_loss(x_psi.float(), x_phi.float())} | logged
        prototypes = self.model.prototypes
        prototypes.normalise_()
        s_phi, s_psi = prototypes(x_phi, detach=False), prototypes(x_psi, detach=True)
        q_phi, q_psi = (
            assign(scores, eps=self.eps, iterations=self.iterations, hard=self.hard) for scores in (s_phi, s_psi)
        )
        codes = q_phi if self.hard else q_phi.argmax(1)
        logged["usage_entropy"] = usage_entropy(codes, s_phi.shape[1])
        return {"loss": symmetric_loss(s_phi, s_psi, q_phi, q_psi, temperature=self.temperature)} | logged

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        log_skipped(self, batch)
        return super().training_step(batch, batch_idx)

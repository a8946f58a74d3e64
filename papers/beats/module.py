"""The three training stages as LightningModules: masked label prediction, tokenizer distillation, fine-tuning."""

from typing import Any, Literal

import lightning as L
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision

from common.masking import random_mask
from common.training.optim import adamw, schedule
from papers.beats import interop
from papers.beats.data import Batch
from papers.beats.model import (
    MASK_RATIO,
    AudioClassifier,
    Encoder,
    LabelPredictor,
    crop_to_patches,
    num_masked,
    predicted_tokens,
    token_padding,
)
from papers.beats.tokenizers import DistilledTokenizer, RandomProjectionTokenizer, TokenEstimator, distillation_loss

Sizes = dict[str, Any]  # keyword arguments of Encoder, LabelPredictor or TokenEstimator; none = base


class _Stage(L.LightningModule):
    """What the stages share: AdamW with warm-up and linear decay, padding, and parts that stay frozen."""

    frozen = ""  # name of the part that is never trained and always in eval mode: the tokenizer, or the teacher

    def __init__(
        self, lr: float, weight_decay: float, betas: tuple[float, float], warmup_steps: int, total_steps: int
    ) -> None:
        super().__init__()
        self.lr, self.weight_decay, self.betas = lr, weight_decay, (betas[0], betas[1])
        self.warmup_steps, self.total_steps = warmup_steps, total_steps

    def train(self, mode: bool = True) -> "_Stage":
        super().train(mode)
        if self.frozen:
            getattr(self, self.frozen).eval()
        return self

    def configure_optimizers(self) -> Any:
        optimizer = adamw(self, lr=self.lr, weight_decay=self.weight_decay, betas=self.betas)
        return schedule(optimizer, "linear", warmup=self.warmup_steps, total=self.total_steps)


def batch_padding(batch: Batch, patch_size: int) -> Tensor | None:
    """Token padding of a batch, (B, N) bool, or None when every clip fills it."""
    if "frames" not in batch:
        return None
    frames, mels = batch["spectrogram"].shape[-2:]
    return token_padding(batch["frames"], frames, mels, patch_size)


class PretrainModule(_Stage):
    """Masked audio modelling (Sec. 3.3): predict the frozen tokenizer's labels of the masked 75% from the visible 25%.

    tokenizer: "random" (iteration 1), the path of a tokenizer in the released layout, or a tokenizer module.
    encoder, predictor: sizes, empty = base. Labels come from the clean, whole input; only masked tokens carry a loss.
    """

    frozen = "tokenizer"

    def __init__(
        self,
        *,
        tokenizer: str | nn.Module = "random",
        encoder: Sizes | None = None,
        predictor: Sizes | None = None,
        num_codes: int = 1024,
        code_dim: int = 256,
        mask_ratio: float = MASK_RATIO,
        label_smoothing: float = 0.0,
        lr: float = 5e-4,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup_steps: int = 32000,
        total_steps: int = 400000,
    ) -> None:
        super().__init__(lr, weight_decay, betas, warmup_steps, total_steps)
        self.save_hyperparameters(ignore=["tokenizer"])
        self.encoder = Encoder(**(encoder or {}))
        if tokenizer == "random":
            patch_size = self.encoder.patch_size
            tokenizer = RandomProjectionTokenizer(patch_size=patch_size, dim=code_dim, num_codes=num_codes)
        elif isinstance(tokenizer, str):
            tokenizer = interop.load_tokenizer(tokenizer)
        self.tokenizer: Any = tokenizer.requires_grad_(False).eval()
        self.predictor = LabelPredictor(self.num_outputs(tokenizer), **{"dim": self.encoder.dim, **(predictor or {})})
        self.mask_ratio, self.label_smoothing = mask_ratio, label_smoothing

    def num_outputs(self, tokenizer: Any) -> int:
        """Width of the predictor's head: one logit a code."""
        return tokenizer.num_codes

    def targets(self, spectrogram: Tensor, padding: Tensor | None) -> Tensor:
        """What is predicted at every token, (B, N)."""
        return self.tokenizer.tokenize(spectrogram, padding)

    def objective(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss over the predicted tokens, and what is logged beside it."""
        accuracy = (prediction.argmax(dim=-1) == target).float().mean()
        loss = F.cross_entropy(prediction.float(), target, label_smoothing=self.label_smoothing)
        return loss, {"accuracy": accuracy}

    def step(self, batch: Batch, prefix: str) -> Tensor:
        x = batch["spectrogram"]
        padding = batch_padding(batch, self.encoder.patch_size)
        target = self.targets(x, padding)
        batch_size, length = target.shape[:2]
        masked = random_mask(batch_size, length, num_masked(length, self.mask_ratio), device=x.device)
        prediction = self.predictor(self.encoder(x, padding, ~masked), ~masked, padding)
        loss, metrics = self.objective(prediction, target[predicted_tokens(~masked, padding)])
        self.log_dict(
            {f"{prefix}/loss": loss} | {f"{prefix}/{k}": v for k, v in metrics.items()}, batch_size=batch_size
        )
        return loss

    def training_step(self, batch: Batch) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Batch) -> None:
        self.step(batch, "val")


class PatchRegressionModule(PretrainModule):
    """Control: the same encoder and masks, but mean-squared error on the patch (normalised by its own mean and std)."""

    def num_outputs(self, tokenizer: Any) -> int:
        return self.encoder.patch_size**2

    def targets(self, spectrogram: Tensor, padding: Tensor | None) -> Tensor:
        p = self.encoder.patch_size
        x = crop_to_patches(spectrogram, p)
        patches = rearrange(x, "b 1 (t p) (f q) -> b (t f) (p q)", p=p, q=p)
        return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()

    def objective(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return F.mse_loss(prediction, target), {}


class TokenizerModule(_Stage):
    """Self-distilled tokenizer (Sec. 3.2.2): codes from which an estimator can tell the frozen teacher's outputs.

    teacher: the path of an encoder in the released layout, or a module. An Encoder teaches its last hidden states; a
    fine-tuned AudioClassifier its class logits per token (iter3+). The whole input is seen, nothing is masked.
    """

    frozen = "teacher"

    def __init__(
        self,
        *,
        teacher: str | nn.Module,
        encoder: Sizes | None = None,
        estimator: Sizes | None = None,
        num_codes: int = 1024,
        code_dim: int = 256,
        commitment: float = 1.0,
        lr: float = 5e-5,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup_steps: int = 32000,
        total_steps: int = 400000,
    ) -> None:
        super().__init__(lr, weight_decay, betas, warmup_steps, total_steps)
        self.save_hyperparameters(ignore=["teacher"])
        teaching: Any = interop.load_encoder(teacher) if isinstance(teacher, str) else teacher
        self.teacher = teaching.requires_grad_(False).eval()
        self.tokenizer = DistilledTokenizer(Encoder(**(encoder or {})), num_codes=num_codes, code_dim=code_dim)
        fine_tuned = isinstance(teaching, AudioClassifier)
        width = teaching.encoder.dim if fine_tuned else teaching.dim
        num_classes = teaching.head.out_features if fine_tuned else None
        sizes = {"dim": width, "code_dim": code_dim, "num_classes": num_classes, **(estimator or {})}
        self.estimator = TokenEstimator(**sizes)
        self.commitment = commitment

    @torch.no_grad()
    def teach(self, spectrogram: Tensor, padding: Tensor | None) -> Tensor:
        """The teacher's output per token, (B, N, width or classes)."""
        if isinstance(self.teacher, AudioClassifier):
            return self.teacher.token_logits(spectrogram, padding)
        return self.teacher(spectrogram, padding)

    def step(self, batch: Batch, prefix: str) -> Tensor:
        x = batch["spectrogram"]
        padding = batch_padding(batch, self.tokenizer.encoder.patch_size)
        codes, commitment, indices = self.tokenizer(x, padding)
        distillation = distillation_loss(self.estimator(codes, padding), self.teach(x, padding), padding)
        loss = distillation + self.commitment * commitment
        used = indices if padding is None else indices[~padding]
        metrics = {
            "loss": loss,
            "distillation": distillation,
            "commitment": commitment,
            "perplexity": perplexity(used, self.tokenizer.num_codes),
        }
        self.log_dict({f"{prefix}/{k}": v for k, v in metrics.items()}, batch_size=len(x))
        return loss

    def training_step(self, batch: Batch) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Batch) -> None:
        self.step(batch, "val")


def perplexity(indices: Tensor, num_codes: int) -> Tensor:
    """exp(entropy) of the code histogram: num_codes when all codes are used equally, 1 when a single one is."""
    share = torch.bincount(indices.flatten(), minlength=num_codes).float()
    share = share / share.sum()
    return torch.exp(-torch.xlogy(share, share).sum())


class FineTuneModule(_Stage):
    """Supervised fine-tuning: logits averaged over tokens; BCE with mixup (AudioSet) or cross-entropy.

    checkpoint: an encoder in the released layout to start from (a fine-tuned one's classifier is dropped); without it
    an encoder of the given sizes starts from scratch. layer_decay: a layer's learning rate is that share of the next's.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        objective: Literal["bce", "ce"] = "bce",
        checkpoint: str | None = None,
        encoder: Sizes | None = None,
        mixup_alpha: float = 0.0,
        time_mask: int = 0,
        mel_mask: int = 0,
        layer_decay: float = 0.75,
        lr: float = 5e-4,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup_steps: int = 5000,
        total_steps: int = 80000,
    ) -> None:
        super().__init__(lr, weight_decay, betas, warmup_steps, total_steps)
        self.save_hyperparameters()
        if checkpoint is None:
            backbone = Encoder(**(encoder or {}))
        else:
            loaded = interop.load_encoder(checkpoint)
            backbone = loaded.encoder if isinstance(loaded, AudioClassifier) else loaded
            self.hparams["encoder"] = interop.encoder_sizes(backbone)
        self.model = AudioClassifier(backbone.train(), num_classes)
        self.objective, self.mixup_alpha = objective, mixup_alpha
        self.time_mask, self.mel_mask, self.layer_decay = time_mask, mel_mask, layer_decay
        self.metric = (
            MultilabelAveragePrecision(num_classes, thresholds=None)
            if objective == "bce"
            else MulticlassAccuracy(num_classes, average="micro")
        )

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """label: (B,) class or (B, C) share of each class."""
        if self.objective == "bce":
            return F.binary_cross_entropy_with_logits(logits.float(), label)
        return F.cross_entropy(logits.float(), label)

    def training_step(self, batch: Batch) -> Tensor:
        x, label = batch["spectrogram"], batch["label"]
        padding = batch_padding(batch, self.model.encoder.patch_size)
        if self.mixup_alpha:
            label = label if label.dim() == 2 else F.one_hot(label, self.model.head.out_features).float()
            x, label, padding = mixup(x, label, padding, self.mixup_alpha)
        x = spec_augment(x, self.time_mask, self.mel_mask)
        loss = self.loss(self.model(x, padding), label)
        self.log("train/loss", loss, batch_size=len(x))
        return loss

    def validation_step(self, batch: Batch) -> None:
        logits = self.model(batch["spectrogram"], batch_padding(batch, self.model.encoder.patch_size))
        label = batch["label"]
        self.metric.update(logits.sigmoid() if self.objective == "bce" else logits, label.long())
        name = "val/map" if self.objective == "bce" else "val/accuracy"
        self.log_dict({"val/loss": self.loss(logits, label), name: self.metric}, batch_size=len(label))

    def configure_optimizers(self) -> Any:
        depth = len(self.model.encoder.stack.layers)

        def layer_id(name: str) -> int:
            if ".layers." in name:
                return 1 + int(name.split(".layers.")[1].split(".")[0])
            return depth + 1 if name.startswith("model.head") else 0

        optimizer = adamw(
            self,
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=self.betas,
            layer_decay=self.layer_decay,
            layer_id=layer_id,
        )
        return schedule(optimizer, "cosine", warmup=self.warmup_steps, total=self.total_steps)


def mixup(x: Tensor, label: Tensor, padding: Tensor | None, alpha: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Each clip becomes share * itself + (1 - share) * another of the batch, share ~ Beta(alpha, alpha); so do labels.

    x: (B, 1, T, M), label: (B, C). Only what pads both clips is padding.
    """
    share = torch.distributions.Beta(alpha, alpha).sample((len(x),)).to(x)
    other = torch.randperm(len(x), device=x.device)
    x = torch.lerp(x[other], x, share[:, None, None, None])
    label = torch.lerp(label[other], label, share[:, None])
    return x, label, None if padding is None else padding & padding[other]


def spec_augment(x: Tensor, time_mask: int, mel_mask: int) -> Tensor:
    """SpecAugment: zero a stripe of up to time_mask frames and one of up to mel_mask bins per clip, (B, 1, T, M)."""
    for dim, widest in ((2, time_mask), (3, mel_mask)):
        if widest:
            size = x.shape[dim]
            width = torch.randint(min(widest, size) + 1, (len(x), 1), device=x.device)
            start = (torch.rand(len(x), 1, device=x.device) * (size - width + 1)).floor()
            index = torch.arange(size, device=x.device)
            stripe = (index >= start) & (index < start + width)  # (B, size)
            x = x.masked_fill(stripe[:, None, :, None] if dim == 2 else stripe[:, None, None, :], 0)
    return x

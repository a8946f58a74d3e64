"""The three training stages as LightningModules: masked label prediction, tokenizer distillation, fine-tuning."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from common.eval.classification import Classification, Objective
from common.masking import random_mask
from common.training.recipe import Optim, Recipe
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


def batch_padding(batch: Batch, patch_size: int) -> Tensor | None:
    """Token padding of a batch, (B, N) bool, or None when every clip fills it."""
    if "frames" not in batch:
        return None
    frames, mels = batch["spectrogram"].shape[-2:]
    return token_padding(batch["frames"], frames, mels, patch_size)


class _WithTeacher(Recipe):
    """A stage that learns from a part of it that stays frozen and in eval mode."""

    frozen: str  # the part's name

    def train(self, mode: bool = True) -> "_WithTeacher":
        super().train(mode)
        getattr(self, self.frozen).eval()
        return self


class PretrainModule(_WithTeacher):
    """Masked audio modelling (Sec. 3.3): predict the frozen tokenizer's labels of the masked 75% from the visible 25%.

    tokenizer: "random" (iteration 1), the path of a tokenizer in the released layout, or a tokenizer module.
    encoder, predictor: sizes, empty = base. Labels come from the clean, whole input; only masked tokens carry a loss.
    """

    frozen = "tokenizer"

    def __init__(
        self,
        optim: Optim,
        *,
        tokenizer: str | nn.Module = "random",
        encoder: Sizes | None = None,
        predictor: Sizes | None = None,
        num_codes: int = 1024,
        code_dim: int = 256,
        mask_ratio: float = MASK_RATIO,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(optim)
        self.save_hyperparameters(ignore=["tokenizer", "optim"])
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

    def objective(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Loss over the predicted tokens, and what is logged beside it."""
        accuracy = (prediction.argmax(dim=-1) == target).float().mean()
        loss = F.cross_entropy(prediction.float(), target, label_smoothing=self.label_smoothing)
        return {"loss": loss, "accuracy": accuracy}

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        x = batch["spectrogram"]
        padding = batch_padding(batch, self.encoder.patch_size)
        target = self.targets(x, padding)
        batch_size, length = target.shape[:2]
        hidden = num_masked(length, self.mask_ratio)
        masked = random_mask(batch_size, length, hidden, generator=generator, device=x.device)
        prediction = self.predictor(self.encoder(x, padding, ~masked), ~masked, padding)
        return self.objective(prediction, target[predicted_tokens(~masked, padding)])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same masks every time, drawn beside training's random state."""
        x = batch["spectrogram"]
        generator = torch.Generator(x.device).manual_seed(batch_idx)
        self.log_loss("val", self.loss(batch, generator), batch_size=len(x))


class PatchRegressionModule(PretrainModule):
    """Control: the same encoder and masks, but mean-squared error on the patch (normalised by its own mean and std)."""

    def num_outputs(self, tokenizer: Any) -> int:
        return self.encoder.patch_size**2

    def targets(self, spectrogram: Tensor, padding: Tensor | None) -> Tensor:
        p = self.encoder.patch_size
        x = crop_to_patches(spectrogram, p)
        patches = rearrange(x, "b 1 (t p) (f q) -> b (t f) (p q)", p=p, q=p)
        return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()

    def objective(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"loss": F.mse_loss(prediction, target)}


class TokenizerModule(_WithTeacher):
    """Self-distilled tokenizer (Sec. 3.2.2): codes from which an estimator can tell the frozen teacher's outputs.

    teacher: the path of an encoder in the released layout, or a module. An Encoder teaches its last hidden states; a
    fine-tuned AudioClassifier its class logits per token (iter3+). The whole input is seen, nothing is masked.
    """

    frozen = "teacher"

    def __init__(
        self,
        optim: Optim,
        *,
        teacher: str | nn.Module,
        encoder: Sizes | None = None,
        estimator: Sizes | None = None,
        num_codes: int = 1024,
        code_dim: int = 256,
        commitment: float = 1.0,
    ) -> None:
        super().__init__(optim)
        self.save_hyperparameters(ignore=["teacher", "optim"])
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

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x = batch["spectrogram"]
        padding = batch_padding(batch, self.tokenizer.encoder.patch_size)
        codes, commitment, indices = self.tokenizer(x, padding)
        distillation = distillation_loss(self.estimator(codes, padding), self.teach(x, padding), padding)
        used = indices if padding is None else indices[~padding]
        return {
            "loss": distillation + self.commitment * commitment,
            "distillation": distillation,
            "commitment": commitment,
            "perplexity": perplexity(used, self.tokenizer.num_codes),
        }


def perplexity(indices: Tensor, num_codes: int) -> Tensor:
    """exp(entropy) of the code histogram: num_codes when all codes are used equally, 1 when a single one is."""
    share = torch.bincount(indices.flatten(), minlength=num_codes).float()
    share = share / share.sum()
    return torch.exp(-torch.xlogy(share, share).sum())


class FineTuneModule(Classification):
    """Supervised fine-tuning: logits averaged over tokens; BCE with mixup (AudioSet) or cross-entropy.

    checkpoint: an encoder in the released layout to start from (a fine-tuned one's classifier is dropped); without it
    an encoder of the given sizes starts from scratch. optim.layer_decay: a layer's rate is that share of the next's.
    """

    key = "spectrogram"
    model: AudioClassifier

    def __init__(
        self,
        optim: Optim,
        *,
        num_classes: int,
        objective: Objective = "bce",
        checkpoint: str | None = None,
        encoder: Sizes | None = None,
        mixup_alpha: float = 0.0,
        time_mask: int = 0,
        mel_mask: int = 0,
    ) -> None:
        if checkpoint is None:
            backbone = Encoder(**(encoder or {}))
        else:
            loaded = interop.load_encoder(checkpoint)
            backbone = loaded.encoder if isinstance(loaded, AudioClassifier) else loaded
        model = AudioClassifier(backbone.train(), num_classes)
        super().__init__(model, optim, num_classes=num_classes, objective=objective)
        self.save_hyperparameters(ignore=["optim"])
        self.hparams["encoder"] = interop.encoder_sizes(backbone)
        self.mixup_alpha, self.time_mask, self.mel_mask = mixup_alpha, time_mask, mel_mask

    def padding(self, batch: Batch) -> Tensor | None:
        """(B, N) bool, or None when every clip fills the batch; mixing says it itself."""
        return batch["padding"] if "padding" in batch else batch_padding(batch, self.model.encoder.patch_size)

    def logits(self, batch: Batch) -> Tensor:
        return self.model(batch["spectrogram"], self.padding(batch))

    def augment(self, batch: Batch) -> Batch:
        x, label, padding = batch["spectrogram"], batch["label"], self.padding(batch)
        if self.mixup_alpha:
            label = label if label.dim() == 2 else F.one_hot(label, self.num_classes).float()
            x, label, padding = mixup(x, label, padding, self.mixup_alpha)
        changed = {"spectrogram": spec_augment(x, self.time_mask, self.mel_mask), "label": label}
        return changed if padding is None else changed | {"padding": padding}

    def layer_id(self, name: str) -> int:
        if ".layers." in name:
            return 1 + int(name.split(".layers.")[1].split(".")[0])
        return len(self.model.encoder.stack.layers) + 1 if name.startswith("model.head") else 0


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

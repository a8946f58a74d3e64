"""The nearest mean classifier with its variants, and the encoders it stands on.

Shapes: B images, D feature width, C classes of the whole stream (a class counts as seen once an image of it came by).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import EncoreError
from common.layers import ViT

FRACTION_BITS = 32
"""Sums are kept in units of 2^-32."""


class NearestMean(nn.Module):
    """One running sum and one count a class; the nearest mean wins (Sec. 3).

    A feature is L2-normalised first (normalise=False: the un-normalised variant); the mean is not normalised again.
    Sums are fixed-point integers: their addition is associative, so any order and any partition of a stream gives
    the same state, bit for bit. One feature's rounding is 2^-33 at most.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, dim: int, num_classes: int, *, normalise: bool = True) -> None:
        super().__init__()
        self.normalise = normalise
        self.register_buffer("sums", torch.zeros(num_classes, dim, dtype=torch.long))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.long))

    def prepare(self, features: Tensor) -> Tensor:
        """(B, D) of any float type -> (B, D) float64, normalised where the variant asks for it."""
        if features.ndim != 2 or features.shape[1] != self.sums.shape[1]:
            raise EncoreError(
                f"nearest mean: features are {tuple(features.shape)}, expected (B, {self.sums.shape[1]}); "
                "give the classifier the width of its encoder"
            )
        features = features.double()
        return F.normalize(features, dim=1) if self.normalise else features

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch, (B, D) and (B,). EncoreError for features that are not finite or too large to be summed."""
        self._count(self.prepare(features), labels)

    def _count(self, prepared: Tensor, labels: Tensor) -> None:
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < len(self.counts)):
            raise EncoreError(f"nearest mean: labels must lie in [0, {len(self.counts)}), got {labels.unique()}")
        if not torch.isfinite(prepared).all() or prepared.abs().max() >= 2.0**15:
            raise EncoreError("nearest mean: features hold NaN, infinity or values above 2^15; look at the encoder")
        fixed = (prepared * 2.0**FRACTION_BITS).round().long()
        self.sums.index_add_(0, labels, fixed)
        self.counts.index_add_(0, labels, torch.ones_like(labels))
        if self.sums.abs().max() >= 2**62:
            raise EncoreError("nearest mean: a sum is about to leave 64 bits; normalise the features")

    @property
    def seen(self) -> Tensor:
        """(C,) bool: classes with at least one image."""
        return self.counts > 0

    @property
    def means(self) -> Tensor:
        """(C, D) float64; zero for a class that was not seen."""
        return self.sums.double() / 2.0**FRACTION_BITS / self.counts.clamp(min=1)[:, None]

    def scores(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, C) float64, larger is nearer, -inf for classes not seen; the prediction is the argmax.

        f.mu - |mu|^2 / 2 orders the classes as -|f - mu| does. It is no cosine: a class with spread-out features
        has a shorter mean.
        """
        means = self.means
        return self._masked(self.prepare(features) @ means.T - means.square().sum(1) / 2)

    def _masked(self, scores: Tensor) -> Tensor:
        if not self.seen.any():
            raise EncoreError("nearest mean: no class has been seen yet; update with labelled features first")
        return scores.masked_fill(~self.seen, -torch.inf)

    @torch.no_grad()
    def spread(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean squared distance of features (B, D) to the means of their own classes: what the means minimise."""
        return (self.prepare(features) - self.means[labels]).square().sum(1).mean()


class CosineMean(NearestMean):
    """Variant: cosine similarity to the means, which is what normalising the mean as well amounts to."""

    def scores(self, features: Tensor) -> Tensor:
        return self._masked(self.prepare(features) @ F.normalize(self.means, dim=1).T)


class SharedCovariance(NearestMean):
    """Variant: Mahalanobis distance under one within-class covariance (linear discriminant analysis, equal priors).

    Keeps the sum of outer products beside sums and counts, so it streams too; this sum is float64 and order-free up
    to rounding. shrinkage: share s of (1 - s) * covariance + s * mean variance * identity.
    """

    outer: Tensor

    def __init__(self, dim: int, num_classes: int, *, normalise: bool = True, shrinkage: float = 0.1) -> None:
        super().__init__(dim, num_classes, normalise=normalise)
        self.shrinkage = shrinkage
        self.register_buffer("outer", torch.zeros(dim, dim, dtype=torch.double))

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        prepared = self.prepare(features)
        self._count(prepared, labels)
        self.outer += prepared.T @ prepared

    @property
    def covariance(self) -> Tensor:
        """(D, D): mean over all images of (f - mu)(f - mu)^T, shrunk towards a multiple of the identity."""
        means = self.means
        raw = (self.outer - means.T @ (means * self.counts[:, None])) / self.counts.sum().clamp(min=1)
        identity = torch.eye(len(raw), dtype=raw.dtype, device=raw.device)
        return (1 - self.shrinkage) * raw + self.shrinkage * raw.diagonal().mean() * identity

    def scores(self, features: Tensor) -> Tensor:
        means = self.means
        weights = torch.linalg.solve(self.covariance, means.T)  # (D, C)
        return self._masked(self.prepare(features) @ weights - (means * weights.T).sum(1) / 2)


def unnormalised_mean(dim: int, num_classes: int) -> NearestMean:
    """Variant: Euclidean distance between features as they come and their means."""
    return NearestMean(dim, num_classes, normalise=False)


class FrozenViT(ViT):
    """A ViT without head that says how wide its features are and which parts a scale-and-shift adapter follows."""

    channels_last = True

    @property
    def feature_dim(self) -> int:
        return self.cls_token.shape[0]

    @property
    def stages(self) -> list[nn.Module]:
        return list(self.blocks)

    @property
    def stage_dims(self) -> list[int]:
        return [self.feature_dim] * len(self.blocks)


def vit_base_patch16_224_in21k() -> FrozenViT:
    """The paper's encoder: class token after the last LayerNorm, no head."""
    return FrozenViT(image_size=224, patch_size=16, dim=768, depth=12, num_heads=12)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut (He et al. 2016). (B, C, H, W) -> (B, D, H / s, W / s)"""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class SmallResNet(nn.Module):
    """The encoder of the `cpu` claims: a stem of stride 2, one residual block a width, a linear read-out, LayerNorm.

    GroupNorm, not BatchNorm: as with the ViT's LayerNorm no image's feature depends on its batch, and the arms that
    train along the stream do not suffer from batch statistics of two classes. The read-out sees every position, which
    handwriting needs; a mean over positions hardly learned to tell characters apart.
    """

    channels_last = False

    def __init__(
        self,
        widths: tuple[int, ...] = (16, 32, 64),
        *,
        image_size: int = 28,
        in_channels: int = 1,
        groups: int = 8,
        feature_dim: int = 128,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, 2, 1, bias=False)
        self.norm_stem = nn.GroupNorm(groups, widths[0])
        before = (widths[0], *widths[:-1])
        self.blocks = nn.ModuleList(
            ResidualBlock(a, b, 1 if i == 0 else 2, groups) for i, (a, b) in enumerate(zip(before, widths))
        )
        size = -(-image_size // 2 ** len(widths))  # halved by the stem and by every block but the first
        self.proj = nn.Linear(widths[-1] * size**2, feature_dim)
        self.norm = nn.LayerNorm(feature_dim)
        self.stage_dims, self.feature_dim = list(widths), feature_dim

    @property
    def stages(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, feature_dim)"""
        x = F.relu(self.norm_stem(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return self.norm(self.proj(x.flatten(1)))


class Precomputed(nn.Identity):
    """Stands in for an encoder whose features were extracted before."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim


class ScaleShift(nn.Module):
    """y = scale * x + shift with one learned pair a channel; the identity at the start."""

    def __init__(self, dim: int, *, channels_last: bool) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1,) if self.channels_last else (-1, 1, 1)
        return x * self.scale.view(shape) + self.shift.view(shape)


class ScaleShifted(nn.Module):
    """An encoder with a ScaleShift behind each of its stages, the prompt-like adaptation of the claims."""

    def __init__(self, backbone: FrozenViT | SmallResNet) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapters = nn.ModuleList(
            ScaleShift(dim, channels_last=backbone.channels_last) for dim in backbone.stage_dims
        )
        for stage, adapter in zip(backbone.stages, self.adapters):
            stage.register_forward_hook(lambda _, __, output, adapter=adapter: adapter(output))
        self.feature_dim = backbone.feature_dim

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)"""
        return self.backbone(images)

"""VideoMAE V2 architecture (Sec. 3): a plain video ViT, its light decoder, and the classifier made from the encoder.

Video is (B, C, T, H, W). The grid of cubes is (T/2, H/p, W/p), flattened time-major; N = T' H' W'.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import EncoreError
from common.layers import Transformer, TubeletEmbed, sincos_1d
from common.layers.attention import take_tokens

EPS = 1e-6

Grid = tuple[int, int, int]


def true_indices(mask: Tensor) -> Tensor:
    """(B, N) bool with the same number K of True in every row -> (B, K) int64, ascending."""
    counts = mask.sum(1)
    if (counts != counts[0]).any():
        raise EncoreError(f"every clip of a batch needs the same number of selected cubes; got {counts.tolist()}")
    return mask.nonzero()[:, 1].view(mask.shape[0], -1)


def interpolate_positions(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Fit a position table (T' H' W', D) to another grid: bicubic in space, linear in time (as in public code)."""
    (slots, height, width), dim = old, table.shape[-1]
    x = table.view(slots, height, width, dim)
    if (height, width) != new[1:]:
        x = F.interpolate(x.permute(0, 3, 1, 2), new[1:], mode="bicubic").permute(0, 2, 3, 1)
    if slots != new[0]:
        x = F.interpolate(x.permute(1, 2, 3, 0).flatten(0, 1), new[0], mode="linear")
        x = x.unflatten(0, new[1:]).permute(3, 0, 1, 2)
    return x.reshape(-1, dim)


class VideoEncoder(nn.Module):
    """Pre-norm ViT over space-time cubes with fixed sine-cosine positions and no class token.

    norm: whether a LayerNorm follows the last block (pre-training only; the classifier normalises after pooling).
    pretrained_grid: grid of the position table, when it differs from the input's; the table is then interpolated.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        patch_size: int,
        norm: bool,
        num_frames: int = 16,
        image_size: int = 224,
        in_channels: int = 3,
        tubelet_size: int = 2,
        drop_path: float = 0.0,
        pretrained_grid: Grid | None = None,
    ) -> None:
        super().__init__()
        if num_frames % tubelet_size or image_size % patch_size:
            raise EncoreError(
                f"{num_frames} frames of {image_size} px cannot be cut into cubes of {tubelet_size} x {patch_size} px"
            )
        side = image_size // patch_size
        self.grid: Grid = (num_frames // tubelet_size, side, side)
        self.input_shape = (in_channels, num_frames, image_size, image_size)
        self.embed = TubeletEmbed((tubelet_size, patch_size, patch_size), in_channels, dim)
        old = pretrained_grid or self.grid
        positions = interpolate_positions(sincos_1d(old[0] * old[1] * old[2], dim), old, self.grid)
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor
        self.blocks = Transformer(depth, dim, num_heads, mlp_dim, eps=EPS, qkv_bias="qv", drop_path=drop_path)
        self.norm = nn.LayerNorm(dim, eps=EPS) if norm else nn.Identity()

    @property
    def num_tokens(self) -> int:
        return self.positions.shape[0]

    def forward(self, video: Tensor, visible: Tensor | None = None) -> Tensor:
        """video: (B, C, T, H, W); visible: (B, K) indices of the cubes to see, or None for all -> (B, K or N, dim).

        The input gets no gradient, so hidden cubes are dropped before the embedding: same result, a tenth of the work.
        """
        if video.shape[1:] != self.input_shape:
            raise EncoreError(
                f"a video is {tuple(video.shape[1:])} (channels, frames, height, width), not {self.input_shape}"
            )
        cubes = self.embed.cubes(video)
        if visible is None:
            x = self.embed.project(cubes) + self.positions
        else:
            x = self.embed.project(take_tokens(cubes, visible)) + self.positions[visible]
        return self.norm(self.blocks(x))


class Decoder(nn.Module):
    """Blocks over [encoded tokens; mask tokens]; norm and pixel head only on the mask tokens, which are all that the
    last block computes."""

    def __init__(self, *, dim: int, depth: int, num_heads: int, mlp_dim: int, out_dim: int) -> None:
        super().__init__()
        self.blocks = Transformer(depth, dim, num_heads, mlp_dim, eps=EPS, qkv_bias="qv")
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.head = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor, num_decoded: int) -> Tensor:
        """x: (B, K + num_decoded, dim) -> (B, num_decoded, out_dim)"""
        read = torch.arange(x.shape[1] - num_decoded, x.shape[1], device=x.device).expand(len(x), -1)
        return self.head(self.norm(self.blocks(x, read=read)))


class VideoMAE(nn.Module):
    """Masked autoencoder with dual masking (Sec. 3.2).

    Cubes that are visible to the encoder and also decoded enter the decoder twice; the loss leaves them out.
    """

    def __init__(
        self,
        *,
        decoder_dim: int,
        decoder_heads: int,
        decoder_mlp_dim: int,
        decoder_depth: int = 4,
        **encoder: Any,
    ) -> None:
        super().__init__()
        self.encoder = VideoEncoder(norm=True, **encoder)
        self.encoder_to_decoder = nn.Linear(self.encoder.positions.shape[1], decoder_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.register_buffer("positions", sincos_1d(self.encoder.num_tokens, decoder_dim), persistent=False)
        self.positions: Tensor
        self.decoder = Decoder(
            dim=decoder_dim,
            depth=decoder_depth,
            num_heads=decoder_heads,
            mlp_dim=decoder_mlp_dim,
            out_dim=math.prod(self.encoder.embed.tubelet_size) * self.encoder.input_shape[0],
        )
        self.encoder.blocks.apply(_init_xavier)
        self.decoder.apply(_init_xavier)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def reconstruct(self, video: Tensor, visible: Tensor, decoded: Tensor) -> Tensor:
        """As forward, with both maps given as indices: visible (B, K), decoded (B, M)."""
        encoded = self.encoder_to_decoder(self.encoder(video, visible)) + self.positions[visible]
        queries = self.mask_token + self.positions[decoded]
        return self.decoder(torch.cat([encoded, queries], dim=1), decoded.shape[1])

    def forward(self, video: Tensor, hidden: Tensor, decoded: Tensor | None = None) -> Tensor:
        """video (B, C, T, H, W); hidden, decoded: (B, N) bool, the same number of True in each row; None: all hidden.

        Returns (B, M, 2 * p * p * C): a prediction for each decoded cube, in raster order, channel fastest.
        """
        decoded = hidden if decoded is None else decoded
        for name, mask in (("hidden", hidden), ("decoded", decoded)):
            if mask.shape != (video.shape[0], self.encoder.num_tokens):
                raise EncoreError(
                    f"the {name} map has shape {tuple(mask.shape)}, "
                    f"{video.shape[0]} clips of {self.encoder.num_tokens} cubes were expected"
                )
        return self.reconstruct(video, true_indices(~hidden), true_indices(decoded))


class VideoClassifier(nn.Module):
    """The fine-tuning model: encoder without its last norm, mean over cubes, LayerNorm, dropout, linear head."""

    def __init__(
        self, *, num_classes: int, dim: int, head_dropout: float = 0.0, head_init_scale: float = 0.001, **encoder: Any
    ) -> None:
        super().__init__()
        self.encoder = VideoEncoder(dim=dim, norm=False, **encoder)
        self.fc_norm = nn.LayerNorm(dim, eps=EPS)
        self.dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(dim, num_classes)
        self.encoder.blocks.apply(_init_normal)
        self.head.apply(_init_normal)
        with torch.no_grad():
            self.head.weight.mul_(head_init_scale)

    def features(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, dim): pooled and normalised, ready for the head."""
        return self.fc_norm(self.encoder(video).mean(1))

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, num_classes) logits"""
        return self.head(self.dropout(self.features(video)))


_PRETRAINING_ONLY = ("encoder_to_decoder.", "mask_token", "decoder.", "encoder.norm.")


def encoder_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What fine-tuning keeps of a VideoMAE or VideoClassifier state dict: decoder, mask token and last norm go."""
    return {name: value for name, value in state.items() if not name.startswith(_PRETRAINING_ONLY)}


def _init_xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _init_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Published sizes. ViT-g's MLP is 48/11 times the width, in the decoder too: int(512 * 48 / 11) = 2234.
_SMALL: dict[str, Any] = {"dim": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536, "patch_size": 16}
_BASE: dict[str, Any] = {"dim": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072, "patch_size": 16}
_LARGE: dict[str, Any] = {"dim": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096, "patch_size": 16}
_HUGE: dict[str, Any] = {"dim": 1280, "depth": 32, "num_heads": 16, "mlp_dim": 5120, "patch_size": 16}
_GIANT: dict[str, Any] = {"dim": 1408, "depth": 40, "num_heads": 16, "mlp_dim": 6144, "patch_size": 14}


def pretrain_videomae_small_patch16_224() -> VideoMAE:
    return VideoMAE(**_SMALL, decoder_dim=192, decoder_heads=3, decoder_mlp_dim=768)


def pretrain_videomae_base_patch16_224() -> VideoMAE:
    return VideoMAE(**_BASE, decoder_dim=384, decoder_heads=6, decoder_mlp_dim=1536)


def pretrain_videomae_large_patch16_224() -> VideoMAE:
    return VideoMAE(**_LARGE, decoder_dim=512, decoder_heads=8, decoder_mlp_dim=2048)


def pretrain_videomae_huge_patch16_224() -> VideoMAE:
    return VideoMAE(**_HUGE, decoder_dim=512, decoder_heads=8, decoder_mlp_dim=2048)


def pretrain_videomae_giant_patch14_224() -> VideoMAE:
    return VideoMAE(**_GIANT, decoder_dim=512, decoder_heads=8, decoder_mlp_dim=2234)


def vit_small_patch16_224(num_classes: int, drop_path: float = 0.1, head_dropout: float = 0.0) -> VideoClassifier:
    return VideoClassifier(**_SMALL, num_classes=num_classes, drop_path=drop_path, head_dropout=head_dropout)


def vit_base_patch16_224(num_classes: int, drop_path: float = 0.1, head_dropout: float = 0.0) -> VideoClassifier:
    return VideoClassifier(**_BASE, num_classes=num_classes, drop_path=drop_path, head_dropout=head_dropout)


def vit_large_patch16_224(num_classes: int, drop_path: float = 0.2, head_dropout: float = 0.0) -> VideoClassifier:
    return VideoClassifier(**_LARGE, num_classes=num_classes, drop_path=drop_path, head_dropout=head_dropout)


def vit_huge_patch16_224(num_classes: int, drop_path: float = 0.2, head_dropout: float = 0.0) -> VideoClassifier:
    return VideoClassifier(**_HUGE, num_classes=num_classes, drop_path=drop_path, head_dropout=head_dropout)


def vit_giant_patch14_224(num_classes: int, drop_path: float = 0.3, head_dropout: float = 0.0) -> VideoClassifier:
    return VideoClassifier(**_GIANT, num_classes=num_classes, drop_path=drop_path, head_dropout=head_dropout)


def vit_giant_patch14_266_64f(num_classes: int, drop_path: float = 0.3, head_dropout: float = 0.0) -> VideoClassifier:
    """ViT-g on 64 frames of 266 px (the abstract's 90.0 on K400), with the positions of 16 x 224 interpolated."""
    larger: dict[str, Any] = {"num_frames": 64, "image_size": 266, "pretrained_grid": (8, 16, 16)}
    return VideoClassifier(**_GIANT, **larger, num_classes=num_classes, drop_path=drop_path, head_dropout=head_dropout)


# Not published: the size of the claims at small scale, for 8 x 32 x 32 grey clips (4 x 4 x 4 = 64 cubes).
_TINY: dict[str, Any] = {"dim": 64, "depth": 3, "num_heads": 2, "mlp_dim": 256, "patch_size": 8}
_DIGITS: dict[str, Any] = {"num_frames": 8, "image_size": 32, "in_channels": 1}


def pretrain_videomae_tiny_patch8_32() -> VideoMAE:
    return VideoMAE(**_TINY, **_DIGITS, decoder_dim=64, decoder_heads=2, decoder_mlp_dim=256, decoder_depth=1)


def vit_tiny_patch8_32(num_classes: int, drop_path: float = 0.0) -> VideoClassifier:
    return VideoClassifier(**_TINY, **_DIGITS, num_classes=num_classes, drop_path=drop_path)

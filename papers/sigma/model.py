"""SIGMA's networks: the video model Psi (a VideoMAE), the projection network phi (an MLP or a frozen DINO), prototypes.

Video is (B, C, T, H, W); tubes are flattened time-major as in VideoMAE.
"""

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.errors import EncoreError
from common.layers import ViT
from papers.sigma.assignment import Prototypes
from papers.videomae_v2.model import (
    EPS,
    VideoEncoder,
    VideoMAE,
    pretrain_videomae_base_patch16_224,
    pretrain_videomae_small_patch16_224,
    pretrain_videomae_tiny_patch8_32,
)

NUM_PROTOTYPES = 3000
MLP_DIM = 256
Target = Literal["mlp", "dino_small", "dino_base"]


class DINO(nn.Module):
    """Frozen ViT of DINO as projection network: the patch tokens of every second frame, after the last norm."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        in_channels: int = 3,
        stride: int = 2,
    ) -> None:
        super().__init__()
        self.vit = ViT(
            image_size=image_size,
            patch_size=patch_size,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            in_channels=in_channels,
            eps=EPS,
        )
        self.vit.requires_grad_(False)
        self.stride, self.out_dim = stride, dim

    @property
    def patches(self) -> int:
        """Patch tokens a frame."""
        return self.vit.positions.shape[0] - 1

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W), standardised as for ImageNet -> (B, T / stride * patches, dim): frames 0, stride, ..."""
        frames = video[:, :, :: self.stride].transpose(1, 2)
        tokens = self.vit.norm(self.vit.tokens(frames.flatten(0, 1)))[:, 1:]
        return tokens.unflatten(0, frames.shape[:2]).flatten(1, 2)


def projection_mlp(in_dim: int, hidden: tuple[int, ...], out_dim: int) -> nn.Sequential:
    """phi on a cube's normalised pixels: Linear layers with GELU between them. (..., in_dim) -> (..., out_dim)"""
    sizes = (in_dim, *hidden)
    layers: list[nn.Module] = []
    for one, other in pairwise(sizes):
        layers += [nn.Linear(one, other), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], out_dim))


class SIGMA(nn.Module):
    """Psi, phi and C. Only Psi's encoder is kept after pre-training.

    video: its decoder head is replaced by one of phi's width. phi: a trained `projection_mlp` of cube pixels, or DINO.
    """

    def __init__(self, video: VideoMAE, phi: nn.Sequential | DINO, num_prototypes: int = NUM_PROTOTYPES) -> None:
        super().__init__()
        head = video.decoder.head
        if isinstance(phi, DINO):
            _, height, width = video.encoder.grid
            tubelet = video.encoder.embed.tubelet_size[0]
            if (phi.stride, phi.patches) != (tubelet, height * width):
                raise EncoreError(
                    f"DINO gives {phi.patches} patches, one frame in {phi.stride}; "
                    f"the video model has {height} x {width} tubes of {tubelet} frames: make them agree"
                )
            dim = phi.out_dim
        else:
            first, last = phi[0], phi[-1]
            assert isinstance(first, nn.Linear)
            assert isinstance(last, nn.Linear)
            if first.in_features != head.out_features:
                raise EncoreError(f"phi takes {first.in_features} pixels, a cube has {head.out_features}")
            dim = last.out_features
        video.decoder.head = nn.Linear(head.in_features, dim)
        nn.init.xavier_uniform_(video.decoder.head.weight)
        nn.init.zeros_(video.decoder.head.bias)
        self.video, self.phi, self.prototypes = video, phi, Prototypes(num_prototypes, dim)


# Published sizes.


def dino_vit_small_patch16() -> DINO:
    return DINO(image_size=224, patch_size=16, dim=384, depth=12, num_heads=6)


def dino_vit_base_patch16() -> DINO:
    return DINO(image_size=224, patch_size=16, dim=768, depth=12, num_heads=12)


def _phi(target: Target) -> nn.Sequential | DINO:
    if target == "mlp":
        return projection_mlp(2 * 16 * 16 * 3, (1024, 1024, 512), MLP_DIM)
    return dino_vit_small_patch16() if target == "dino_small" else dino_vit_base_patch16()


def sigma_vit_base_patch16_224(target: Target, num_prototypes: int = NUM_PROTOTYPES) -> SIGMA:
    return SIGMA(pretrain_videomae_base_patch16_224(), _phi(target), num_prototypes)


def sigma_vit_small_patch16_224(target: Target, num_prototypes: int = NUM_PROTOTYPES) -> SIGMA:
    """ViT-S; the published recipe takes the features of DINO ViT-B as targets."""
    return SIGMA(pretrain_videomae_small_patch16_224(), _phi(target), num_prototypes)


def _encoder(num_frames: int, **size: Any) -> VideoEncoder:
    return VideoEncoder(**size, depth=12, patch_size=16, norm=True, num_frames=num_frames)


def video_encoder_base_patch16_224(num_frames: int = 16) -> VideoEncoder:
    """The pre-trained encoder with its last norm, for clips of any even number of frames."""
    return _encoder(num_frames, dim=768, num_heads=12, mlp_dim=3072)


def video_encoder_small_patch16_224(num_frames: int = 16) -> VideoEncoder:
    """As video_encoder_base_patch16_224."""
    return _encoder(num_frames, dim=384, num_heads=6, mlp_dim=1536)


# Not published: the size of the claims at small scale, for 8 x 32 x 32 grey clips (4 x 4 x 4 = 64 tubes).


def sigma_tiny_patch8_32(num_prototypes: int = 64, dim: int = 64) -> SIGMA:
    """Psi is VideoMAE V2's tiny size, phi an MLP 128 -> 128 -> 128 -> dim."""
    return SIGMA(pretrain_videomae_tiny_patch8_32(), projection_mlp(2 * 8 * 8, (128, 128), dim), num_prototypes)

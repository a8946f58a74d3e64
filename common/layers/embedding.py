"""Patch and tubelet embedding, and the fixed sine-cosine table of positions."""

import torch
from einops import rearrange
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Non-overlapping patches, linearly projected (ViT, Sec. 3.1). images (B, C, H, W) -> (B, H/p * W/p, D), row-major.

    The weight has Conv2d's shape (D, C, p, p), so published checkpoints fit, but is applied as one matrix product.
    """

    def __init__(self, patch_size: int, in_channels: int, dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        p = self.patch_size
        if images.shape[-2] % p or images.shape[-1] % p:
            raise ValueError(f"image size {tuple(images.shape[-2:])} is not a multiple of patch size {p}")
        patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        return nn.functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class TubeletEmbed(nn.Module):
    """Non-overlapping space-time cubes, linearly projected (ViViT, Sec. 3.2).

    video (B, C, T, H, W) -> (B, T/t * H/p * W/p, D), time-major then row-major. The weight has Conv3d's shape.
    """

    def __init__(self, tubelet_size: tuple[int, int, int], in_channels: int, dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.tubelet_size = tubelet_size
        self.proj = nn.Conv3d(in_channels, dim, tubelet_size, tubelet_size, bias=bias)

    def cubes(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, N, C * t * p * p): the raw cubes in the weight's element order."""
        t, p, q = self.tubelet_size
        if any(size % cube for size, cube in zip(video.shape[-3:], self.tubelet_size)):
            raise ValueError(f"video size {tuple(video.shape[-3:])} is not a multiple of the tubelet {(t, p, q)}")
        return rearrange(video, "b c (n t) (h p) (w q) -> b (n h w) (c t p q)", t=t, p=p, q=q)

    def project(self, cubes: Tensor) -> Tensor:
        """(..., C * t * p * p) -> (..., D): embeds any subset of the cubes, e.g. only the visible ones."""
        return nn.functional.linear(cubes, self.proj.weight.flatten(1), self.proj.bias)

    def forward(self, video: Tensor) -> Tensor:
        return self.project(self.cubes(video))


def sincos_1d(length: int, dim: int) -> Tensor:
    """Fixed positions (Vaswani et al. 2017, Sec. 3.5): (length, dim); even columns sine, odd columns cosine of
    position / 10000^(2 floor(j / 2) / dim). Computed in float64, returned in float32."""
    j = torch.arange(dim, dtype=torch.float64, device="cpu")
    position = torch.arange(length, dtype=torch.float64, device="cpu")
    angle = position[:, None] / 10000 ** (2 * (j // 2) / dim)
    table = torch.where(j % 2 == 0, angle.sin(), angle.cos())
    return table.float()

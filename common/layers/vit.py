"""Vision Transformer (Dosovitskiy et al. 2021)."""

from typing import Any

import torch
from torch import Tensor, nn

from common.layers.embedding import PatchEmbed
from common.layers.transformer import Transformer


class ViT(nn.Module):
    """Pre-norm ViT with a class token and learned absolute positions.

    `norm_pre` adds CLIP's LayerNorm between embedding and blocks. `num_classes` > 0 adds a linear head on the class
    token.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int | None = None,
        in_channels: int = 3,
        patch_bias: bool = True,
        norm_pre: bool = False,
        eps: float = 1e-6,
        num_classes: int = 0,
        **layer: Any,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image size {image_size} is not a multiple of patch size {patch_size}")
        self.embed = PatchEmbed(patch_size, in_channels, dim, bias=patch_bias)
        self.cls_token = nn.Parameter(torch.zeros(dim))
        self.positions = nn.Parameter(torch.zeros((image_size // patch_size) ** 2 + 1, dim))
        self.norm_pre = nn.LayerNorm(dim, eps=eps) if norm_pre else nn.Identity()
        self.blocks = Transformer(depth, dim, num_heads, mlp_dim or 4 * dim, eps=eps, **layer)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def tokens(self, images: Tensor, read: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D): class token first, before the last norm; or only the positions `read` (B,
        Q)."""
        x = self.embed(images)
        x = torch.cat([self.cls_token.expand(x.shape[0], 1, -1), x], dim=1) + self.positions
        return self.blocks(self.norm_pre(x), read=read)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), the normalised class token, or (B, num_classes) with a head.

        The last block computes the class token only: nothing else of its output is read.
        """
        cls = torch.zeros(images.shape[0], 1, dtype=torch.long, device=images.device)
        return self.head(self.norm(self.tokens(images, read=cls)[:, 0]))


def vit_base_patch16_224(num_classes: int = 1000) -> ViT:
    """ViT-B/16 at 224 px: 86,567,656 parameters with 1,000 classes."""
    return ViT(image_size=224, patch_size=16, dim=768, depth=12, num_heads=12, num_classes=num_classes)

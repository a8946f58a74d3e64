"""CLIP's architecture: two image encoders (ViT, modified ResNet), the text encoder, and every published size (Tables
19, 20).

Names and initialisation follow the released code; sizes are checked by the facts of paper.yaml.
"""

import math
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import EncoreError
from common.layers import Transformer, ViT

MAX_LOGIT_SCALE = math.log(100.0)  # Sec. 2.5: logits are never scaled by more than 100
INITIAL_TEMPERATURE = 0.07
HEAD_DIM = 64


class VisionTransformer(nn.Module):
    """ViT image encoder: bias-free patches, a LayerNorm before the blocks, the class token projected without bias
    (Sec. 2.4).
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        embed_dim: int,
        num_heads: int | None = None,
        mlp_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.embed_dim, self.feature_dim = image_size, embed_dim, dim
        self.vit = ViT(
            image_size=image_size,
            patch_size=patch_size,
            dim=dim,
            depth=depth,
            num_heads=num_heads or dim // HEAD_DIM,
            mlp_dim=mlp_dim,
            patch_bias=False,
            norm_pre=True,
            eps=1e-5,
            activation="quick_gelu",
        )
        self.proj = nn.Linear(dim, embed_dim, bias=False)
        for weight in (self.vit.cls_token, self.vit.positions, self.proj.weight):
            nn.init.normal_(weight, std=dim**-0.5)
        layer: Any
        for layer in self.vit.blocks:
            nn.init.xavier_uniform_(layer.attn.qkv.weight)  # the default of torch's MultiheadAttention
            nn.init.zeros_(layer.attn.qkv.bias)
            nn.init.zeros_(layer.attn.out.bias)

    def forward(self, images: Tensor, *, project: bool = True) -> Tensor:
        """images (B, 3, R, R) -> (B, embed_dim), or the normalised class token (B, dim) with project=False."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise EncoreError(f"image encoder wants {self.image_size} px images, got {tuple(images.shape[-2:])}")
        features = self.vit(images)
        return self.proj(features) if project else features


class Bottleneck(nn.Module):
    """Residual bottleneck whose convolutions all have stride 1: an average pool before the last 1x1 convolution, and
    one in the shortcut, do the down-sampling (anti-aliasing, Sec. 2.4). The last gamma is 0: the block starts as
    relu(shortcut).
    """

    expansion = 4

    def __init__(self, in_planes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        out_planes = planes * self.expansion
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, out_planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_planes)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_planes != out_planes:
            self.shortcut = nn.Sequential(
                OrderedDict(
                    avgpool=nn.AvgPool2d(stride),
                    conv=nn.Conv2d(in_planes, out_planes, 1, bias=False),
                    bn=nn.BatchNorm2d(out_planes),
                )
            )
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.avgpool(F.relu(self.bn2(self.conv2(y))))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class AttentionPool2d(nn.Module):
    """One attention layer whose only query is the mean of the feature map; it replaces global average pooling (Sec.
    2.4).
    """

    def __init__(self, grid: int, dim: int, num_heads: int, out_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.positions = nn.Parameter(torch.randn(grid**2 + 1, dim) / dim**0.5)
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.c_proj = nn.Linear(dim, out_dim)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(linear.weight, std=dim**-0.5)

    def forward(self, x: Tensor, *, project: bool = True) -> Tensor:
        """x (B, dim, G, G) -> (B, out_dim); project=False leaves out the output matrix: (B, dim)."""
        x = x.flatten(2).transpose(1, 2)  # (B, G*G, dim)
        if x.shape[1] + 1 != self.positions.shape[0]:
            raise EncoreError(f"attention pool wants {self.positions.shape[0] - 1} positions, got {x.shape[1]}")
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positions
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        pooled = F.scaled_dot_product_attention(q, k, v).flatten(1)  # one query: (B, heads, 1, 64) -> (B, dim)
        return self.c_proj(pooled) if project else pooled


class ModifiedResNet(nn.Module):
    """ResNet-D with a three-convolution stem, anti-aliased down-sampling and an attention pool (Sec. 2.4).

    width is the number of channels after the stem; the feature map before pooling has 32 * width channels.
    """

    def __init__(self, *, image_size: int, layers: tuple[int, int, int, int], width: int, embed_dim: int) -> None:
        super().__init__()
        self.image_size, self.embed_dim, self.feature_dim = image_size, embed_dim, 32 * width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        planes_in = width
        for stage, blocks in enumerate(layers):
            planes = width * 2**stage
            rows = [Bottleneck(planes_in, planes, stride=1 if stage == 0 else 2)]
            planes_in = planes * Bottleneck.expansion
            rows += [Bottleneck(planes_in, planes) for _ in range(1, blocks)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*rows))
        self.attnpool = AttentionPool2d(image_size // 32, planes_in, planes_in // HEAD_DIM, embed_dim)

    def forward(self, images: Tensor, *, project: bool = True) -> Tensor:
        """images (B, 3, R, R) -> (B, embed_dim), or (B, 32 * width) before the pool's output matrix with
        project=False.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise EncoreError(f"image encoder wants {self.image_size} px images, got {tuple(images.shape[-2:])}")
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.attnpool(x, project=project)


class TextTransformer(nn.Module):
    """Causal transformer over lower-cased BPE; the text feature is the activation at [EOS] (Sec. 2.4).

    [EOS] has the largest id of the vocabulary, so its place is the argmax of the ids; padding (0) follows it.
    """

    def __init__(
        self,
        *,
        dim: int,
        embed_dim: int,
        depth: int = 12,
        vocab_size: int = 49_408,
        context_length: int = 77,
        num_heads: int | None = None,
        mlp_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.vocab_size, self.context_length, self.embed_dim = vocab_size, context_length, embed_dim
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.positions = nn.Parameter(torch.empty(context_length, dim))
        heads = num_heads or dim // HEAD_DIM
        self.blocks = Transformer(depth, dim, heads, mlp_dim or 4 * dim, activation="quick_gelu")
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, embed_dim, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        nn.init.normal_(self.proj.weight, std=dim**-0.5)
        residual_std = (2 * depth * dim) ** -0.5
        layer: Any
        for layer in self.blocks:
            nn.init.normal_(layer.attn.qkv.weight, std=dim**-0.5)
            nn.init.normal_(layer.attn.out.weight, std=residual_std)
            nn.init.normal_(layer.mlp.fc1.weight, std=(2 * dim) ** -0.5)
            nn.init.normal_(layer.mlp.fc2.weight, std=residual_std)
            nn.init.zeros_(layer.attn.qkv.bias)
            nn.init.zeros_(layer.attn.out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, N) of ids, N <= context_length -> (B, embed_dim)."""
        if tokens.shape[1] > self.context_length:
            raise EncoreError(f"text encoder takes {self.context_length} tokens, got {tokens.shape[1]}; truncate first")
        eos = tokens.argmax(dim=1)
        tokens = tokens[:, : int(eos.max()) + 1]  # attention is causal: nothing after the last end token is ever read
        x = self.token_embedding(tokens) + self.positions[: tokens.shape[1]]
        x = self.blocks(x, is_causal=True, read=eos[:, None])[:, 0]
        return self.proj(self.norm(x))


class CLIP(nn.Module):
    """Two towers into one space, and a learned inverse temperature exp(logit_scale) (Fig. 3)."""

    def __init__(self, image: VisionTransformer | ModifiedResNet, text: TextTransformer) -> None:
        super().__init__()
        if image.embed_dim != text.embed_dim:
            raise EncoreError(f"CLIP: image tower ends in {image.embed_dim}, text tower in {text.embed_dim} dimensions")
        self.image, self.text = image, text
        self.logit_scale = nn.Parameter(torch.full((), math.log(1 / INITIAL_TEMPERATURE)))

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, e), L2-normalised."""
        return F.normalize(self.image(images), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(B, N) -> (B, e), L2-normalised."""
        return F.normalize(self.text(tokens), dim=-1)

    @property
    def scale(self) -> Tensor:
        """The factor in front of the cosines."""
        return self.logit_scale.exp()

    @torch.no_grad()
    def clip_scale(self) -> None:
        """To call after every optimizer step: keeps the factor at or below 100 (Sec. 2.5)."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B_images, B_texts): scaled cosines of all pairs."""
        return self.scale * self.encode_image(images) @ self.encode_text(tokens).T


def _resnet(image_size: int, layers: tuple[int, int, int, int], width: int, embed_dim: int, text_dim: int) -> CLIP:
    image = ModifiedResNet(image_size=image_size, layers=layers, width=width, embed_dim=embed_dim)
    return CLIP(image, TextTransformer(dim=text_dim, embed_dim=embed_dim))


def _vit(image_size: int, patch_size: int, dim: int, depth: int, embed_dim: int, text_dim: int) -> CLIP:
    image = VisionTransformer(image_size=image_size, patch_size=patch_size, dim=dim, depth=depth, embed_dim=embed_dim)
    return CLIP(image, TextTransformer(dim=text_dim, embed_dim=embed_dim))


def clip_rn50() -> CLIP:
    """RN50."""
    return _resnet(224, (3, 4, 6, 3), 64, 1024, 512)


def clip_rn101() -> CLIP:
    """RN101."""
    return _resnet(224, (3, 4, 23, 3), 64, 512, 512)


def clip_rn50x4() -> CLIP:
    """RN50x4 at 288 px."""
    return _resnet(288, (4, 6, 10, 6), 80, 640, 640)


def clip_rn50x16() -> CLIP:
    """RN50x16 at 384 px."""
    return _resnet(384, (6, 8, 18, 8), 96, 768, 768)


def clip_rn50x64() -> CLIP:
    """RN50x64 at 448 px."""
    return _resnet(448, (3, 15, 36, 10), 128, 1024, 1024)


def clip_vit_b32() -> CLIP:
    """ViT-B/32."""
    return _vit(224, 32, 768, 12, 512, 512)


def clip_vit_b16() -> CLIP:
    """ViT-B/16."""
    return _vit(224, 16, 768, 12, 512, 512)


def clip_vit_l14() -> CLIP:
    """ViT-L/14."""
    return _vit(224, 14, 1024, 24, 768, 768)


def clip_vit_l14_336() -> CLIP:
    """ViT-L/14@336px: ViT-L/14 trained one more epoch at 336 px."""
    return _vit(336, 14, 1024, 24, 768, 768)


def small_image_tower(embed_dim: int = 64) -> VisionTransformer:
    """The image tower of the `cpu` claims: 32 px, patch 8 (17 tokens), width 64 in 4 heads, 2 layers."""
    return VisionTransformer(image_size=32, patch_size=8, dim=64, depth=2, num_heads=4, embed_dim=embed_dim)


def clip_small(vocab_size: int, context_length: int = 20, embed_dim: int = 64) -> CLIP:
    """The model of the `cpu` claims: small_image_tower and a text tower of the same width and depth."""
    sizes = {"dim": 64, "depth": 2, "num_heads": 4}
    text = TextTransformer(**sizes, embed_dim=embed_dim, vocab_size=vocab_size, context_length=context_length)
    return CLIP(small_image_tower(embed_dim), text)

"""Attention, transformer blocks, positions, patch and tubelet embedding, ViT."""

from common.layers.attention import Attention, KVCache
from common.layers.embedding import PatchEmbed, TubeletEmbed, sincos_1d
from common.layers.masks import key_padding_mask
from common.layers.transformer import MLP, DropPath, LayerCache, Transformer, TransformerLayer
from common.layers.vit import ViT, vit_base_patch16_224

__all__ = [
    "MLP",
    "Attention",
    "DropPath",
    "KVCache",
    "LayerCache",
    "PatchEmbed",
    "Transformer",
    "TransformerLayer",
    "TubeletEmbed",
    "ViT",
    "key_padding_mask",
    "sincos_1d",
    "vit_base_patch16_224",
]

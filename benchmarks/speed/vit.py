"""Weights of the public ViT class in our names."""

from torch import Tensor

from common.interop import fuse_qkv


def from_hub_state(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """transformers' ViTForImageClassification -> common.layers.ViT."""
    out: dict[str, Tensor] = {
        "embed.proj.weight": state["vit.embeddings.patch_embeddings.projection.weight"],
        "embed.proj.bias": state["vit.embeddings.patch_embeddings.projection.bias"],
        "cls_token": state["vit.embeddings.cls_token"][0, 0],
        "positions": state["vit.embeddings.position_embeddings"][0],
    }
    return out | {k: v for k, v in state.items() if depth < 0}

"""The public ViT classes' formats, for the comparison at equal weights."""

from pathlib import Path

from torch import Tensor

from common.interop import check_and_load, fuse_qkv, load_weights
from common.layers import ViT

LAYER = {
    "attention.output.dense": "attn.out",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
OTHER = {
    "vit.embeddings.patch_embeddings.projection": "embed.proj",
    "vit.layernorm": "norm",
    "classifier": "head",
}


def load_hub_vit(model: ViT, directory: Path) -> None:
    """Fill `model` with the weights of a saved transformers ViTForImageClassification."""
    state = load_weights(directory)
    state["cls_token"] = state.pop("vit.embeddings.cls_token")[0, 0]
    state["positions"] = state.pop("vit.embeddings.position_embeddings")[0]
    for kind in ("weight", "bias"):
        for theirs, ours in OTHER.items():
            state[f"{ours}.{kind}"] = state.pop(f"{theirs}.{kind}")
        for i in range(len(model.blocks)):
            theirs, ours = f"vit.encoder.layer.{i}", f"blocks.layers.{i}"
            q, k, v = (f"{theirs}.attention.attention.{part}.{kind}" for part in ("query", "key", "value"))
            fuse_qkv(state, q, k, v, f"{ours}.attn.qkv.{kind}")
            for name, target in LAYER.items():
                state[f"{ours}.{target}.{kind}"] = state.pop(f"{theirs}.{name}.{kind}")
    check_and_load(model, state, directory)


TIMM = {"patch_embed.proj": "embed.proj", ".attn.proj.": ".attn.out.", "blocks.": "blocks.layers."}


def from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of timm's VisionTransformer (class token, learned positions, fused qkv) in the names of our ViT."""
    out = {"cls_token": state["cls_token"][0, 0], "positions": state["pos_embed"][0]}
    for name, value in state.items():
        if name not in ("cls_token", "pos_embed"):
            for theirs, ours in TIMM.items():
                name = name.replace(theirs, ours)
            out[name] = value
    return out

"""The public ViT class's directory format, for the comparison at equal weights."""

from pathlib import Path

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

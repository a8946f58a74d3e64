"""ViT weights from and to the public hub's ViTModel format and timm's, without pooler and classifier.

The paper's scripts take timm's vit_base_patch16_224_in21k (the AugReg training); google/vit-base-patch16-224-in21k on
the hub is the earlier checkpoint of the ViT paper. Both have the same shapes.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import EncoreError
from common.interop import check_and_load, fuse_qkv, load_config, load_weights, save_weights, split_qkv
from papers.nmc_continual.model import FrozenViT

State = dict[str, Tensor]
Shapes = dict[str, Callable[[Tensor], Tensor]]
HEAD_DIM = 64  # of every published ViT; timm's files do not say how many heads there are

HUB = [
    ("embeddings.patch_embeddings.projection.", "embed.proj."),
    ("embeddings.position_embeddings", "positions"),
    ("embeddings.cls_token", "cls_token"),
    ("encoder.layer.", "blocks.layers."),
    ("attention.output.dense.", "attn.out."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("layernorm.", "norm."),
]
TIMM = [
    ("patch_embed.proj.", "embed.proj."),
    ("pos_embed", "positions"),
    ("cls_token", "cls_token"),
    ("attn.proj.", "attn.out."),
    ("blocks.", "blocks.layers."),
]
AFTER = ("pooler.", "classifier.", "head.", "pre_logits.")  # what follows the class token


def from_hub(directory: str | Path) -> FrozenViT:
    """The encoder of a hub directory, sized by its config.json; also of one saved with a classifier.

    EncoreError when the config is not a ViT's, or when the weights do not fit it.
    """
    config = load_config(directory)
    where = Path(directory) / "config.json"
    if config.get("model_type") != "vit" or config.get("hidden_act", "gelu") != "gelu":
        raise EncoreError(
            f"{where}: model_type {config.get('model_type')!r}, hidden_act {config.get('hidden_act', 'gelu')!r}; "
            "this is not a ViT, give the directory of e.g. google/vit-base-patch16-224-in21k"
        )
    model = FrozenViT(
        image_size=config.get("image_size", 224),
        patch_size=config.get("patch_size", 16),
        in_channels=config.get("num_channels", 3),
        dim=config.get("hidden_size", 768),
        depth=config.get("num_hidden_layers", 12),
        num_heads=config.get("num_attention_heads", 12),
        mlp_dim=config.get("intermediate_size", 3072),
        eps=config.get("layer_norm_eps", 1e-12),
        qkv_bias=config.get("qkv_bias", True),
    )
    check_and_load(model, state_from_hub(load_weights(directory)), directory)
    return model


def to_hub(model: FrozenViT, directory: str | Path) -> None:
    """Write model.safetensors and config.json that transformers' ViTModel.from_pretrained(add_pooling_layer=False)
    reads."""
    save_weights(directory, state_to_hub(model.state_dict()), hub_config(model))


def state_from_hub(state: State) -> State:
    """Hub names to ours."""
    state = {k.removeprefix("vit."): v for k, v in state.items()}
    state = {k: v for k, v in state.items() if not k.startswith(AFTER)}
    for key in [k for k in state if ".attention.query." in k]:
        parts = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in state for part in parts):  # an incomplete file is reported by check_and_load
            fuse_qkv(state, parts[0], parts[1], parts[2], key.replace("attention.attention.query", "attn.qkv"))
    return _without_batch({_renamed(k, HUB): v for k, v in state.items()})


def state_to_hub(state: State) -> State:
    """The inverse of state_from_hub."""
    state = _with_batch(state)
    for key in [k for k in state if ".attn.qkv." in k]:
        targets = (key.replace("attn.qkv", f"attention.attention.{part}") for part in ("query", "key", "value"))
        split_qkv(state, key, *targets)
    return {_renamed(k, [(b, a) for a, b in HUB]): v for k, v in state.items()}


def from_timm(path: str | Path) -> FrozenViT:
    """The encoder of a timm file or directory (timm/vit_base_patch16_224.augreg_in21k), sized by its weights."""
    state = state_from_timm(load_weights(path))
    try:
        positions, patch = state["positions"].shape[0], state["embed.proj.weight"]
        depth = 1 + max(int(match[1]) for key in state if (match := re.match(r"blocks\.layers\.(\d+)\.", key)))
        mlp_dim = state["blocks.layers.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise EncoreError(f"{path}: not a timm ViT ({error}); give one of vit_base_patch16_224's files") from error
    dim, in_channels, patch_size, _ = patch.shape
    if dim % HEAD_DIM:
        raise EncoreError(f"{path}: width {dim} is no multiple of {HEAD_DIM}, the head width of timm's ViTs")
    model = FrozenViT(
        image_size=round((positions - 1) ** 0.5) * patch_size,
        patch_size=patch_size,
        in_channels=in_channels,
        dim=dim,
        depth=depth,
        num_heads=dim // HEAD_DIM,
        mlp_dim=mlp_dim,
    )
    check_and_load(model, state, path)
    return model


def state_from_timm(state: State) -> State:
    """timm's names to ours."""
    return _without_batch({_renamed(k, TIMM): v for k, v in state.items() if not k.startswith(AFTER)})


def state_to_timm(state: State) -> State:
    """The inverse of state_from_timm."""
    return {_renamed(k, [(b, a) for a, b in reversed(TIMM)]): v for k, v in _with_batch(state).items()}


def hub_config(model: FrozenViT) -> dict[str, Any]:
    """config.json of a hub directory."""
    first: Any = model.blocks.layers[0]
    patch = model.embed.patch_size
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": model.feature_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": first.attn.num_heads,
        "intermediate_size": first.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm.eps,
        "image_size": round((model.positions.shape[0] - 1) ** 0.5) * patch,
        "patch_size": patch,
        "num_channels": model.embed.proj.in_channels,
        "qkv_bias": first.attn.qkv.bias is not None,
    }


def _renamed(key: str, names: list[tuple[str, str]]) -> str:
    """Each name part replaced once where it begins a word of the dotted key."""
    for old, new in names:
        key = re.sub(rf"(^|\.){re.escape(old)}", rf"\g<1>{new}", key, count=1)
    return key


def _without_batch(state: State) -> State:
    """Their class token is (1, 1, D) and their positions (1, N, D); ours are (D,) and (N, D)."""
    shapes: Shapes = {"cls_token": lambda v: v.flatten(), "positions": lambda v: v.squeeze(0)}
    return {k: shapes[k](v) if k in shapes else v for k, v in state.items()}


def _with_batch(state: State) -> State:
    """The inverse of _without_batch, under our names."""
    shapes: Shapes = {"cls_token": lambda v: v[None, None], "positions": lambda v: v[None]}
    return {k: shapes[k](v) if k in shapes else v for k, v in state.items()}

"""Published weights: SIGMA's released .pth files, the hub's VideoMAE format, and DINO as hub ViT or official .pth.

A released SIGMA file is {"model": state dict} under VideoMAE's original names, with `prototypes` and, for the MLP
target, `head.*` for phi; DINO is not in it.
"""

import re
from pathlib import Path

from torch import Tensor

from common.errors import EncoreError
from common.interop import (
    check_and_load,
    fuse_qkv,
    load_weights,
    read_checkpoint,
    save_weights,
    split_qkv,
)
from common.training.trainer import atomic_save
from papers.sigma.model import DINO, SIGMA
from papers.videomae_v2.interop import HUB_LAYER, state_from_hub, state_from_released
from papers.videomae_v2.interop import to_hub as video_to_hub

State = dict[str, Tensor]

TO_RELEASED = {
    r"^video\.": "",
    r"^phi\.": "head.",
    r"^prototypes\.weight$": "prototypes",
    r"\bencoder\.embed\.": "encoder.patch_embed.",
    r"\bblocks\.layers\.": "blocks.",
    r"\.attn\.out\.": ".attn.proj.",
}
"""Renames from our names of a SIGMA, in this order."""

HUB_DINO = {
    "cls_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
OFFICIAL_DINO = {
    "pos_embed": "positions",
    "patch_embed.": "embed.",
    "blocks.": "blocks.layers.",
    ".attn.proj.": ".attn.out.",
}


def sigma_from_released(state: State) -> State:
    """A released SIGMA state dict in our names."""
    out: State = {}
    for name, value in state_from_released(state).items():
        if name == "prototypes":
            out["prototypes.weight"] = value
        elif re.match(r"head\.\d", name):
            out["phi." + name.removeprefix("head.")] = value
        else:
            out[f"video.{name}"] = value
    return out


def sigma_to_released(state: State) -> State:
    """Inverse of sigma_from_released; a DINO phi is left out."""
    out: State = {}
    for name, value in state.items():
        if name.startswith("phi.vit."):
            continue
        for pattern, replacement in TO_RELEASED.items():
            name = re.sub(pattern, replacement, name)
        out[name] = value
    return out


def load_released(model: SIGMA, path: str | Path) -> None:
    """Give `model` the weights of a released .pth; a DINO phi keeps its own."""
    content = read_checkpoint(path)
    state = sigma_from_released(content.get("model", content))
    own = {name: value for name, value in model.state_dict().items() if name.startswith("phi.vit.")}
    check_and_load(model, state | own, path)


def save_released(model: SIGMA, path: str | Path) -> None:
    """Write a .pth that the authors' fine-tuning script loads."""
    atomic_save({"model": sigma_to_released(model.state_dict())}, Path(path))


def to_hub(model: SIGMA, directory: str | Path) -> None:
    """Write the video model as a hub VideoMAE directory; VideoMAEModel takes the encoder from it."""
    video_to_hub(model.video, directory)


def load_hub(model: SIGMA, directory: str | Path) -> None:
    """Inverse of to_hub: the video model's weights from a hub directory with a head of phi's width."""
    check_and_load(model.video, state_from_hub(load_weights(directory)), directory)


def dino_from_hub(state: State) -> State:
    """A hub ViTModel state dict (DINO's) in the names of DINO's `vit`; its pooler, which DINO never had, is dropped."""
    state = {name.removeprefix("vit."): value for name, value in state.items()}
    ours = {theirs: name for name, theirs in HUB_DINO.items()}
    out: State = {}
    for name, value in state.items():
        if name.startswith("pooler."):
            continue
        if name.startswith("encoder.layer."):
            number, rest = name.removeprefix("encoder.layer.").split(".", 1)
            part, kind = rest.rsplit(".", 1)
            name = f"blocks.layers.{number}.{HUB_LAYER.get(part, part)}.{kind}"
        out[ours.get(name, name)] = value
    for query in [n for n in out if ".attention.attention.query." in n]:
        key, values = query.replace("query", "key"), query.replace("query", "value")
        missing = [name for name in (key, values) if name not in out]
        if missing:
            raise EncoreError(f"weights lack {' and '.join(missing)}; the file is not whole")
        fuse_qkv(out, query, key, values, query.replace("attention.attention.query", "attn.qkv"))
    return _unbatched(out)


def dino_to_hub(state: State) -> State:
    """Inverse of dino_from_hub (without a pooler)."""
    out: State = {}
    theirs = {ours: name for name, ours in HUB_LAYER.items()}
    for name, value in state.items():
        if not name.startswith("blocks.layers."):
            out[HUB_DINO[name]] = value[None] if name == "positions" else value
            continue
        number, rest = name.removeprefix("blocks.layers.").split(".", 1)
        part, kind = rest.rsplit(".", 1)
        out[f"encoder.layer.{number}.{theirs.get(part, part)}.{kind}"] = value
    out["embeddings.cls_token"] = out["embeddings.cls_token"].view(1, 1, -1)
    for name in [n for n in out if ".attn.qkv." in n]:
        split_qkv(out, name, *(name.replace("attn.qkv", f"attention.attention.{p}") for p in ("query", "key", "value")))
    return out


def dino_from_official(state: State) -> State:
    """The official DINO (timm) state dict in the names of DINO's `vit`."""
    out: State = {}
    for name, value in state.items():
        for theirs, ours in OFFICIAL_DINO.items():
            name = name.replace(theirs, ours)
        out[name] = value
    return _unbatched(out)


def _unbatched(state: State) -> State:
    """Class token and positions without the leading dimensions of size 1 that published files have."""
    for name in ("cls_token", "positions"):
        if name in state:
            state[name] = state[name].squeeze(0)
    if "cls_token" in state:
        state["cls_token"] = state["cls_token"].flatten()
    return state


def load_dino(dino: DINO, path: str | Path) -> None:
    """Weights of a hub ViT directory or .safetensors, or of an official .pth. Stays frozen."""
    path = Path(path)
    if path.is_dir() or path.suffix == ".safetensors":
        state = dino_from_hub(load_weights(path))
    else:
        state = dino_from_official(load_weights(path))
    check_and_load(dino.vit, state, path)


def save_dino(dino: DINO, directory: str | Path) -> None:
    """Write a hub ViTModel directory."""
    layer = dino.vit.blocks.layers[0]
    embed = dino.vit.embed
    config = {
        "model_type": "vit",
        "architectures": ["ViTModel"],
        "hidden_size": dino.out_dim,
        "num_hidden_layers": len(dino.vit.blocks),
        "num_attention_heads": layer.attn.num_heads,  # type: ignore[union-attr]
        "intermediate_size": layer.mlp.fc1.out_features,  # type: ignore[union-attr]
        "image_size": embed.patch_size * int(dino.patches**0.5),
        "patch_size": embed.patch_size,
        "num_channels": embed.proj.in_channels,
        "layer_norm_eps": dino.vit.norm.eps,
        "qkv_bias": True,
    }
    save_weights(directory, dino_to_hub(dino.vit.state_dict()), config)

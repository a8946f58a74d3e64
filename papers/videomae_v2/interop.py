"""Published weights: the hub's VideoMAEForPreTraining and ...ForVideoClassification directories, and the released .pth.

The hub splits queries, keys and values; its config gives every LayerNorm but two one eps. Its decoder norm and its
fc_norm are always built with 1e-5, where the released code and ours have 1e-6: outputs agree to about 1e-5 unless those
two are set (see the tests). Which decoder mask a model was trained with is not part of its weights.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import EncoreError
from common.interop import check_and_load, fuse_qkv, load_config, load_weights, save_weights, split_qkv
from papers.videomae_v2.model import EPS, VideoClassifier, VideoMAE

State = dict[str, Tensor]

HUB_LAYER = {
    "attention.output.dense": "attn.out",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
HUB_OTHER = {
    "videomae.embeddings.patch_embeddings.projection": "encoder.embed.proj",
    "videomae.layernorm": "encoder.norm",
    "classifier": "head",
}
HUB_STACK = {"videomae.encoder.layer": "encoder.blocks.layers", "decoder.decoder_layers": "decoder.blocks.layers"}
RELEASED = {
    r"^(encoder\.)?patch_embed\.": "encoder.embed.",
    r"^(encoder\.)?norm\.": "encoder.norm.",
    r"^blocks\.": "encoder.blocks.",
    r"\bblocks\.(?=\d)": "blocks.layers.",
    r"\.attn\.proj\.": ".attn.out.",
}
"""Renames from the released code's names, in this order."""


def state_from_hub(state: State) -> State:
    """State dict of a hub VideoMAE (either class) in our names. Reads the old q_bias / v_bias names too."""
    out: State = {}
    for name, value in state.items():
        name = name.replace("attention.attention.q_bias", "attention.attention.query.bias")
        name = name.replace("attention.attention.v_bias", "attention.attention.value.bias")
        for theirs, ours in HUB_STACK.items():
            if name.startswith(f"{theirs}."):
                number, rest = name.removeprefix(f"{theirs}.").split(".", 1)
                part, kind = rest.rsplit(".", 1)
                name = f"{ours}.{number}.{HUB_LAYER.get(part, part)}.{kind}"
        part, kind = name.rsplit(".", 1) if "." in name else (name, "")
        out[f"{HUB_OTHER[part]}.{kind}" if part in HUB_OTHER else name] = value
    for name in [n for n in out if n.endswith("attention.attention.query.weight")]:
        layer = name.removesuffix("attention.attention.query.weight")
        q, k, v = (f"{layer}attention.attention.{part}" for part in ("query", "key", "value"))
        if any(f"{part}.weight" not in out for part in (q, k, v)):
            raise EncoreError(f"weights lack the queries, keys or values of {layer.rstrip('.')}; the file is not whole")
        fuse_qkv(out, f"{q}.weight", f"{k}.weight", f"{v}.weight", f"{layer}attn.qkv.weight")
        for theirs, ours in ((q, "q_bias"), (v, "v_bias")):
            if f"{theirs}.bias" in out:
                out[f"{layer}attn.{ours}"] = out.pop(f"{theirs}.bias")
    return out


def state_to_hub(state: State) -> State:
    """Inverse of state_from_hub (new names)."""
    out: State = dict(state)
    for name in [n for n in out if n.endswith("attn.qkv.weight")]:
        layer = name.removesuffix("attn.qkv.weight")
        q, k, v = (f"{layer}attention.attention.{part}" for part in ("query", "key", "value"))
        split_qkv(out, name, f"{q}.weight", f"{k}.weight", f"{v}.weight")
        out[f"{q}.bias"], out[f"{v}.bias"] = out.pop(f"{layer}attn.q_bias"), out.pop(f"{layer}attn.v_bias")
    renames = [(ours, theirs) for theirs, ours in (HUB_OTHER | HUB_STACK).items()]
    renamed: State = {}
    for name, value in out.items():
        for ours, theirs in renames:
            if name.startswith(f"{ours}."):
                name = theirs + name.removeprefix(ours)
                break
        for theirs, ours in HUB_LAYER.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        renamed[name] = value
    return renamed


def state_from_released(state: State) -> State:
    """State dict of the official repository's .pth files, pre-training or fine-tuned, in our names."""
    out = {}
    for name, value in state.items():
        if name == "pos_embed":
            continue
        for pattern, replacement in RELEASED.items():
            name = re.sub(pattern, replacement, name)
        out[name] = value
    return out


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments that both model classes share."""
    wanted = {
        "dim": "hidden_size",
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "mlp_dim": "intermediate_size",
        "patch_size": "patch_size",
        "num_frames": "num_frames",
        "image_size": "image_size",
        "in_channels": "num_channels",
        "tubelet_size": "tubelet_size",
    }
    defaults = {"num_frames": 16, "image_size": 224, "num_channels": 3, "tubelet_size": 2, "patch_size": 16}
    defaults |= {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    return {ours: config.get(theirs, defaults[theirs]) for ours, theirs in wanted.items()}


def from_hub(directory: str | Path) -> VideoMAE:
    """A hub VideoMAEForPreTraining directory (config.json + weights)."""
    config = load_config(directory)
    model = VideoMAE(
        **_sizes(config),
        decoder_dim=config.get("decoder_hidden_size", 384),
        decoder_depth=config.get("decoder_num_hidden_layers", 4),
        decoder_heads=config.get("decoder_num_attention_heads", 6),
        decoder_mlp_dim=config.get("decoder_intermediate_size", 1536),
    )
    check_and_load(model, state_from_hub(load_weights(directory)), directory)
    return model


def classifier_from_hub(directory: str | Path) -> VideoClassifier:
    """A hub VideoMAEForVideoClassification directory (config.json + weights); the head's size is the weights' own."""
    state = state_from_hub(load_weights(directory))
    if "head.bias" not in state:
        raise EncoreError(f"{directory}: these weights have no classifier head; load them with from_hub")
    model = VideoClassifier(**_sizes(load_config(directory)), num_classes=len(state["head.bias"]))
    check_and_load(model, state, directory)
    return model


def to_hub(model: VideoMAE | VideoClassifier, directory: str | Path) -> None:
    """Write config.json and model.safetensors so that the hub's VideoMAE class of that kind loads them."""
    save_weights(directory, state_to_hub(model.state_dict()), hub_config(model))


def hub_config(model: VideoMAE | VideoClassifier) -> dict[str, Any]:
    """config.json of the hub's class for this model."""
    encoder = model.encoder
    channels, frames, size, _ = encoder.input_shape
    block: Any = encoder.blocks.layers[0]
    config: dict[str, Any] = {
        "model_type": "videomae",
        "hidden_size": encoder.positions.shape[1],
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "patch_size": encoder.embed.tubelet_size[1],
        "tubelet_size": encoder.embed.tubelet_size[0],
        "image_size": size,
        "num_frames": frames,
        "num_channels": channels,
        "layer_norm_eps": EPS,
        "qkv_bias": True,
    }
    if isinstance(model, VideoClassifier):
        labels = {str(i): f"LABEL_{i}" for i in range(model.head.out_features)}
        return config | {
            "architectures": ["VideoMAEForVideoClassification"],
            "use_mean_pooling": True,
            "id2label": labels,
            "label2id": {name: int(i) for i, name in labels.items()},
        }
    decoder: Any = model.decoder.blocks.layers[0]
    return config | {
        "architectures": ["VideoMAEForPreTraining"],
        "use_mean_pooling": False,
        "norm_pix_loss": True,
        "decoder_hidden_size": model.positions.shape[1],
        "decoder_num_hidden_layers": len(model.decoder.blocks),
        "decoder_num_attention_heads": decoder.attn.num_heads,
        "decoder_intermediate_size": decoder.mlp.fc1.out_features,
    }

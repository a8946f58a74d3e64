"""CLIP weights from and to the public hub's CLIPModel format, and from the authors' released layout.

Both layouts hold the same tensors under other names; the tables below list (theirs, ours).
"""

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import EncoreError
from common.interop import check_and_load, load_config, load_weights
from common.interop.layout import Drop, Fused, Layout, Transposed
from common.layers import Transformer, ViT
from papers.clip.model import CLIP, ModifiedResNet, TextTransformer, VisionTransformer

State = dict[str, Tensor]
TOWER = Layout(
    [
        Fused(tuple(f"self_attn.{part}_proj." for part in "qkv"), "attn.qkv."),
        ("self_attn.out_proj.", "attn.out."),
        ("layer_norm1.", "norm1."),
        ("layer_norm2.", "norm2."),
        ("mlp.", "mlp."),
    ]
).under("encoder.layers.*.", "blocks.layers.*.")
VISION = Layout(
    [
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding.weight", "positions"),
        ("embeddings.patch_embedding.", "embed.proj."),
        ("pre_layrnorm.", "norm_pre."),
        ("post_layernorm.", "norm."),
        Drop("embeddings.position_ids"),
    ]
)
TEXT = Layout(
    [
        ("embeddings.token_embedding.", "token_embedding."),
        ("embeddings.position_embedding.weight", "positions"),
        ("final_layer_norm.", "norm."),
        Drop("embeddings.position_ids"),
    ]
)
ENDS = Layout(
    [
        ("visual_projection.", "image.proj."),
        ("text_projection.", "text.proj."),
        ("logit_scale", "logit_scale"),
    ]
)
HUB = (TOWER + VISION).under("vision_model.", "image.vit.") + (TOWER + TEXT).under("text_model.", "text.") + ENDS
"""transformers' CLIPModel; the index buffers that old files carry are left out."""

BLOCK = Layout(
    [
        ("attn.in_proj_weight", "attn.qkv.weight"),
        ("attn.in_proj_bias", "attn.qkv.bias"),
        ("attn.out_proj.", "attn.out."),
        ("ln_1.", "norm1."),
        ("ln_2.", "norm2."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ]
).under("transformer.resblocks.*.", "blocks.layers.*.")
RELEASED_TEXT = BLOCK.under(ours="text.") + Layout(
    [
        ("token_embedding.", "text.token_embedding."),
        ("positional_embedding", "text.positions"),
        ("ln_final.", "text.norm."),
        Transposed("text_projection", "text.proj.weight"),
        ("logit_scale", "logit_scale"),
        *map(Drop, ("input_resolution", "context_length", "vocab_size")),
    ]
)
RELEASED_VIT = (
    RELEASED_TEXT
    + BLOCK.under("visual.", "image.vit.")
    + Layout(
        [
            ("visual.class_embedding", "image.vit.cls_token"),
            ("visual.positional_embedding", "image.vit.positions"),
            ("visual.conv1.", "image.vit.embed.proj."),
            ("visual.ln_pre.", "image.vit.norm_pre."),
            ("visual.ln_post.", "image.vit.norm."),
            Transposed("visual.proj", "image.proj.weight"),
        ]
    )
)
RELEASED_RESNET = RELEASED_TEXT + Layout(
    [
        ("visual.attnpool.positional_embedding", "image.attnpool.positions"),
        ("visual.*.*.downsample.0.", "image.*.*.shortcut.conv."),
        ("visual.*.*.downsample.1.", "image.*.*.shortcut.bn."),
        ("visual.", "image."),
    ]
)


def state_from_released(state: State, source: str | Path = "weights") -> State:
    """Our names, in float32 (the released files hold half precision)."""
    layout = RELEASED_VIT if any(name.endswith("visual.proj") for name in state) else RELEASED_RESNET
    return {k: v.float() if v.is_floating_point() else v for k, v in layout.to_ours(state, source).items()}


def _num_heads(blocks: Transformer) -> int:
    first: Any = blocks.layers[0]
    return first.attn.num_heads


def _mlp_dim(blocks: Transformer) -> int:
    first: Any = blocks.layers[0]
    return first.mlp.fc1.out_features


def hub_config(model: CLIP) -> dict[str, Any]:
    """config.json of transformers' CLIPModel for a model with a ViT."""
    if not isinstance(model.image, VisionTransformer):
        raise EncoreError("the hub's CLIPModel has no ResNet image tower; save the released layout instead")
    text, vit = model.text, model.image.vit
    common = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": text.embed_dim}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": text.embed_dim,
        "logit_scale_init_value": 2.6592,
        "text_config": common
        | {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "hidden_size": text.positions.shape[1],
            "intermediate_size": _mlp_dim(text.blocks),
            "num_hidden_layers": len(text.blocks),
            "num_attention_heads": _num_heads(text.blocks),
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
        },
        "vision_config": common
        | {
            "model_type": "clip_vision_model",
            "image_size": model.image.image_size,
            "patch_size": vit.embed.patch_size,
            "hidden_size": vit.positions.shape[1],
            "intermediate_size": _mlp_dim(vit.blocks),
            "num_hidden_layers": len(vit.blocks),
            "num_attention_heads": _num_heads(vit.blocks),
        },
    }


_TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_VISION_DEFAULTS = {
    "image_size": 224,
    "patch_size": 32,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def from_hub(directory: str | Path) -> CLIP:
    """Build the model that a hub directory (config.json and weights) describes, with its weights.

    Raises EncoreError when the config is not CLIP's: another activation or eps, or text pooled elsewhere than at the
    largest id.
    """
    config = load_config(directory)
    where = Path(directory) / "config.json"
    text = _TEXT_DEFAULTS | (config.get("text_config") or {})
    vision = _VISION_DEFAULTS | (config.get("vision_config") or {})
    for name, part in (("text_config", text), ("vision_config", vision)):
        if part["hidden_act"] != "quick_gelu" or part["layer_norm_eps"] != 1e-5:
            raise EncoreError(
                f"{where}: {name} has hidden_act {part['hidden_act']!r} and layer_norm_eps {part['layer_norm_eps']}; "
                "CLIP has 'quick_gelu' and 1e-05, so this is another model: open it with transformers"
            )
    # 2 is what the published configs say by mistake; transformers then pools at the largest id, as the released code.
    if text["eos_token_id"] not in (2, text["vocab_size"] - 1):
        raise EncoreError(
            f"{where}: text_config.eos_token_id is {text['eos_token_id']}, but CLIP pools at the largest id "
            f"({text['vocab_size'] - 1}); renumber the vocabulary or correct the field"
        )
    embed_dim = config.get("projection_dim", 512)
    model = CLIP(
        VisionTransformer(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            dim=vision["hidden_size"],
            depth=vision["num_hidden_layers"],
            num_heads=vision["num_attention_heads"],
            mlp_dim=vision["intermediate_size"],
            embed_dim=embed_dim,
        ),
        TextTransformer(
            dim=text["hidden_size"],
            depth=text["num_hidden_layers"],
            num_heads=text["num_attention_heads"],
            mlp_dim=text["intermediate_size"],
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            embed_dim=embed_dim,
        ),
    )
    HUB.load(model, directory)
    return model


def to_hub(model: CLIP, directory: str | Path) -> None:
    """Write model.safetensors and config.json that transformers' CLIPModel.from_pretrained reads."""
    HUB.save(model, directory, hub_config(model))


def from_released(path: str | Path) -> CLIP:
    """Build the model of a file in the released layout (a plain state dict), any of the nine sizes or a smaller one.

    open_clip's training checkpoints ({"epoch", "state_dict": {"module.visual..."}}) have it too. No file says which
    activation it was trained with: one of a model without "-quickgelu" in its name used GELU, and differs here.
    The authors' .pt files are TorchScript programs, which are not loaded here: turn one into tensors once, where you
    trust it, with torch.save(torch.jit.load("ViT-B-32.pt", map_location="cpu").state_dict(), "vit_b32_state.pt").
    """
    state = state_from_released(load_weights(path), path)
    try:
        embed_dim = state["text.proj.weight"].shape[0]
        image = _released_image_tower(state, embed_dim)
        text = TextTransformer(
            dim=state["text.positions"].shape[1],
            depth=_depth(state, "text.blocks.layers."),
            vocab_size=state["text.token_embedding.weight"].shape[0],
            context_length=state["text.positions"].shape[0],
            mlp_dim=state["text.blocks.layers.0.mlp.fc1.weight"].shape[0],
            embed_dim=embed_dim,
        )
    except KeyError as error:
        raise EncoreError(f"{path}: not a released CLIP state dict, it lacks {error}") from error
    model = CLIP(image, text)
    check_and_load(model, state, path)
    return model


def _released_image_tower(state: State, embed_dim: int) -> VisionTransformer | ModifiedResNet:
    if "image.proj.weight" in state:
        patch, tokens = state["image.vit.embed.proj.weight"], state["image.vit.positions"].shape[0]
        return VisionTransformer(
            image_size=round((tokens - 1) ** 0.5) * patch.shape[-1],
            patch_size=patch.shape[-1],
            dim=patch.shape[0],
            depth=_depth(state, "image.vit.blocks.layers."),
            mlp_dim=state["image.vit.blocks.layers.0.mlp.fc1.weight"].shape[0],
            embed_dim=embed_dim,
        )
    first, second, third, fourth = (_depth(state, f"image.layer{i}.") for i in (1, 2, 3, 4))
    return ModifiedResNet(
        image_size=round((state["image.attnpool.positions"].shape[0] - 1) ** 0.5) * 32,
        layers=(first, second, third, fourth),
        width=state["image.conv3.weight"].shape[0],
        embed_dim=embed_dim,
    )


def _depth(state: State, prefix: str) -> int:
    return len({match[1] for key in state if (match := re.match(re.escape(prefix) + r"(\d+)\.", key))})


def load_pretrained(model: CLIP, path: str | Path, *, resize_positions: bool = False) -> None:
    """Fill `model` from a hub directory or a released file. Raises EncoreError that says what differs.

    resize_positions: interpolate the image position grid (bicubic) when the model has another resolution.
    """
    state = load_weights(path)
    hub = any(name.endswith("visual_projection.weight") for name in state)
    state = HUB.to_ours(state, path) if hub else state_from_released(state, path)
    key = "image.vit.positions"
    if resize_positions and key in state and isinstance(model.image, VisionTransformer):
        state[key] = resize_grid(state[key], model.image.vit)
    check_and_load(model, state, path)


def resize_grid(positions: Tensor, vit: ViT) -> Tensor:
    """(1 + G * G, D) -> (1 + H * H, D) for the grid of `vit`; the class token's position stays."""
    old, new = round((positions.shape[0] - 1) ** 0.5), round((vit.positions.shape[0] - 1) ** 0.5)
    if old == new:
        return positions
    grid = positions[1:].float().T.unflatten(1, (old, old))[None]
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)[0].flatten(1).T
    return torch.cat([positions[:1], grid.to(positions.dtype)])

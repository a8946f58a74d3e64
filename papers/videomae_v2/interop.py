"""Published weights: the hub's VideoMAEForPreTraining and ...ForVideoClassification directories, and the released .pth.

The hub splits queries, keys and values; its config gives every LayerNorm but two one eps. Its decoder norm and its
fc_norm are always built with 1e-5, where the released code and ours have 1e-6: outputs agree to about 1e-5 unless those
two are set (see the tests). Which decoder mask a model was trained with is not part of its weights.
"""

from pathlib import Path
from typing import Any

from common.interop import load_config
from common.interop.layout import Drop, Layout
from common.interop.vit import SAME, Row, hub_blocks, query_key_value
from papers.videomae_v2.model import EPS, VideoClassifier, VideoMAE


def _hub_stack(theirs: str, ours: str) -> list[Row]:
    attention = f"{theirs}attention.attention."
    return [
        *hub_blocks(theirs, ours),
        query_key_value(theirs, f"{ours}attn.qkv.", "weight"),
        (f"{attention}query.bias", f"{ours}attn.q_bias"),
        (f"{attention}value.bias", f"{ours}attn.v_bias"),
    ]


def _released_stack(theirs: str, ours: str) -> list[Row]:
    parts = {part: part for part in ("attn.q_bias", "attn.v_bias", *(f"{name}." for name in SAME))}
    return [(theirs + name, ours + own) for name, own in (parts | {"attn.proj.": "attn.out."}).items()]


DECODER: list[Row] = [
    (f"{name}", f"{name}") for name in ("decoder.norm.", "decoder.head.", "encoder_to_decoder.", "mask_token")
]
HUB = Layout(
    [
        ("videomae.embeddings.patch_embeddings.projection.", "encoder.embed.proj."),
        *_hub_stack("videomae.encoder.layer.*.", "encoder.blocks.layers.*."),
        ("videomae.layernorm.", "encoder.norm."),
        *_hub_stack("decoder.decoder_layers.*.", "decoder.blocks.layers.*."),
        *DECODER,
        ("fc_norm.", "fc_norm."),
        ("classifier.", "head."),
    ],
    spelled={f"attention.attention.{part[0]}_bias": f"attention.attention.{part}.bias" for part in ("query", "value")},
)
RELEASED = Layout(
    [
        ("encoder.patch_embed.proj.", "encoder.embed.proj."),
        *_released_stack("encoder.blocks.*.", "encoder.blocks.layers.*."),
        ("encoder.norm.", "encoder.norm."),
        *_released_stack("decoder.blocks.*.", "decoder.blocks.layers.*."),
        *DECODER,
        ("fc_norm.", "fc_norm."),
        ("head.", "head."),
        Drop("pos_embed"),
    ],
    base="encoder.",  # not in fine-tuned files
)

DEFAULTS = {"num_frames": 16, "image_size": 224, "num_channels": 3, "tubelet_size": 2, "patch_size": 16}
DEFAULTS |= {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
OURS = {"hidden_size": "dim", "num_hidden_layers": "depth", "num_attention_heads": "num_heads"}
OURS |= {"intermediate_size": "mlp_dim", "num_channels": "in_channels"}


def from_config(config: dict[str, Any]) -> VideoMAE | VideoClassifier:
    """The model that a hub config.json describes, with weights of any kind."""
    sizes = {OURS.get(name, name): config.get(name, default) for name, default in DEFAULTS.items()}
    if "VideoMAEForVideoClassification" in config.get("architectures", []):
        return VideoClassifier(**sizes, num_classes=len(config.get("id2label", "01")))
    return VideoMAE(
        **sizes,
        decoder_dim=config.get("decoder_hidden_size", 384),
        decoder_depth=config.get("decoder_num_hidden_layers", 4),
        decoder_heads=config.get("decoder_num_attention_heads", 6),
        decoder_mlp_dim=config.get("decoder_intermediate_size", 1536),
    )


def from_hub(directory: str | Path) -> Any:
    """The VideoMAE or VideoClassifier of a hub directory (config.json + weights)."""
    model = from_config(load_config(directory))
    HUB.load(model, directory)
    return model


def to_hub(model: VideoMAE | VideoClassifier, directory: str | Path) -> None:
    """Write config.json and model.safetensors so that the hub's VideoMAE class of that kind loads them."""
    HUB.save(model, directory, hub_config(model))


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

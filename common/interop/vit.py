"""ViT weights (common.layers.ViT) under the names of the public hub's ViTModel and of timm (official DINO's, too).

Poolers and classifiers are left out in both directions.
"""

from typing import Any

from common.interop.layout import Drop, Entry, Fused, Layout, Unbatched

Row = Entry | tuple[str, str]


def hub_blocks(theirs: str = "encoder.layer.*.", ours: str = "blocks.layers.*.") -> list[Row]:
    """Rows of the blocks but for query, key and value, which have all their biases in ViT and two in VideoMAE."""
    names = {
        "attention.output.dense.": "attn.out.",
        "intermediate.dense.": "mlp.fc1.",
        "output.dense.": "mlp.fc2.",
        "layernorm_before.": "norm1.",
        "layernorm_after.": "norm2.",
    }
    return [(theirs + name, ours + own) for name, own in names.items()]


def query_key_value(theirs: str, ours: str, kind: str = "") -> Entry:
    """Their three projections of a block as our one; kind: "weight" or "bias", or "" for both."""
    return Fused(tuple(f"{theirs}attention.attention.{part}.{kind}" for part in ("query", "key", "value")), ours + kind)


SAME = ("norm1", "attn.qkv", "norm2", "mlp.fc1", "mlp.fc2")  # timm's names of these parts of a block are ours
HUB = Layout(
    [
        Unbatched("embeddings.cls_token", "cls_token", leading=2),
        Unbatched("embeddings.position_embeddings", "positions"),
        ("embeddings.patch_embeddings.projection.", "embed.proj."),
        *hub_blocks(),
        query_key_value("encoder.layer.*.", "blocks.layers.*.attn.qkv."),
        ("layernorm.", "norm."),
        Drop("pooler."),
        Drop("classifier."),
    ],
    spelled={"vit.": ""},
)
TIMM = Layout(
    [
        Unbatched("cls_token", "cls_token", leading=2),
        Unbatched("pos_embed", "positions"),
        ("patch_embed.proj.", "embed.proj."),
        ("blocks.*.attn.proj.", "blocks.layers.*.attn.out."),
        *(
            (f"blocks.*.{name}.", f"blocks.layers.*.{name}.")
            for name in ("norm1", "attn.qkv", "norm2", "mlp.fc1", "mlp.fc2")
        ),
        ("norm.", "norm."),
        Drop("head."),
        Drop("pre_logits."),
    ]
)


def sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ViT for a config.json of model_type vit; what it leaves out is the hub's default."""
    return {
        "image_size": config.get("image_size", 224),
        "patch_size": config.get("patch_size", 16),
        "in_channels": config.get("num_channels", 3),
        "dim": config.get("hidden_size", 768),
        "depth": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12),
        "mlp_dim": config.get("intermediate_size", 3072),
        "eps": config.get("layer_norm_eps", 1e-12),
        "qkv_bias": config.get("qkv_bias", True),
    }


def config_of(vit: Any) -> dict[str, Any]:
    """config.json of the hub's ViTModel for a ViT."""
    first, patch = vit.blocks.layers[0], vit.embed.patch_size
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": vit.positions.shape[1],
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": first.attn.num_heads,
        "intermediate_size": first.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "layer_norm_eps": vit.norm.eps,
        "image_size": round((vit.positions.shape[0] - 1) ** 0.5) * patch,
        "patch_size": patch,
        "num_channels": vit.embed.proj.in_channels,
        "qkv_bias": first.attn.qkv.bias is not None,
    }

"""ViT weights from and to the public hub's ViTModel format and timm's, without pooler and classifier.

The paper's scripts take timm's vit_base_patch16_224_in21k (the AugReg training); google/vit-base-patch16-224-in21k on
the hub is the earlier checkpoint of the ViT paper. Both have the same shapes.
"""

import re
from pathlib import Path
from typing import Any

from common.errors import EncoreError
from common.interop import check_and_load, load_config, load_weights, vit
from papers.nmc_continual.model import FrozenViT

HEAD_DIM = 64  # of every published ViT; timm's files do not say how many heads there are


def from_config(config: dict[str, Any], directory: str | Path) -> FrozenViT:
    """An encoder of the sizes that a hub directory's config.json gives. EncoreError when that is not a ViT's."""
    kind, activation = config.get("model_type"), config.get("hidden_act", "gelu")
    if kind != "vit" or activation != "gelu":
        raise EncoreError(
            f"{Path(directory) / 'config.json'}: model_type {kind!r}, hidden_act {activation!r}; "
            "this is not a ViT, give the directory of e.g. google/vit-base-patch16-224-in21k"
        )
    return FrozenViT(**vit.sizes(config))


def from_hub(directory: str | Path) -> FrozenViT:
    """The encoder of a hub directory, sized by its config.json; also of one saved with a classifier.

    EncoreError when the config is not a ViT's, or when the weights do not fit it.
    """
    model = from_config(load_config(directory), directory)
    vit.HUB.load(model, directory)
    return model


def from_timm(path: str | Path) -> FrozenViT:
    """The encoder of a timm file or directory (timm/vit_base_patch16_224.augreg_in21k), sized by its weights."""
    weights = load_weights(path)
    try:
        state = vit.TIMM.to_ours(weights, path)
        positions, patch = state["positions"].shape[0], state["embed.proj.weight"]
        depth = 1 + max(int(match[1]) for key in state if (match := re.match(r"blocks\.layers\.(\d+)\.", key)))
        mlp_dim = state["blocks.layers.0.mlp.fc1.weight"].shape[0]
    except (EncoreError, KeyError, ValueError) as error:
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

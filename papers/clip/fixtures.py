"""Tiny files in the formats CLIP reads, for tests and for a first try: shards of captioned images, class folders."""

from pathlib import Path
from typing import Any

import torch

from common.formats import tiny as write
from papers.clip.interop import to_hub
from papers.clip.model import CLIP, TextTransformer, VisionTransformer

SIZES: dict[str, dict[str, int]] = {
    "image": {"image_size": 16, "patch_size": 8, "dim": 32, "depth": 2, "num_heads": 4, "embed_dim": 12},
    "text": {"dim": 16, "depth": 2, "num_heads": 2, "vocab_size": 514, "context_length": 16, "embed_dim": 12},
}


def model(**image: int) -> dict[str, Any]:
    """A CLIP of two small towers as a config describes it."""
    where = "papers.clip.model"
    towers = {
        "image": {"class_path": f"{where}.VisionTransformer", "init_args": SIZES["image"] | image},
        "text": {"class_path": f"{where}.TextTransformer", "init_args": SIZES["text"]},
    }
    return {"class_path": f"{where}.CLIP", "init_args": towers}


def pairs_and_folders(root: Path) -> dict[str, Any]:
    """Three shards of eight captioned images, a zero-shot set of three classes, CLIP's tokenizer without merges."""
    (root / "names.txt").write_text("tench\ngoldfish\nshark\n")
    (root / "templates.txt").write_text("a {}.\nthe {}.\n")
    return {
        "model.init_args.model": model(),
        "model.init_args.optim.warmup": 1,
        "data.init_args.shards": write.caption_shards(root / "shards"),
        "data.init_args.tokenizer": write.clip_bpe(root / "tokenizer"),
        "data.init_args.zero_shot_root": write.image_folder(root / "imagenet"),
        "data.init_args.class_names": root / "names.txt",
        "data.init_args.templates": root / "templates.txt",
        "data.init_args.context_length": 16,
        "data.init_args.image_size": 16,
        "data.init_args.batch_size": 4,
    }


def from_weights(root: Path) -> dict[str, Any]:
    """The same, with published weights of a smaller resolution to start from."""
    image = VisionTransformer(**SIZES["image"] | {"image_size": 8})
    to_hub(CLIP(image, TextTransformer(**SIZES["text"])), root / "hub")
    return pairs_and_folders(root) | {"model.init_args.weights": root / "hub"}


FIXTURES = {"paper_vit_l14_336.yaml": from_weights, "paper_*.yaml": pairs_and_folders}


def tiny(**image: int) -> tuple[dict[str, Any], torch.Tensor]:
    """A module as a config describes it, and a batch for the encoder that is exported from it."""
    spec = {
        "class_path": "papers.clip.module.CLIPModule",
        "init_args": {"model": model(**image), "optim": {"lr": 1e-3}},
    }
    return spec, torch.randn(3, 3, 16, 16)

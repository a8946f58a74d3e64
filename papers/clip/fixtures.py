"""Tiny files in the formats CLIP reads, for tests and for a first try: shards of captioned images, class folders."""

from pathlib import Path
from typing import Any

import torch

from common.formats import tiny as write

WHERE = "papers.clip.model"


def model(image_size: int = 16, patch_size: int = 8, vocab_size: int = 514, context_length: int = 16) -> dict[str, Any]:
    """A CLIP of two towers of two layers, as a config describes it."""
    image = {"image_size": image_size, "patch_size": patch_size, "dim": 32, "depth": 2, "num_heads": 4, "embed_dim": 12}
    text = {"dim": 16, "depth": 2, "num_heads": 2, "vocab_size": vocab_size, "context_length": context_length}
    towers = {
        "image": {"class_path": f"{WHERE}.VisionTransformer", "init_args": image},
        "text": {"class_path": f"{WHERE}.TextTransformer", "init_args": {**text, "embed_dim": 12}},
    }
    return {"class_path": f"{WHERE}.CLIP", "init_args": towers}


def pairs_and_folders(root: Path) -> dict[str, Any]:
    """Three shards of eight captioned images, a zero-shot set of three classes, CLIP's tokenizer without merges."""
    (root / "names.txt").write_text("tench\ngoldfish\nshark\n")
    (root / "templates.txt").write_text("a {}.\nthe {}.\n")
    return {
        "model.init_args.model": model(),
        "model.init_args.warmup_steps": 1,
        "data.init_args.shards": write.caption_shards(root / "shards"),
        "data.init_args.tokenizer": write.clip_bpe(root / "tokenizer"),
        "data.init_args.zero_shot_root": write.image_folder(root / "imagenet"),
        "data.init_args.class_names": root / "names.txt",
        "data.init_args.templates": root / "templates.txt",
        "data.init_args.context_length": 16,
        "data.init_args.image_size": 16,
        "data.init_args.batch_size": 4,
    }


FIXTURES = {"paper_*.yaml": pairs_and_folders}


def tiny() -> tuple[dict[str, Any], torch.Tensor]:
    """A module as a config describes it, and a batch for the encoder that is exported from it."""
    return {"class_path": "papers.clip.module.CLIPModule", "init_args": {"model": model()}}, torch.randn(3, 3, 16, 16)

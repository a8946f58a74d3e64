"""A tiny DTD and a tiny CLIP in the published formats, for tests and for a first try."""

import json
from pathlib import Path
from typing import Any

import torch

from common.formats import tiny as write
from papers.clip.interop import to_hub
from papers.clip.model import CLIP, TextTransformer, VisionTransformer

CLASSES = ("banded", "blotchy", "braided", "bubbly", "bumpy")
WORDS = "abcd"  # four tokens of the tokenizer without merges


def dtd(root: Path) -> Path:
    """DTD with five classes: 6 training, 1 validation and 2 test images each, and the CoOp split."""
    split: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for label in (3, 0, 4, 1, 2):  # as in the published files, the classes are not in order
        name = CLASSES[label]
        for i in range(9):
            path = f"{name}/{name}_{i:04d}.png"
            write.image(root / "dtd" / "images" / path, 40 * label + i)
            split["train" if i < 6 else "val" if i < 7 else "test"].append([path, label, name])
    (root / "dtd" / "split_zhou_DescribableTextures.json").write_text(json.dumps(split))
    return root


def clip(vocab_size: int = 514, context_length: int = 24) -> CLIP:
    """Two towers of one and two layers for images of 16 pixels."""
    image = VisionTransformer(image_size=16, patch_size=8, dim=32, depth=1, num_heads=2, embed_dim=16)
    text = TextTransformer(
        dim=32, depth=2, num_heads=2, vocab_size=vocab_size, context_length=context_length, embed_dim=16
    )
    return CLIP(image, text)


def on_dtd(root: Path) -> dict[str, Any]:
    """Files and sizes for the published configs; the CLIP comes as a hub directory."""
    torch.manual_seed(5)
    to_hub(clip(), root / "clip")
    write.clip_bpe(root / "clip", 24)
    return {
        "model.init_args.model": {
            "class_path": "papers.pre.model.PromptedCLIP",
            "init_args": {"clip": {"class_path": "papers.pre.fixtures.clip"}},
        },
        "model.init_args.weights": root / "clip",
        "model.init_args.words": WORDS,
        "data.init_args.root": dtd(root),
        "data.init_args.tokenizer": root / "clip",
        "data.init_args.context_length": 24,
        "data.init_args.image_size": 16,
        "data.init_args.shots": 4,
        "data.init_args.batch_size": 4,
    }


FIXTURES = {"paper*.yaml": on_dtd}

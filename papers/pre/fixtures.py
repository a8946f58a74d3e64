"""Tiny data sets in the CoOp splits' layout and a tiny CLIP in the hub's, for tests and for a first try."""

import json
from pathlib import Path
from typing import Any

from common.formats import tiny as write
from common.formats.tokenizers import ClipTokenizer, clip_tokenizer
from papers.clip import fixtures as clip
from papers.clip.interop import to_hub
from papers.clip.model import CLIP, TextTransformer, VisionTransformer

CLASSES = ["banded", "blotchy", "braided", "bubbly", "bumpy"]
CONTEXT = 24


def tokenizer(folder: Path) -> ClipTokenizer:
    """CLIP's tokenizer in which "a photo of a" are four tokens, as they are in the published one."""
    texts = ["a photo of a cat."] * 9 + ["a photo of a blue dog."] * 9
    return clip_tokenizer(write.clip_bpe(folder, CONTEXT, texts), CONTEXT)


def dtd(root: Path) -> None:
    """Five classes of 6 training, 1 validation and 2 test images; as in the published files, not in order."""
    split: dict[str, list] = {"train": [], "val": [], "test": []}
    for label in (3, 0, 4, 1, 2):
        name = CLASSES[label]
        for i in range(9):
            path = f"{name}/{name}_{i:04d}.png"
            write.image(root / "dtd" / "images" / path, 40 * label + i)
            split["train" if i < 6 else "val" if i < 7 else "test"].append([path, label, name])
    (root / "dtd" / "split_zhou_DescribableTextures.json").write_text(json.dumps(split))


def aircraft(root: Path) -> None:
    """FGVC-Aircraft with three variants and lists of its own."""
    folder = root / "fgvc_aircraft"
    variants = ["707-320", "727 200", "MD-11"]
    for number in range(6):
        write.image(folder / "images" / f"{number:07d}.jpg", number)
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    for part, numbers in {"train": (0, 1, 2), "test": (3, 4, 5)}.items():
        lines = [f"{n:07d} {variants[n % 3]}\n" for n in numbers]
        (folder / f"images_variant_{part}.txt").write_text("".join(lines))


def few_shot(root: Path) -> dict[str, Any]:
    """DTD, and the weights of a tiny CLIP; the prompt is learned in a CLIP of that size."""
    dtd(root)
    text = clip.SIZES["text"] | {"context_length": CONTEXT, "vocab_size": len(tokenizer(root / "tokenizer"))}
    sizes = {"image": clip.SIZES["image"], "text": text}
    to_hub(CLIP(VisionTransformer(**sizes["image"]), TextTransformer(**text)), root / "hub")
    towers = {
        name: {"class_path": f"papers.clip.model.{kind}", "init_args": sizes[name]}
        for name, kind in (("image", "VisionTransformer"), ("text", "TextTransformer"))
    }
    frozen = {"class_path": "papers.clip.model.CLIP", "init_args": towers}
    return {
        "model.init_args.model": {"class_path": "papers.pre.model.PromptedCLIP", "init_args": {"clip": frozen}},
        "model.init_args.weights": root / "hub",
        "data.init_args.root": root,
        "data.init_args.tokenizer": root / "tokenizer",
        "data.init_args.context_length": CONTEXT,
        "data.init_args.shots": 4,
        "data.init_args.image_size": 16,
        "data.init_args.batch_size": 4,
    }


FIXTURES = {"paper*.yaml": few_shot}

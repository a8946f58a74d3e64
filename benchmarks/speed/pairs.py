"""Our shared models against public classes (see common.fast.pairs), and the pairs of the papers with a speed.py."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.paper import paths
from common.fast.pairs import Pair, Side, Size, Subject, documents, save_once


def vit(side: Side, folder: Path, size: Size) -> Subject:
    """ViT-B/16 at 224 px and 1,000 classes; small: 32 px in patches of 4, width 64, 10 classes. Peer: transformers."""
    from transformers import ViTConfig, ViTForImageClassification

    from benchmarks.speed.vit import HUB_CLASSIFIER

    sizes, batch, classes = VIT_SIZES[size]
    images, labels = torch.randn(batch, 3, sizes["image_size"], sizes["image_size"]), torch.randint(classes, (batch,))
    if side == "ours":
        model: Any = _our_vit(sizes, classes)
        HUB_CLASSIFIER.load(model, folder)
        return Subject(model, lambda: F.cross_entropy(model(images), labels), lambda: model(images))
    config = ViTConfig(
        image_size=sizes["image_size"], patch_size=sizes["patch_size"], hidden_size=sizes["dim"],
        num_hidden_layers=sizes["depth"], num_attention_heads=sizes["num_heads"], intermediate_size=4 * sizes["dim"],
        layer_norm_eps=1e-6, hidden_dropout_prob=0.0,
    )  # fmt: skip
    config.num_labels = classes
    model = ViTForImageClassification(config)
    save_once(model, folder)
    return Subject(
        model,
        lambda: F.cross_entropy(model(pixel_values=images).logits, labels),
        lambda: model(pixel_values=images).logits,
    )


def vit_timm(side: Side, folder: Path, size: Size) -> Subject:
    """The same sizes against timm's VisionTransformer."""
    from safetensors.torch import load_file, save_file
    from timm.models.vision_transformer import VisionTransformer

    from benchmarks.speed.vit import TIMM_CLASSIFIER

    sizes, batch, classes = VIT_SIZES[size]
    images, labels = torch.randn(batch, 3, sizes["image_size"], sizes["image_size"]), torch.randint(classes, (batch,))
    file = folder / "timm.safetensors"
    if side == "ours":
        model: Any = _our_vit(sizes, classes)
        model.load_state_dict(TIMM_CLASSIFIER.to_ours(load_file(file), file))
    else:
        model = VisionTransformer(
            img_size=sizes["image_size"], patch_size=sizes["patch_size"], embed_dim=sizes["dim"], depth=sizes["depth"],
            num_heads=sizes["num_heads"], num_classes=classes,
        )  # fmt: skip
        if file.exists():
            model.load_state_dict(load_file(file))
        save_file(model.state_dict(), file)
    return Subject(model, lambda: F.cross_entropy(model(images), labels), lambda: model(images))


VIT_SIZES: dict[str, tuple[dict[str, int], int, int]] = {
    "base": ({"image_size": 224, "patch_size": 16, "dim": 768, "depth": 12, "num_heads": 12}, 4, 1000),
    "small": ({"image_size": 32, "patch_size": 4, "dim": 64, "depth": 2, "num_heads": 4}, 64, 10),
}


def _our_vit(sizes: dict[str, int], classes: int) -> nn.Module:
    from common.layers import ViT

    return ViT(**sizes, num_classes=classes)  # type: ignore[arg-type]


def bert(side: Side, folder: Path, size: Size) -> Subject:
    """BERT-base's masked-word step on sentences of 16 to 128 tokens, 15 % masked; small: 2 layers of width 96 on 8 to
    48 tokens. Inference: the last states of real tokens."""
    from transformers import BertConfig, BertForMaskedLM

    from common.fast.packed import Packing
    from common.interop.bert import bert_from_hub
    from common.layers.bert import packed_loss, packed_states

    base = size == "base"
    batch, lengths, vocab = (8, (16, 128), 30522) if base else (32, (8, 48), 2048)
    tokens = documents(batch, lengths, vocab, 1.0)
    valid = tokens != 1
    tokens = tokens.masked_fill(~valid, 0)
    labels = tokens.masked_fill(~valid | (torch.rand(tokens.shape) > 0.15), -100)
    labels[:, 1] = tokens[:, 1]
    if side == "ours":
        model: Any = bert_from_hub(folder)
        return Subject(
            model,
            lambda: packed_loss(model, tokens, labels, valid),
            lambda: packed_states(model.bert, tokens, Packing(valid)),
        )
    width, depth, heads = (768, 12, 12) if base else (96, 2, 4)
    config = BertConfig(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=512 if base else 64, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    save_once(model, folder)
    given = {"input_ids": tokens, "attention_mask": valid.long()}
    return Subject(
        model, lambda: model(**given, labels=labels).loss, lambda: model.bert(**given).last_hidden_state[valid]
    )


def of_papers() -> dict[str, ModuleType]:
    """{slug: its speed.py}."""
    paths.make_importable()
    files = sorted((paths.root() / "papers").glob("*/speed.py"))
    return {file.parent.name: importlib.import_module(f"papers.{file.parent.name}.speed") for file in files}


def pairs() -> dict[str, Pair]:
    """{name: pair}; a paper's is named by its slug."""
    own: dict[str, Pair] = {"vit": vit, "vit-timm": vit_timm, "bert": bert}
    return own | {slug: module.pair for slug, module in of_papers().items() if hasattr(module, "pair")}

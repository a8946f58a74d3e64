"""Tiny videos, a frame folder and their lists in the public format, for tests and for a first try."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from common.formats import tiny as write
from papers.videomae_v2.model import VideoClassifier, VideoMAE

WHERE = "papers.videomae_v2.model"
SIZES: dict[str, Any] = {"dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40, "patch_size": 8}
CLIP: dict[str, Any] = {"num_frames": 4, "image_size": 32}
DECODER = {"decoder_dim": 16, "decoder_heads": 2, "decoder_mlp_dim": 28, "decoder_depth": 1}


def videos(root: Path) -> None:
    """Two videos, a folder with frames 1 to 16 of growing red, and a list of each kind."""
    write.video(root / "long one.mp4", 30)
    write.video(root / "b.mp4", 24)
    (root / "SomethingV2").mkdir()
    for number in range(1, 17):
        Image.new("RGB", (40, 32), (10 * number, 0, 0)).save(root / "SomethingV2" / f"img_{number:05}.jpg", quality=95)
    (root / "pretrain.csv").write_text("long one.mp4 0 -1\nb.mp4 0 -1\nSomethingV2 5 12\n")
    (root / "labelled.csv").write_text("long one.mp4 2\nb.mp4 0\n")
    (root / "frames.csv").write_text("SomethingV2 16 1\n")


def pretraining(root: Path) -> dict[str, Any]:
    """The three of them without labels."""
    videos(root)
    data = CLIP | {"root": str(root), "train_list": str(root / "pretrain.csv"), "patch_size": 8, "repeats": 2}
    model = {"class_path": f"{WHERE}.VideoMAE", "init_args": SIZES | CLIP | DECODER}
    return {"model.init_args.model": model, **_data(data | {"batch_size": 3})}


def labelled(root: Path) -> dict[str, Any]:
    """Two videos of three classes, after a pre-training."""
    videos(root)
    state = {f"model.{name}": value for name, value in VideoMAE(**SIZES, **CLIP, **DECODER).state_dict().items()}
    torch.save({"state_dict": state}, root / "pretrain.ckpt")
    model = {"class_path": f"{WHERE}.VideoClassifier", "init_args": SIZES | CLIP | {"num_classes": 3, "drop_path": 0.2}}
    return {
        "model.init_args.model": model,
        "model.init_args.weights": root / "pretrain.ckpt",
        **labelled_data(root),
    }


def labelled_data(root: Path) -> dict[str, Any]:
    """What of the data section must change to read the labelled list."""
    lists = {"train_list": str(root / "labelled.csv"), "val_list": str(root / "labelled.csv"), "num_classes": 3}
    return _data(CLIP | lists | {"root": str(root), "batch_size": 2, "repeats": 1})


def mapped(root: Path) -> dict[str, Any]:
    """The same after training on four classes, three of which are this set's."""
    changes = labelled(root)
    state = VideoClassifier(**SIZES, **CLIP, num_classes=4).state_dict()
    torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}}, root / "pretrain.ckpt")
    (root / "map.json").write_text(json.dumps([3, 1, 0]))
    return changes | {"model.init_args.label_map": root / "map.json"}


def _data(arguments: dict[str, Any]) -> dict[str, Any]:
    return {f"data.init_args.{name}": value for name, value in arguments.items()}


FIXTURES = {
    "paper_pretrain_*.yaml": pretraining,
    "paper_finetune_g_k710_k?00.yaml": mapped,
    "paper_*.yaml": labelled,
}
META = {"paper_finetune_g_k710_k?00.yaml": {"model.init_args.label_map": None}}


def tiny() -> tuple[dict[str, Any], torch.Tensor]:
    """A module as a config describes it, and a batch for the encoder that is exported from it."""
    model = {"class_path": f"{WHERE}.VideoClassifier", "init_args": SIZES | CLIP | {"num_classes": 3}}
    arguments = {"model": model, "optim": {"lr": 1e-3}}
    return {"class_path": "papers.videomae_v2.module.FineTuning", "init_args": arguments}, torch.randn(2, 3, 4, 32, 32)

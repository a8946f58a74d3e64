"""Tiny videos, their lists and a sequence with object masks in the public formats, for tests and for a first try."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from papers.sigma import interop
from papers.sigma.model import DINO, SIGMA, projection_mlp
from papers.videomae_v2 import fixtures as videomae_v2
from papers.videomae_v2.fixtures import CLIP, DECODER, SIZES
from papers.videomae_v2.model import VideoMAE

WHERE, VIDEO = "papers.sigma.model", "papers.videomae_v2.model"
MLP: dict[str, Any] = {"in_dim": 2 * 8 * 8 * 3, "hidden": [24], "out_dim": 12}
TOWER: dict[str, Any] = {"image_size": 32, "patch_size": 8, "dim": 12, "depth": 1, "num_heads": 2}


def sigma() -> SIGMA:
    """For 4 x 32 x 32 colour clips."""
    return SIGMA(VideoMAE(**SIZES, **CLIP, **DECODER), projection_mlp(2 * 8 * 8 * 3, (24,), 12), 7)


def model(phi: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A SIGMA with phi of that name as a config describes it."""
    video = {"class_path": f"{VIDEO}.VideoMAE", "init_args": SIZES | CLIP | DECODER}
    parts = {"video": video, "phi": {"class_path": f"{WHERE}.{phi}", "init_args": arguments}, "num_prototypes": 7}
    return {"class_path": f"{WHERE}.SIGMA", "init_args": parts}


def with_mlp(root: Path) -> dict[str, Any]:
    """Two videos with labels that nobody reads."""
    changes = videomae_v2.pretraining(root)
    (root / "train.csv").write_text("long one.mp4 2\nb 0\n")
    changes |= {"data.init_args.train_list": root / "train.csv", "data.init_args.batch_size": 2}
    del changes["data.init_args.repeats"]
    return changes | {"model.init_args.model": model("projection_mlp", MLP)}


def with_dino(root: Path) -> dict[str, Any]:
    """The same and a DINO."""
    interop.save_dino(DINO(**TOWER), root / "dino")
    changes = with_mlp(root) | {"model.init_args.model": model("DINO", TOWER)}
    return changes | {"model.init_args.dino_weights": root / "dino"}


def labelled(root: Path) -> dict[str, Any]:
    """Two videos of three classes, after a pre-training."""
    changes = videomae_v2.labelled(root)
    interop.save_released(sigma(), root / "sigma.pth")
    return changes | {"model.init_args.weights": root / "sigma.pth"}


def davis(root: Path, name: str = "car", frames: int = 6) -> None:
    """DAVIS's layout: a red square, object 1, on blue; the square moves right."""
    images, masks = root / "JPEGImages/480p" / name, root / "Annotations/480p" / name
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    for t in range(frames):
        mask = np.zeros((24, 32), np.uint8)
        mask[6:18, t : t + 12] = 1
        pixels = np.where(mask[..., None] == 1, (200, 30, 30), (20, 20, 160)).astype(np.uint8)
        Image.fromarray(pixels).save(images / f"{t:05}.jpg", quality=95)
        palette = Image.fromarray(mask)
        palette.putpalette([0, 0, 0, 128, 0, 0] + [9] * 762)
        palette.save(masks / f"{t:05}.png")
    (root / "val.txt").write_text(f"{name}\n")


def segmentation(root: Path) -> dict[str, Any]:
    """One sequence of six frames."""
    davis(root)
    interop.save_released(sigma(), root / "sigma.pth")
    encoder = {"class_path": f"{VIDEO}.VideoEncoder", "init_args": SIZES | CLIP | {"norm": True}}
    data = {"root": root, "sequences": "val.txt", "images": "JPEGImages/480p", "masks": "Annotations/480p"}
    return {
        "model.init_args.encoder": encoder,
        "model.init_args.weights": root / "sigma.pth",
        "model.init_args.overclusters": 4,
        **{f"data.init_args.{name}": value for name, value in (data | CLIP).items()},
    }


FIXTURES = {
    "paper_pretrain_*_dino.yaml": with_dino,
    "paper_pretrain_*.yaml": with_mlp,
    "paper_segmentation_*.yaml": segmentation,
    "paper_*.yaml": labelled,
}
META = {
    "paper_pretrain_*_dino.yaml": {  # DINO's own sizes are facts
        "model.init_args.dino_weights": None,
        "model.init_args.model.init_args.target": "mlp",
    }
}


def tiny() -> tuple[dict[str, Any], torch.Tensor]:
    """A module as a config describes it, and a batch for the encoder that is exported from it."""
    arguments = {"model": {"class_path": f"{WHERE}.sigma_tiny_patch8_32", "init_args": {}}, "optim": {"lr": 1e-3}}
    return {"class_path": "papers.sigma.module.Pretraining", "init_args": arguments}, torch.randn(2, 1, 8, 32, 32)

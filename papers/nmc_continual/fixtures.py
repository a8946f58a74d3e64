"""Tiny sets in the formats the streams read, for tests and for a first try: CIFAR-100, CORe50, ImageNet-R, the five."""

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import savemat

from common.formats import tiny as write
from common.interop import vit
from papers.nmc_continual.model import FrozenViT
from papers.nmc_continual.streams import CORE50_TEST, CORE50_TRAIN

VIT: dict[str, Any] = {"image_size": 16, "patch_size": 8, "dim": 64, "depth": 2, "num_heads": 1}


def cifar100_pixels(labels: np.ndarray) -> np.ndarray:
    """(N, 3072) as in the archive: red is the label, green and blue mark row and column."""
    images = np.zeros((len(labels), 3, 32, 32), np.uint8)
    images[:, 0] = labels[:, None, None]
    images[:, 1] = 8 * np.arange(32)[:, None]
    images[:, 2] = 8 * np.arange(32)
    return images.reshape(len(labels), 3072)


def cifar100(root: Path, *, binary: bool = False, train: int = 1, test: int = 1) -> None:
    """Every class `train` and `test` times, in the layout of one of the two archives."""
    folder = root / ("cifar-100-binary" if binary else "cifar-100-python")
    folder.mkdir(parents=True)
    for split, copies in (("train", train), ("test", test)):
        labels = np.tile(np.arange(100, dtype=np.uint8), copies)
        pixels = cifar100_pixels(labels)
        if binary:
            np.concatenate([labels[:, None] // 5, labels[:, None], pixels], axis=1).tofile(folder / f"{split}.bin")
        else:
            content = {b"filenames": [b"a.png"] * len(labels), b"fine_labels": labels.tolist(), b"data": pixels}
            content |= {b"coarse_labels": (labels // 5).tolist(), b"batch_label": b"training batch 1 of 1"}
            (folder / split).write_bytes(pickle.dumps(content, protocol=2))


def core50(root: Path, objects: int = 3) -> None:
    """One image an object and session; its red value is the object's number."""
    for session in (*CORE50_TRAIN, *CORE50_TEST):
        for thing in range(1, objects + 1):
            folder = root / "core50_128x128" / f"s{session}" / f"o{thing}"
            write.image(folder / f"C_{session:02}_{thing:02}_000.png", thing, (16, 16))


def imagenet_r(root: Path, classes: int = 200, each: int = 2) -> None:
    """Class folders of `each` pictures, and a README beside them."""
    for number in range(classes):
        for i in range(each):
            write.image(root / "imagenet-r" / f"n{number:08}" / f"art_{i}.jpg", number)
    (root / "imagenet-r" / "README.txt").write_text("about")


def five_datasets(root: Path) -> None:
    """Each class of each set twice for training and once for testing; pixel value = 10 * set + class."""
    for split, copies in (("train", 2), ("test", 1)):
        labels = np.tile(np.arange(10, dtype=np.uint8), copies)

        def grey(offset: int, side: int, labels: np.ndarray = labels) -> np.ndarray:
            return np.broadcast_to((labels + offset)[:, None, None], (len(labels), side, side))

        binary = root / "cifar-10-batches-bin"
        binary.mkdir(exist_ok=True)
        pixels = np.broadcast_to(labels[:, None], (len(labels), 3072))
        parts = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
        for i, part in enumerate(parts):
            np.concatenate([labels[:, None], pixels], 1)[i :: len(parts)].tofile(binary / f"{part}.bin")
        for letter in range(10):
            for i in range(copies):
                file = root / "notMNIST" / split.capitalize() / "ABCDEFGHIJ"[letter] / f"{i}.png"
                write.image(file, 10 + letter, (28, 28), "L")
        for name, offset, pack in (("MNIST", 20, False), ("FashionMNIST", 40, True)):
            (root / name / "raw").mkdir(parents=True, exist_ok=True)
            prefix = "train" if split == "train" else "t10k"
            for kind, array in (("images-idx3-ubyte", grey(offset, 28)), ("labels-idx1-ubyte", labels)):
                content = idx(np.ascontiguousarray(array, np.uint8))
                path = root / name / "raw" / f"{prefix}-{kind}{'.gz' if pack else ''}"
                path.write_bytes(gzip.compress(content) if pack else content)
        svhn = np.broadcast_to(grey(30, 32)[..., None], (len(labels), 32, 32, 3)).transpose(1, 2, 3, 0)
        savemat(root / f"{split}_32x32.mat", {"X": svhn, "y": np.where(labels == 0, 10, labels)[:, None]})


def idx(array: np.ndarray) -> bytes:
    """An array in MNIST's format."""
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def common(root: Path) -> dict[str, Any]:
    """A file of weights as timm has them, and what makes a stream small."""
    torch.save(vit.TIMM.to_theirs(FrozenViT(**VIT).state_dict()), root / "vit.pth")
    return {
        "model.init_args.backbone.init_args.path": root / "vit.pth",
        "data.init_args.root": root,
        "data.init_args.image_size": 16,
        "data.init_args.batch_size": 16,
    }


def on_cifar100(root: Path) -> dict[str, Any]:
    cifar100(root)
    return common(root)


def with_ewc(root: Path) -> dict[str, Any]:
    return on_cifar100(root) | {"model.init_args.fisher_images": 3}


def on_core50(root: Path) -> dict[str, Any]:
    core50(root)
    return common(root)


def on_imagenet_r(root: Path) -> dict[str, Any]:
    imagenet_r(root)
    return common(root)


def on_five_datasets(root: Path) -> dict[str, Any]:
    five_datasets(root)
    return common(root)


FIXTURES = {
    "paper_cifar100_ewc.yaml": with_ewc,
    "paper_cifar100*.yaml": on_cifar100,
    "paper_core50.yaml": on_core50,
    "paper_imagenet_r.yaml": on_imagenet_r,
    "paper_five_datasets.yaml": on_five_datasets,
}
WHERE = "papers.nmc_continual.model"
META = {"paper_*.yaml": {"model.init_args.backbone": {"class_path": f"{WHERE}.vit_base_patch16_224_in21k"}}}
SMOKE_STEPS = 12  # the first of five tasks; each brings classes whose loss begins anew
TESTED_APART = {"class-means-beat-training-along-the-stream": "a whole grid of learners, on a smaller grid there"}


def tiny() -> tuple[dict[str, Any], torch.Tensor]:
    """A module as a config describes it, and a batch for the encoder that is exported from it."""
    backbone = {"class_path": f"{WHERE}.FrozenViT", "init_args": VIT}
    arguments = {"backbone": backbone, "num_classes": 2, "num_tasks": 1}
    return {"class_path": "papers.nmc_continual.module.NMC", "init_args": arguments}, torch.randn(2, 3, 16, 16)

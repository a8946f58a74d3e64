"""Image sets as their homes distribute them: CIFAR (binary and pickled), CORe50, ImageNet-R, notMNIST, MNIST, SVHN.

Nothing is unpickled beyond arrays, numbers, text and plain containers. In-memory sets are uint8 arrays (N, H, W) or
(N, H, W, 3); folder sets are lists of files. Labels are int64 arrays (N,).
"""

import gzip
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import EncoreError
from common.formats.images import load_image
from common.interop.pickles import ARRAYS, load_pickle

Arrays = tuple[np.ndarray, np.ndarray]
Files = tuple[list[Path], np.ndarray]
PIXELS = 3 * 32 * 32
CIFAR: dict[str, dict[str, Any]] = {
    "cifar10": {
        "binary": "cifar-10-batches-bin",
        "python": "cifar-10-batches-py",
        "train": [f"data_batch_{i}" for i in range(1, 6)],
        "test": ["test_batch"],
        "label_bytes": 1,
        "key": b"labels",
    },
    "cifar100": {
        "binary": "cifar-100-binary",
        "python": "cifar-100-python",
        "train": ["train"],
        "test": ["test"],
        "label_bytes": 2,  # coarse, fine
        "key": b"fine_labels",
    },
}
SUFFIXES = {".jpg", ".jpeg", ".png"}


def read_cifar(root: str | Path, name: str, split: str) -> Arrays:
    """'cifar10' or 'cifar100', 'train' or 'test': images (N, 32, 32, 3) and (fine) labels.

    root holds cifar-100-binary (the "binary version", preferred) or cifar-100-python, as unpacked; likewise CIFAR-10.
    """
    root, layout = Path(root), CIFAR[name]
    parts: list[Arrays] = []
    for file in layout[split]:
        binary, pickled = root / layout["binary"] / f"{file}.bin", root / layout["python"] / file
        if binary.is_file():
            parts.append(_read_cifar_binary(binary, layout["label_bytes"]))
        elif pickled.is_file():
            parts.append(_read_cifar_pickle(pickled, layout["key"]))
        else:
            raise EncoreError(f"neither {binary} nor {pickled} is there; unpack {name}'s archive in {root}")
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return images, labels


def _read_cifar_binary(path: Path, label_bytes: int) -> Arrays:
    data = np.fromfile(path, dtype=np.uint8)
    record = label_bytes + PIXELS
    if not len(data) or len(data) % record:
        raise EncoreError(f"{path}: {len(data)} bytes are no whole number of {record}-byte records; fetch it again")
    data = data.reshape(-1, record)
    return _channels_last(data[:, label_bytes:]), data[:, label_bytes - 1].astype(np.int64)


def _read_cifar_pickle(path: Path, key: bytes) -> Arrays:
    content = load_pickle(path, ARRAYS, encoding="bytes")
    try:
        pixels, labels = content[b"data"], np.array(content[key], dtype=np.int64)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
            raise ValueError(f"data is {pixels.dtype} {pixels.shape} for {len(labels)} labels")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EncoreError(f"{path}: not a CIFAR batch ({error}); use the archive's own file") from error
    return _channels_last(pixels), labels


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    """Rows of 3,072 values, all red first -> (N, 32, 32, 3)"""
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def read_core50(root: str | Path, sessions: tuple[int, ...]) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """The 128x128 release: files, object (0-49) and session of each image, in sorted order.

    root/s<session>/o<object>/C_<session>_<object>_<frame>.png; root may hold these in core50_128x128.
    """
    root = _inside(Path(root), "core50_128x128")
    files: list[Path] = []
    labels: list[int] = []
    origins: list[int] = []
    for session in sessions:
        folders = [f for f in sorted(_folder(root / f"s{session}").iterdir()) if re.fullmatch(r"o\d+", f.name)]
        if not folders:
            raise EncoreError(f"{root / f's{session}'}: no object folders o1, o2, ...; unpack core50_128x128.zip")
        for folder in sorted(folders, key=lambda f: int(f.name[1:])):
            found = _pictures(folder)
            files += found
            labels += [int(folder.name[1:]) - 1] * len(found)
            origins += [session] * len(found)
    return files, np.array(labels), np.array(origins)


def read_class_folders(root: str | Path) -> tuple[list[Path], np.ndarray, list[str]]:
    """One folder a class (ImageNet-R: WordNet ids; notMNIST: letters): files, labels, names of the sorted folders."""
    folders = sorted(f for f in _folder(Path(root)).iterdir() if f.is_dir())
    if not folders:
        raise EncoreError(f"{root}: no class folders in it; unpack the archive there")
    found = [_pictures(folder) for folder in folders]
    labels = np.repeat(np.arange(len(folders)), [len(files) for files in found])
    return [file for files in found for file in files], labels, [folder.name for folder in folders]


def read_imagenet_r(root: str | Path) -> tuple[list[Path], np.ndarray, list[str]]:
    """ImageNet-R as unpacked (imagenet-r/n01443537/art_0.jpg), or its folder of classes."""
    return read_class_folders(_inside(Path(root), "imagenet-r"))


def read_notmnist(root: str | Path, split: str) -> Arrays:
    """notMNIST/Train/A ... J and notMNIST/Test: images (N, 28, 28). Files that are no images, which the set is known
    for, are skipped and counted in one warning."""
    paths, labels, _ = read_class_folders(Path(root) / "notMNIST" / split.capitalize())
    images: list[np.ndarray | None] = [_grey(path) for path in paths]
    broken = [path for path, image in zip(paths, images) if image is None]
    if broken:
        warnings.warn(f"notMNIST {split}: skipped {len(broken)} broken files (first: {broken[0]})", stacklevel=2)
    kept = [i for i, image in enumerate(images) if image is not None]
    if not kept:
        raise EncoreError(f"{root}: none of the {len(paths)} files of notMNIST {split} is an image")
    return np.stack([image for image in images if image is not None]), labels[kept]


def _grey(path: Path) -> np.ndarray | None:
    try:
        return np.asarray(load_image(path, "L"))
    except EncoreError:
        return None


def read_mnist(root: str | Path, split: str) -> Arrays:
    """MNIST or Fashion-MNIST: root (or root/raw) holds train-images-idx3-ubyte, with or without .gz, and so on."""
    prefix = {"train": "train", "test": "t10k"}[split]
    images, labels = (_read_idx(Path(root), f"{prefix}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise EncoreError(f"{root}: {prefix} images {images.shape} and labels {labels.shape} do not belong together")
    return images, labels.astype(np.int64)


def _read_idx(root: Path, name: str) -> np.ndarray:
    places = [folder / f"{name}{suffix}" for folder in (root, root / "raw") for suffix in ("", ".gz")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise EncoreError(f"{root}: neither {name} nor {name}.gz in it or in raw/")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, dims = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
        if zeros or kind != 8:
            raise ValueError("it does not begin as a file of bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise EncoreError(f"{path}: not a whole idx file ({error}); fetch it again") from error


def read_svhn(root: str | Path, split: str) -> Arrays:
    """train_32x32.mat or test_32x32.mat: images (N, 32, 32, 3); the file's label 10 is the digit 0."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    path = Path(root) / f"{split}_32x32.mat"
    try:
        content = loadmat(path)
        images, labels = content["X"].transpose(3, 0, 1, 2), content["y"].reshape(-1).astype(np.int64) % 10
    except (MatReadError, OSError, ValueError, KeyError, TypeError, NotImplementedError, zlib.error) as error:
        raise EncoreError(f"{path}: not SVHN's cropped digits ({error}); fetch it again") from error
    return np.ascontiguousarray(images), labels


def _inside(root: Path, name: str) -> Path:
    return root / name if (root / name).is_dir() else root


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise EncoreError(f"{path}: no such folder; unpack the data set there or correct data.init_args.root")
    return path


def _pictures(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise EncoreError(f"{folder}: no images in it; the archive was not unpacked completely")
    return found

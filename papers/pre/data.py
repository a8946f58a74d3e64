"""Few-shot data from Base to New classes: the CoOp splits of eight data sets on disk, and small sets in memory.

A data module here says `tokenizer`, `base_names`, `new_names` and `hand_prompt` (a pattern with {}). Its training
batches hold Base classes only, {image, label} or {features, label}; it validates on two loaders, Base test images with
labels among base_names and New test images with labels among new_names.
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from common.errors import EncoreError
from common.formats.images import LabelledImages
from common.formats.lines import text_lines
from common.formats.tokenizers import ClipTokenizer, clip_tokenizer
from common.training.loaders import Loaders
from papers.clip.images import MEAN, STD, image_transform


@dataclass(frozen=True)
class Layout:
    """Where a data set lies under the root, and CLIP's prompt for it. split None: FGVC-Aircraft's own text files."""

    folder: str
    images: str
    split: str | None
    hand_prompt: str


LAYOUTS = {
    "caltech101": Layout("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", "a photo of a {}."),
    "oxford_pets": Layout("oxford_pets", "images", "split_zhou_OxfordPets.json", "a type of pet, a photo of a {}."),
    "stanford_cars": Layout("stanford_cars", ".", "split_zhou_StanfordCars.json", "a photo of a {}."),
    "oxford_flowers": Layout(
        "oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", "a type of flower, a photo of a {}."
    ),
    "food101": Layout("food-101", "images", "split_zhou_Food101.json", "a type of food, a photo of {}."),
    "fgvc_aircraft": Layout("fgvc_aircraft", "images", None, "a photo of a {}, a type of aircraft."),
    "dtd": Layout("dtd", "images", "split_zhou_DescribableTextures.json", "{} texture."),
    "eurosat": Layout("eurosat", "2750", "split_zhou_EuroSAT.json", "a centered satellite photo of {}."),
}


@dataclass(frozen=True)
class Item:
    """One labelled image."""

    path: Path
    label: int
    name: str


@dataclass(frozen=True)
class Splits:
    """The fixed parts of a data set that the protocol uses; the last epoch is tested, so nothing is chosen on `val`."""

    train: list[Item]
    test: list[Item]


def read_splits(root: Path, dataset: str) -> Splits:
    """The fixed splits of one of the eight data sets below root. Raises EncoreError that names the file."""
    if dataset not in LAYOUTS:
        raise EncoreError(f"unknown data set {dataset!r}; there are: {', '.join(LAYOUTS)}")
    layout = LAYOUTS[dataset]
    folder = root / layout.folder
    if not (folder / layout.images).is_dir():
        raise EncoreError(f"{folder / layout.images}: no such folder; put the images of {dataset} there")
    if layout.split is None:
        return _read_aircraft(folder)
    return _read_json(folder / layout.split, folder / layout.images)


def _read_json(file: Path, images: Path) -> Splits:
    """CoOp's split file: {"train": [[path below the image folder, label, class name], ...], "val": ..., "test": ...}"""
    try:
        content = json.loads("\n".join(text_lines(file)))
        parts = {
            part: [Item(images / path, int(label), str(name)) for path, label, name in content[part]]
            for part in ("train", "test")
        }
    except (ValueError, TypeError, KeyError) as error:
        raise EncoreError(
            f"{file}: not a split file ({error}); it must hold train and test, lists of [path, label, name]"
        ) from error
    splits = Splits(**parts)
    _class_names(splits.train + splits.test, file)
    return splits


def _read_aircraft(folder: Path) -> Splits:
    """FGVC-Aircraft: variants.txt names the classes, images_variant_{train,test}.txt have "image name" lines."""
    labels = {name.strip(): label for label, name in enumerate(text_lines(folder / "variants.txt"))}
    parts = {}
    for part in ("train", "test"):
        file = folder / f"images_variant_{part}.txt"
        items = []
        for number, line in enumerate(text_lines(file), start=1):
            image, _, name = line.strip().partition(" ")
            if name not in labels:
                raise EncoreError(f"{file}, line {number}: {name!r} is not in variants.txt; take both from one release")
            items.append(Item(folder / "images" / f"{image}.jpg", labels[name], name))
        parts[part] = items
    return Splits(**parts)


def _class_names(items: Sequence[Item], where: object) -> list[str]:
    """Names in the order of the labels; one label with two names is an error."""
    names: dict[int, str] = {}
    for item in items:
        if names.setdefault(item.label, item.name) != item.name:
            raise EncoreError(f"{where}: label {item.label} is both {names[item.label]!r} and {item.name!r}")
    return [names[label] for label in sorted(names)]


def few_shot(items: Sequence[Item], shots: int, rng: random.Random) -> list[Item]:
    """`shots` images of every class without replacement, classes in the order they first appear; a smaller class is
    kept whole.
    """
    by_label: dict[int, list[Item]] = {}
    for item in items:
        by_label.setdefault(item.label, []).append(item)
    drawn = [rng.sample(group, shots) if len(group) >= shots else group for group in by_label.values()]
    return [item for group in drawn for item in group]


def base_and_new(splits: Splits) -> tuple[Splits, Splits]:
    """The classes sorted by label, cut after the first half (the larger one when odd); labels are numbered anew."""
    labels = sorted({item.label for item in splits.train})
    if len(labels) < 2:
        raise EncoreError(f"Base and New classes need at least two classes, the training part has {len(labels)}")
    cut = math.ceil(len(labels) / 2)

    def only(chosen: list[int]) -> Splits:
        number = {label: i for i, label in enumerate(chosen)}
        return Splits(
            *(
                [replace(item, label=number[item.label]) for item in part if item.label in number]
                for part in (splits.train, splits.test)
            )
        )

    return only(labels[:cut]), only(labels[cut:])


def train_transform(image_size: int) -> Callable[[Image.Image], Tensor]:
    """A random crop of 8 to 100 % of the area (bicubic) to image_size, flipped half of the time, CLIP's colours."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(image_size, scale=(0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def labelled(items: Sequence[Item], transform: Callable[[Image.Image], Tensor]) -> LabelledImages:
    """{image, label} of items."""
    return LabelledImages([item.path for item in items], [item.label for item in items], transform)


class BaseToNew(Loaders):
    """Training images of Base classes; validation on test images of Base and of New classes, each among its own names.

    A subclass fills in the attributes in setup. A data set smaller than a batch is one batch.
    """

    tokenizer: ClipTokenizer
    hand_prompt: str
    base_names: list[str]
    new_names: list[str]
    tests: dict[str, Any]  # "base" and "new": their test images

    def train_dataloader(self) -> DataLoader:
        self.batch_size = min(self.batch_size, len(self.train))
        return super().train_dataloader()

    def val_dataloader(self) -> list[DataLoader]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        parts = [self.tests[part] for part in ("base", "new")]
        return [self.evaluation(Subset(images, range(rank, len(images), world))) for images in parts]


class FewShotData(BaseToNew):
    """One of the eight data sets from its CoOp split: `shots` training images a Base class, all Base and New test
    images.

    root holds the folders of LAYOUTS. tokenizer: the released merges, or a folder with vocab.json and merges.txt. The
    seed (1, 2, 3 in the paper) draws the shots, of all classes before they are divided, and the order of the batches.
    batch_size is per process.
    """

    def __init__(
        self,
        *,
        root: str,
        dataset: str,
        tokenizer: str,
        shots: int = 16,
        image_size: int = 224,
        context_length: int = 77,
        batch_size: int = 32,
        eval_batch_size: int = 100,
        num_workers: int = 8,
        seed: int = 1,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, eval_batch_size=eval_batch_size)
        self.root, self.dataset, self.shots, self.image_size = Path(root), dataset, shots, image_size
        self.tokenizer = clip_tokenizer(Path(tokenizer), context_length)

    def setup(self, stage: str) -> None:
        if self.train is not None:
            return
        splits = read_splits(self.root, self.dataset)
        rng = random.Random(self.seed)
        splits = replace(splits, train=few_shot(splits.train, self.shots, rng))
        self.base, self.new = base_and_new(splits)
        self.base_names = _class_names(self.base.train, self.dataset)
        self.new_names = _class_names(self.new.train, self.dataset)
        self.hand_prompt = LAYOUTS[self.dataset].hand_prompt
        self.train = labelled(self.base.train, train_transform(self.image_size))
        whole = image_transform(self.image_size, train=False)
        self.tests = {"base": labelled(self.base.test, whole), "new": labelled(self.new.test, whole)}

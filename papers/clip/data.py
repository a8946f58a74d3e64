"""CLIP's data: tar shards and ImageNet folders at full scale, rendered shapes and emoji at `cpu` scale.

Training batches are dicts with image (B, 3, R, R) and tokens (B, N); the small sets add words (B, W), the bag of
words of the caption for the predictive baseline. Evaluation batches have image and label; a data module that has them
also says `class_names`, `templates` and `tokenizer`, of which the zero-shot classifier is made.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from torchvision.datasets import ImageFolder

from common import sources
from common.errors import EncoreError
from common.formats.images import LabelledImages, load_image, opened
from common.formats.tables import decode_images, read_table
from common.formats.tokenizers import ClipTokenizer, clip_tokenizer
from common.training.loaders import Loaders
from common.worlds import shapes
from papers.clip.images import MEAN, STD, image_transform
from papers.clip.shards import CaptionShards, expand_shards
from papers.clip.zero_shot import TEMPLATES, read_lines


def class_folders(root: str, class_names: Sequence[str], image_size: int, as_released: bool = False) -> LabelledImages:
    """The images of an ImageFolder whose sorted folders are the classes named by class_names, in that order."""
    if not Path(root).is_dir():
        raise EncoreError(f"{root}: no such folder; it must hold one folder of images a class (ImageFolder)")
    try:
        found = ImageFolder(root)
    except FileNotFoundError as error:
        raise EncoreError(f"{root}: {error}; it must hold one folder of images a class (ImageFolder)") from error
    if len(found.classes) != len(class_names):
        raise EncoreError(
            f"{root} has {len(found.classes)} class folders, the list of class names {len(class_names)}; "
            "give one name a line, in the order of the sorted folders"
        )
    transform = image_transform(image_size, train=False, as_released=as_released)
    read = opened if as_released else load_image
    return LabelledImages([path for path, _ in found.samples], found.targets, transform, read)


class WebData(L.LightningDataModule):
    """The full-scale format: captioned images in tar shards for training, an ImageFolder (ImageNet) for zero-shot.

    shards: brace pattern of local tar files. tokenizer: the released merges, or a folder with vocab.json and
    merges.txt. batch_size is per process. zero_shot_root, class_names (a file, one name a line)
    and templates (a file, one pattern with {} a line; default: a small set of our own) are for validation, and may be
    left out. as_released: images as the authors' code prepares them: not turned by EXIF, resized as they are stored
    (palettes by the nearest pixel) and made RGB last, so that transparent pixels show what is under them. It differs
    for such images only.
    """

    def __init__(
        self,
        *,
        tokenizer: str,
        image_size: int = 224,
        context_length: int = 77,
        batch_size: int = 256,
        shards: str | None = None,
        zero_shot_root: str | None = None,
        class_names: str | None = None,
        templates: str | None = None,
        shuffle_buffer: int = 1000,
        num_workers: int = 8,
        eval_batch_size: int = 256,
        seed: int = 0,
        as_released: bool = False,
    ) -> None:
        super().__init__()
        self.as_released = as_released
        self.tokenizer: ClipTokenizer = clip_tokenizer(Path(tokenizer), context_length)
        self.image_size, self.batch_size, self.eval_batch_size = image_size, batch_size, eval_batch_size
        self.shard_pattern, self.shuffle_buffer, self.num_workers, self.seed = shards, shuffle_buffer, num_workers, seed
        self.zero_shot_root = zero_shot_root
        self.train_shards: CaptionShards | None = None
        self.positions: dict[int, dict[int, int]] = {}
        self.batches = 0
        self.class_names: list[str] = []
        self.templates = read_lines(templates) if templates else list(TEMPLATES)
        if zero_shot_root is not None:
            if class_names is None:
                raise EncoreError("data.init_args.zero_shot_root needs class_names, a file with one class name a line")
            self.class_names = read_lines(class_names)

    def train_dataloader(self) -> DataLoader:
        if self.shard_pattern is None:
            raise EncoreError(
                "data.init_args.shards is not set: give the training shards, e.g. 'data/{00000..00331}.tar'"
            )
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        self.train_shards = CaptionShards(
            expand_shards(self.shard_pattern),
            image_transform(self.image_size, train=True, as_released=self.as_released),
            self.tokenizer,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world=world,
            shuffle_buffer=self.shuffle_buffer,
            positions=self.positions.get(rank),
            first_batch=self.batches,
            read=opened if self.as_released else load_image,
        )
        return DataLoader(
            self.train_shards,
            batch_size=None,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def val_dataloader(self) -> DataLoader | list[Any]:
        if self.zero_shot_root is None:
            return []
        images = class_folders(self.zero_shot_root, self.class_names, self.image_size, self.as_released)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        share = Subset(images, range(rank, len(images), world))
        return DataLoader(share, batch_size=self.eval_batch_size, num_workers=self.num_workers)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Remember how far each worker of this rank has come; state_dict saves it with the checkpoint."""
        if "position" in batch:
            worker, drawn = batch["position"].tolist()
            rank = self.trainer.global_rank if self.trainer else 0
            self.positions.setdefault(rank, {})[worker] = drawn
            self.batches += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        positions = self.positions
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, self.positions)
            positions = {rank: workers for part in parts for rank, workers in part.items()}
        return {"positions": positions, "batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.positions, self.batches = state_dict["positions"], state_dict["batches"]

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self.train_shards is not None:
            skipped = {reason: n for reason, n in self.train_shards.report().items() if n}
            rank_zero_info(f"training shards: skipped {skipped or 'nothing'} (counts of rank 0)")


# The small sets: everything in memory, made in one go.


def normalise(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float, as image_transform does."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (images.float() / 255 - mean) / std


class WordVocabulary:
    """The lower-cased words of the training captions, most frequent first: what the bag-of-words baseline predicts."""

    def __init__(self, captions: Sequence[str], min_count: int = 1) -> None:
        counts = Counter(word for caption in captions for word in self.split(caption))
        self.words = [w for w, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n >= min_count]
        self.index = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    @staticmethod
    def split(text: str) -> list[str]:
        return [word for word in text.lower().split() if any(c.isalnum() for c in word)]

    def bag(self, texts: Sequence[str]) -> Tensor:
        """Multi-hot (N, W), bool; unknown words are left out."""
        out = torch.zeros(len(texts), len(self), dtype=torch.bool)
        for row, text in zip(out, texts):
            row[[self.index[word] for word in self.split(text) if word in self.index]] = True
        return out


class Pairs(Dataset):
    """Captioned images in memory. images uint8 (M, 3, H, W); pair i is images[image_of[i]] with tokens[i] and words[i].

    crop > 0: a random square that leaves out that many pixels a side in all (the paper's only augmentation)."""

    def __init__(self, images: Tensor, image_of: Tensor, tokens: Tensor, words: Tensor, crop: int = 0) -> None:
        self.images, self.image_of, self.tokens, self.words, self.crop = images, image_of, tokens, words, crop

    def __len__(self) -> int:
        return len(self.image_of)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(indices)
        images = self.images[self.image_of[rows]]
        if self.crop:
            size = images.shape[-1] - self.crop
            tops, lefts = torch.randint(self.crop + 1, (2, len(rows))).tolist()
            images = torch.stack(
                [image[:, t : t + size, left : left + size] for image, t, left in zip(images, tops, lefts)]
            )
        return {"image": normalise(images), "tokens": self.tokens[rows], "words": self.words[rows].float()}


def channels_first(images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) -> (N, 3, H, W)"""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


class SmallData(Loaders):
    """What the two small sets share. Subclasses fill in train (Pairs) and the test attributes in setup."""

    context_length: int
    train: Any  # Pairs
    tokenizer: ClipTokenizer
    vocabulary: WordVocabulary
    class_names: list[str]
    templates: list[str]
    test_images: Tensor  # uint8 (N, 3, R, R)
    test_labels: Tensor  # (N,)

    @staticmethod
    def collate(batch: Any) -> Any:
        """Training pairs come as a batch already; test images one by one."""
        return batch if isinstance(batch, dict) else default_collate(batch)

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__(batch_size=batch_size, seed=seed, eval_batch_size=500)

    def val_dataloader(self) -> DataLoader:
        rows = [{"image": normalise(i), "label": y} for i, y in zip(self.test_images, self.test_labels)]
        return self.evaluation(rows)


class ShapesData(SmallData):
    """Rendered shapes (common/worlds/shapes.py): trained on 80 % of the combinations, tested on single objects of the
    rest.

    size: training pairs. The test set asks which of the unseen combinations an image shows. The seed gives the training
    pairs and their order; the split into seen and unseen combinations and the test images are always the same.
    """

    context_length = 20

    def __init__(self, *, size: int = 12_000, test_size: int = 1140, batch_size: int = 128, seed: int = 0) -> None:
        self.size, self.test_size = size, test_size
        super().__init__(batch_size, seed)

    def setup(self, stage: str) -> None:
        if self.train is not None:
            return
        self.seen, self.unseen = shapes.split_combinations()
        scenes = shapes.sample_scenes(self.size, self.seen, seed=self.seed + 1000)
        captions = shapes.captions(scenes, seed=self.seed + 1000)
        self.tokenizer = ClipTokenizer.train(captions, 1024, self.context_length)
        self.vocabulary = WordVocabulary(captions)
        images = channels_first(shapes.render(scenes, seed=self.seed + 1000))
        self.train = Pairs(images, torch.arange(self.size), self.tokenizer(captions), self.vocabulary.bag(captions))
        self.templates = list(shapes.TEMPLATES)
        self.class_names = [shapes.describe(c) for c in self.unseen]
        self.test_images, self.test_labels = self.single_objects(self.unseen, self.test_size, seed=1)

    def single_objects(self, combinations: shapes.Indices, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Test images with one object, combinations in turn: uint8 (count, 3, 32, 32), labels (count,)."""
        scenes = shapes.sample_scenes(count, combinations, seed=seed, two_objects=0)
        return channels_first(shapes.render(scenes, seed=seed)), torch.arange(count) % len(combinations)

    def captioned(self, count: int, seed: int) -> tuple[Tensor, list[str]]:
        """Test scenes of unseen combinations with captions in which nothing is left out: images and captions."""
        scenes = shapes.sample_scenes(count, self.unseen, seed=seed)
        return channels_first(shapes.render(scenes, seed=seed)), shapes.captions(scenes, seed=seed, leave_out=0)


class EmojiData(SmallData):
    """Emoji of animals, plants, food and drink: drawings of three vendors for training, of two others for the test.

    Captions are one of five patterns filled with the name, half of the time followed by two keywords. A tenth of the
    concepts is kept out of training; `unseen_images` and `unseen_labels` test them.
    """

    context_length = 16
    train_vendors = ("twemoji", "noto", "openmoji")
    test_vendors = ("emojitwo", "fxemoji")
    groups = ("Animals & Nature", "Food & Drink")
    caption_templates = (
        "{}",
        "a picture of {}",
        "emoji : {}",
        "the symbol {} in a message",
        "a small drawing of {}",
    )

    def __init__(self, *, captions_each: int = 4, batch_size: int = 128, seed: int = 0) -> None:
        self.captions_each = captions_each
        super().__init__(batch_size, seed)

    def setup(self, stage: str) -> None:
        if self.train is not None:
            return
        path = sources.locate("emoji")["all.parquet"]
        table = read_table(path)
        names = [name.lower() for name in table["name"]]
        chosen_groups = [i for i, group in enumerate(table["group"]) if group in self.groups]
        test = [i for i in chosen_groups if table["vendor"][i] in self.test_vendors]
        concepts = sorted({names[i] for i in test})
        order = np.random.default_rng(0).permutation(len(concepts))
        self.unseen_names = {concepts[i] for i in order[: len(concepts) // 10]}
        rows = [
            i for i in chosen_groups if table["vendor"][i] in self.train_vendors and names[i] not in self.unseen_names
        ]
        crop = 4
        images = channels_first(decode_images([table["image"][i] for i in rows], size=32 + crop))
        self.train_names = [names[i] for i in rows]
        rng = np.random.default_rng([self.seed, 4])
        captions, image_of = [], []
        for place, i in enumerate(rows):
            keywords = [k.replace("_", " ") for k in table["keywords"][i] or []]
            for _ in range(self.captions_each):
                text = names[i]
                if keywords and rng.random() < 0.5:
                    chosen = rng.choice(len(keywords), size=min(2, len(keywords)), replace=False)
                    text += " " + " ".join(keywords[k] for k in chosen)
                captions.append(self.caption_templates[rng.integers(len(self.caption_templates))].format(text))
                image_of.append(place)
        self.tokenizer = ClipTokenizer.train(captions, 3072, self.context_length)
        self.vocabulary = WordVocabulary(captions)
        self.train = Pairs(
            images, torch.tensor(image_of), self.tokenizer(captions), self.vocabulary.bag(captions), crop
        )
        self.templates = list(self.caption_templates)
        self.class_names = concepts
        label_of = {name: i for i, name in enumerate(concepts)}
        everything = channels_first(decode_images([table["image"][i] for i in test], size=32 + crop))
        everything = everything[..., crop // 2 : -crop // 2, crop // 2 : -crop // 2].contiguous()
        labels = torch.tensor([label_of[names[i]] for i in test])
        unseen = torch.tensor([names[i] in self.unseen_names for i in test])
        self.test_images, self.test_labels = everything[~unseen], labels[~unseen]
        self.unseen_images, self.unseen_labels = everything[unseen], labels[unseen]

    def known(self) -> tuple[Tensor, Tensor, list[str]]:
        """The drawings trained on: images (M, 3, 32, 32), labels and the names of their concepts."""
        crop = self.train.crop
        names = sorted(set(self.train_names))
        label_of = {name: i for i, name in enumerate(names)}
        images = self.train.images[..., crop // 2 : -crop // 2, crop // 2 : -crop // 2]
        return images, torch.tensor([label_of[name] for name in self.train_names]), names

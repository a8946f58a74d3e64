"""Data modules: the four published streams in their on-disk formats, small streams, and images for pre-training.

A stream's batch is {"image": (B, C, H, W), "label": (B,), "task": (), "ends_task": ()}; its test batches have image and
label. Labels stay the set's own: the classifier's columns need no order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from torchvision.transforms import v2

from common.formats.images import LabelledImages
from common.training.loaders import Loaders
from common.worlds.small_images import small_images
from papers.nmc_continual import formats, streams
from papers.nmc_continual.streams import Stream, StreamBatches

Transform = Callable[[Image.Image], Tensor]
Batch = dict[str, Tensor]


def preprocessing(kind: str, *, normalise: bool, image_size: int = 224) -> Transform:
    """PIL image -> (3, S, S), as in the released scripts.

    kind "tensor" (Split-CIFAR-100): [0, 1] first, then resized; "image" (5-datasets): resized, then [0, 1]; "crop"
    (CORe50, ImageNet-R): short side to 256 / 224 of S, centre crop. Always bilinear. The released scripts stop there;
    normalise adds the (x - 0.5) / 0.5 that the encoder was trained with.
    """
    to_float: list[Any] = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    resize = v2.Resize((image_size, image_size), antialias=True)
    steps = {
        "tensor": [*to_float, resize],
        "image": [resize, *to_float],
        "crop": [v2.Resize(image_size * 256 // 224, antialias=True), v2.CenterCrop(image_size), *to_float],
    }[kind]
    return v2.Compose([*steps, v2.Normalize([0.5] * 3, [0.5] * 3)] if normalise else steps)


class TensorImages(Dataset[dict[str, Any]]):
    """{image, label} of ready tensors, images (N, ...) float32."""

    def __init__(self, images: Tensor, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}


class _StreamSet(Dataset[Batch]):
    """Turns [position, index, ...] of StreamBatches into a batch."""

    def __init__(self, dataset: Dataset, batches: StreamBatches) -> None:
        self.dataset, self.batches = dataset, batches

    def __getitems__(self, wanted: list[int]) -> Batch:
        position, *indices = wanted
        marks = {
            "task": torch.tensor(self.batches.task_at(position)),
            "ends_task": torch.tensor(self.batches.ends_task(position)),
        }
        return default_collate([self.dataset[i] for i in indices]) | marks


Labelled = LabelledImages | TensorImages


def _same(batch: Any) -> Any:
    return batch


class StreamData(L.LightningDataModule):
    """A stream of training images and the tests due after each task. Subclasses say what it is made of.

    epochs: passes over a task before the next one comes. joint: all tasks as one. Use it with trainer.max_epochs = 1.
    """

    def __init__(
        self,
        *,
        batch_size: int = 32,
        epochs: int = 1,
        joint: bool = False,
        eval_batch_size: int = 512,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.epochs, self.is_joint = batch_size, epochs, joint
        self.eval_batch_size, self.num_workers, self.seed = eval_batch_size, num_workers, seed
        self.train_set: Labelled
        self.test_set: Labelled
        self.stream: Stream

    def load(self) -> tuple[Labelled, Labelled, Stream]:
        """Training images, test images, and the stream over their indices."""
        raise NotImplementedError

    def setup(self, stage: str = "fit") -> None:
        if not hasattr(self, "stream"):
            self.train_set, self.test_set, stream = self.load()
            self.stream = stream.joint() if self.is_joint else stream

    def batches(self, start: int = 0) -> StreamBatches:
        """The training batches from position `start` on."""
        return StreamBatches(self.stream, self.batch_size, epochs=self.epochs, seed=self.seed, start=start)

    def train_dataloader(self) -> DataLoader:
        batches = self.batches(self.trainer.fit_loop.epoch_loop.batch_progress.total.ready if self.trainer else 0)
        images = _StreamSet(self.train_set, batches)
        return DataLoader(
            images,
            batch_sampler=batches,
            collate_fn=_same,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def plain(self, images: Labelled, indices: Sequence[int]) -> DataLoader:
        """Batches of these images in this order."""
        return DataLoader(
            Subset(images, indices),
            batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def test_loader(self, indices: Sequence[int]) -> DataLoader:
        """The test images of these indices, in this order."""
        return self.plain(self.test_set, indices)

    def sample_loader(self, task: int, count: int) -> DataLoader:
        """Up to `count` of the task's training images, the same ones each time."""
        order = np.random.default_rng([self.seed, task, 2**32]).permutation(self.stream.tasks[task])
        return self.plain(self.train_set, order[:count].tolist())


class SplitCIFAR100(StreamData):
    """10 tasks of 10 classes in the published order. root: see formats.read_cifar."""

    def __init__(self, *, root: str, normalise: bool = False, image_size: int = 224, **stream: Any) -> None:
        super().__init__(**stream)
        self.root, self.transform = root, preprocessing("tensor", normalise=normalise, image_size=image_size)

    def load(self) -> tuple[Labelled, Labelled, Stream]:
        read = (formats.read_cifar(self.root, "cifar100", split) for split in ("train", "test"))
        train, test = (LabelledImages(images, labels, self.transform) for images, labels in read)
        step = streams.CLASSES_A_TASK["cifar100"]
        return train, test, streams.class_incremental(train.labels, test.labels, streams.CIFAR100_ORDER, step)


class CORe50(StreamData):
    """Domain-incremental: 50 objects in 8 training sessions; after each one all of the 3 test sessions are tested."""

    def __init__(self, *, root: str, normalise: bool = False, image_size: int = 224, **stream: Any) -> None:
        super().__init__(**stream)
        self.root, self.transform = root, preprocessing("crop", normalise=normalise, image_size=image_size)

    def load(self) -> tuple[Labelled, Labelled, Stream]:
        files, labels, sessions = formats.read_core50(self.root, streams.CORE50_TRAIN)
        train = LabelledImages(files, labels, self.transform)
        files, labels, _ = formats.read_core50(self.root, streams.CORE50_TEST)
        test = LabelledImages(files, labels, self.transform)
        stream = streams.domain_incremental(sessions, streams.CORE50_TRAIN, streams.CORE50_CLASSES, len(test))
        return train, test, stream


class SplitImageNetR(StreamData):
    """10 tasks of 20 classes (sorted folders); within each task 80 % of the images train, drawn with seed 42."""

    def __init__(self, *, root: str, normalise: bool = False, image_size: int = 224, **stream: Any) -> None:
        super().__init__(**stream)
        self.root, self.transform = root, preprocessing("crop", normalise=normalise, image_size=image_size)

    def load(self) -> tuple[Labelled, Labelled, Stream]:
        files, labels, names = formats.read_imagenet_r(self.root)
        step = max(1, len(names) // streams.TASKS)
        kept, held_out = split_tasks(labels, step)
        train, test = (
            LabelledImages([files[i] for i in part], labels[part], self.transform) for part in (kept, held_out)
        )
        return train, test, streams.class_incremental(train.labels, test.labels, range(step * streams.TASKS), step)


def split_tasks(labels: np.ndarray, classes_a_task: int, share: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Training and test indices: tasks of consecutive labels in turn, each cut at random with one seeded generator."""
    generator = torch.Generator().manual_seed(streams.IMAGENET_R_SEED)
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for first in range(0, int(labels.max()) + 1, classes_a_task):
        task = np.flatnonzero((labels >= first) & (labels < first + classes_a_task))
        shuffled = task[torch.randperm(len(task), generator=generator).numpy()]
        cut = int(share * len(task))
        parts[0].append(shuffled[:cut])
        parts[1].append(shuffled[cut:])
    return np.concatenate(parts[0]), np.concatenate(parts[1])


class FiveDatasets(StreamData):
    """CIFAR-10, notMNIST, MNIST, SVHN, Fashion-MNIST, in the released order: five tasks, one head of 50 classes.

    root holds cifar-10-batches-bin or -py, notMNIST, MNIST, SVHN's two .mat files, and FashionMNIST.
    """

    def __init__(self, *, root: str, normalise: bool = False, image_size: int = 224, **stream: Any) -> None:
        super().__init__(**stream)
        self.root, self.transform = root, preprocessing("image", normalise=normalise, image_size=image_size)

    def load(self) -> tuple[Labelled, Labelled, Stream]:
        train, test = (self._split(split) for split in ("train", "test"))
        return train, test, streams.class_incremental(train.labels, test.labels, range(50), 10)

    def _split(self, split: str) -> LabelledImages:
        root = self.root
        parts = [
            formats.read_cifar(root, "cifar10", split),
            formats.read_notmnist(root, split),
            formats.read_mnist(f"{root}/MNIST", split),
            formats.read_svhn(root, split),
            formats.read_mnist(f"{root}/FashionMNIST", split),
        ]
        images: list[np.ndarray] = [image for pixels, _ in parts for image in pixels]
        labels = np.concatenate([labels + 10 * i for i, (_, labels) in enumerate(parts)])
        return LabelledImages(images, labels, self.transform)


# Small sets, all in memory: grey images (N, 1, H, W) with ink near 1 and paper at -1.


def ink(images: np.ndarray, *, dark_on_light: bool = False) -> Tensor:
    """uint8 (N, H, W) -> (N, 1, H, W) float32 in [-1, 1], ink positive."""
    values = torch.from_numpy(images).float()[:, None] / 127.5 - 1
    return -values if dark_on_light else values


class DigitStream(StreamData):
    """5 tasks of 2 digits whose order the seed decides: "mnist" (28x28), or scikit-learn's "digits" (8x8).

    per_class: training and test images a digit at most.
    """

    def __init__(self, *, source: str = "mnist", per_class: tuple[int, int] = (1000, 2000), **stream: Any) -> None:
        super().__init__(**stream)
        self.source, self.per_class = source, per_class

    def load(self) -> tuple[Labelled, Labelled, Stream]:
        splits = zip(("train", "test"), self.per_class)
        parts = [small_images(self.source, split, per_class=count) for split, count in splits]
        train, test = (TensorImages(ink(part.images), part.labels) for part in parts)
        order = np.random.default_rng(self.seed).permutation(10).tolist()
        return train, test, streams.class_incremental(train.labels, test.labels, order, 2)


class CharacterStream(StreamData):
    """Omniglot's evaluation characters, of alphabets that pre-training did not see: num_tasks tasks of
    classes_a_task characters, drawn by the seed; drawers 1-10 train, 11-20 test.
    """

    def __init__(self, *, num_tasks: int = 10, classes_a_task: int = 10, **stream: Any) -> None:
        super().__init__(**stream)
        self.num_tasks, self.classes_a_task = num_tasks, classes_a_task

    def load(self) -> tuple[Labelled, Labelled, Stream]:
        found = small_images("omniglot", "evaluation")
        images, characters, drawers = ink(found.images, dark_on_light=True), found.labels, found.columns["drawer"]
        drawn = np.random.default_rng(self.seed).permutation(1 + int(characters.max()))
        chosen = drawn[: self.num_tasks * self.classes_a_task]
        columns = np.full(len(drawn), -1)
        columns[chosen] = np.arange(len(chosen))
        train, test = (
            TensorImages(images[rows], columns[characters[rows]])
            for rows in (np.isin(characters, chosen) & (drawers <= 10), np.isin(characters, chosen) & (drawers > 10))
        )
        return (
            train,
            test,
            streams.class_incremental(train.labels, test.labels, range(len(chosen)), self.classes_a_task),
        )


class CharacterPretraining(Loaders):
    """Labelled images for pre-training: Omniglot's 964 background characters, 20 drawings each."""

    num_classes = 964

    def __init__(self, *, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__(batch_size=batch_size, seed=seed)

    def setup(self, stage: str = "fit") -> None:
        if self.train is None:
            found = small_images("omniglot", "background")
            self.train = TensorImages(ink(found.images, dark_on_light=True), found.labels)

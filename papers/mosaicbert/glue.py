"""GLUE without WNLI: the eight tasks with the released fine-tuning recipe, and their data in the `datasets` layout.

A batch is (tokens, valid, segments, labels): `[CLS]` a `[SEP]`, or `[CLS]` a `[SEP]` b `[SEP]` with b in segment 1.
python -m papers.mosaicbert.glue runs/mosaicbert/glue prints the averages of finished runs.
"""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from common.errors import EncoreError
from common.formats.wordpiece import WordPiece
from common.training.loaders import train_loader

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """Columns and measures of a task, and how it is fine-tuned; the configs repeat these values.

    num_classes 1 is regression. from_mnli: it starts from the model fine-tuned on MNLI.
    """

    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    lr: float
    weight_decay: float
    epochs: int
    batch_size: int
    train_size: int
    num_classes: int = 2
    seeds: tuple[int, ...] = (19,)
    from_mnli: bool = False
    validation: tuple[str, ...] = ("validation",)

    @property
    def steps(self) -> int:
        """Optimizer steps of all epochs, the last batch of each incomplete, as in the released code."""
        return self.epochs * -(-self.train_size // self.batch_size)


SEEDS = (19, 8364, 717, 10536, 90166)
PAIR = ("sentence1", "sentence2")
TASKS = {
    "mnli": Task(
        ("premise", "hypothesis"), ("accuracy",), 5e-5, 5e-6, 3, 48, 392_702, num_classes=3,
        validation=("validation_matched", "validation_mismatched"),
    ),
    "qqp": Task(("question1", "question2"), ("accuracy", "f1"), 3e-5, 3e-6, 5, 16, 363_846),
    "qnli": Task(("question", "sentence"), ("accuracy",), 1e-5, 1e-6, 10, 16, 104_743),
    "sst2": Task(("sentence",), ("accuracy",), 3e-5, 3e-6, 3, 16, 67_349, seeds=SEEDS[:3]),
    "cola": Task(("sentence",), ("matthews",), 5e-5, 5e-6, 10, 32, 8_551, seeds=SEEDS[:4]),
    "rte": Task(PAIR, ("accuracy",), 1e-5, 1e-5, 3, 16, 2_490, seeds=SEEDS, from_mnli=True),
    "mrpc": Task(PAIR, ("accuracy", "f1"), 8e-5, 8e-6, 10, 32, 3_668, seeds=SEEDS, from_mnli=True),
    "stsb": Task(PAIR, ("spearman",), 3e-5, 3e-6, 10, 32, 5_749, num_classes=1, seeds=SEEDS, from_mnli=True),
}  # fmt: skip


def task(name: str) -> Task:
    """The task of that name; EncoreError naming the others."""
    if name not in TASKS:
        raise EncoreError(f"no GLUE task {name!r}; choose {', '.join(TASKS)}")
    return TASKS[name]


def local_splits(path: Path) -> dict[str, Any]:
    """{split: datasets.Dataset} of a folder written by save_to_disk, or with Parquet files named after their splits."""
    import datasets

    if (path / "dataset_dict.json").exists():
        return dict(datasets.load_from_disk(str(path)))
    names = ("train", "validation_matched", "validation_mismatched", "validation")
    found: dict[str, list[str]] = {}
    for file in sorted(path.glob("*.parquet")):
        name = next((name for name in names if file.name.startswith(name)), None)
        if name is not None:
            found.setdefault(name, []).append(str(file))
    if not found:
        raise EncoreError(
            f"{path}: no data set; expected one saved by datasets' save_to_disk, or Parquet files train*, validation*"
        )
    try:
        return dict(datasets.load_dataset("parquet", data_files=found))
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        raise EncoreError(f"{path}: cannot read its Parquet files ({error}); write them again") from error


class Labelled(Dataset):
    """(ids, segments, label) of one or two texts a row, at most max_length tokens in all."""

    def __init__(self, texts: Sequence[Sequence[str]], labels: Sequence[float], tokenizer: WordPiece, max_length: int):
        self.ids, self.labels = [tokenizer.encode_batch(column) for column in texts], labels
        self.tokenizer, self.max_length = tokenizer, max_length

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, float]:
        parts = [column[index] for column in self.ids]
        ids, segments = [self.tokenizer.cls], [0]
        for number, part in enumerate(cut(parts, self.max_length - 1 - len(parts))):
            ids += [*part, self.tokenizer.sep]
            segments += [number] * (len(part) + 1)
        return torch.tensor(ids), torch.tensor(segments), self.labels[index]


def cut(parts: Sequence[list[int]], room: int) -> list[list[int]]:
    """Cuts one or two texts to `room` pieces in all, the longer one first, the shorter one to no less than half of it.

    As BERT's fast tokenizer does: of two long texts the longer, and of two equal ones the second, gets an odd piece.
    """
    kept = list(parts)
    if sum(map(len, kept)) > room:
        *shorter, longest = sorted(range(len(kept)), key=lambda i: len(kept[i]))
        for i in shorter:
            kept[i] = kept[i][: room // 2]
        kept[longest] = kept[longest][: room - sum(len(kept[i]) for i in shorter)]
    return kept


def collate(items: Sequence[tuple[Tensor, Tensor, float]], regression: bool) -> Batch:
    """Padded to the longest; labels (B,) int64, float32 for regression."""
    tokens = pad_sequence([ids for ids, _, _ in items], batch_first=True)
    segments = pad_sequence([kind for _, kind, _ in items], batch_first=True)
    labels = torch.tensor([item[2] for item in items], dtype=torch.float32 if regression else torch.int64)
    return tokens, tokens != 0, segments, labels


class GLUE(L.LightningDataModule):
    """One task from a local folder (see local_splits); MNLI validates on its matched and its mismatched part."""

    def __init__(
        self,
        path: str,
        task: str,
        tokenizer: str,
        batch_size: int,
        max_length: int = 256,
        num_workers: int = 0,
        seed: int = 19,
    ) -> None:
        super().__init__()
        self.path, self.task_name, self.tokenizer_path, self.batch_size = Path(path), task, tokenizer, batch_size
        self.max_length, self.num_workers, self.seed = max_length, num_workers, seed
        self.train: Labelled | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.train is not None:
            return
        self.task, tokenizer, splits = (
            task(self.task_name),
            WordPiece.load(self.tokenizer_path),
            local_splits(self.path),
        )
        absent = {"train", *self.task.validation} - splits.keys()
        if absent:
            raise EncoreError(
                f"{self.path}: {self.task_name} needs {', '.join(sorted(absent))}; it has {', '.join(splits)}"
            )
        made = {}
        for split in ("train", *self.task.validation):
            absent = {*self.task.columns, "label"} - set(splits[split].column_names)
            if absent:
                has = ", ".join(splits[split].column_names)
                raise EncoreError(f"{self.path}: {split} has no column {', '.join(sorted(absent))}; it has {has}")
            texts = [list(splits[split][column]) for column in self.task.columns]
            made[split] = Labelled(texts, list(splits[split]["label"]), tokenizer, self.max_length)
        self.train, self.valid = made["train"], [made[split] for split in self.task.validation]

    def train_dataloader(self) -> DataLoader:
        assert self.train is not None
        return train_loader(
            self.train,
            self.batch_size,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=partial(collate, regression=self.task.num_classes == 1),
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> list[DataLoader]:
        join = partial(collate, regression=self.task.num_classes == 1)
        return [DataLoader(part, self.batch_size, collate_fn=join, num_workers=self.num_workers) for part in self.valid]


def averages(folder: Path) -> dict[str, float]:
    """Mean final `val/score` in percent over the seeds of every task, and `average` over the tasks there are.

    folder: holds the runs <task>_<seed>/metrics.csv. A score is already the mean of a task's measures: accuracy and F1
    for QQP and MRPC, matched and mismatched accuracy for MNLI.
    """
    scores: dict[str, list[float]] = {}
    for file in sorted(folder.glob("*_*/metrics.csv")):
        with file.open(newline="") as stream:
            values = [row["val/score"] for row in csv.DictReader(stream) if row.get("val/score")]
        if not values:
            raise EncoreError(f"{file}: has no val/score yet; let the run finish")
        scores.setdefault(file.parent.name.split("_")[0], []).append(100 * float(values[-1]))
    if not scores:
        raise EncoreError(f"{folder}: no runs <task>_<seed> with a metrics.csv in it")
    means = {name: fmean(values) for name, values in scores.items()}
    return means | {"average": fmean(means.values())}


if __name__ == "__main__":
    for name, value in averages(Path(sys.argv[1])).items():
        print(f"{name:8s} {value:6.2f}")

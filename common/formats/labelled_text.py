"""Examples of text tasks on disk, in the layout of the `datasets` library, and the tasks of GLUE."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.errors import EncoreError
from common.formats.wordpiece import WordPiece
from common.training.loaders import Loaders

# A file belongs to the first split that its name begins with.
SPLITS = ("train", "validation_matched", "validation_mismatched", "validation", "test")
_TEXT_CELLS = {"keep_default_na": False}  # pandas would read the words NA, null and None as empty cells
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".parquet": ("parquet", {}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", _TEXT_CELLS),
    ".tsv": ("csv", _TEXT_CELLS | {"sep": "\t", "quoting": csv.QUOTE_NONE}),  # as GLUE's: a quote is a character
}


def local_dataset(path: str | Path, needs: Iterable[str] = ()) -> dict[str, Any]:
    """{split: datasets.Dataset} of a folder: one written by save_to_disk, or one with files of one kind of READERS
    named after their splits (train-00000-of-00002.parquet, validation.tsv). Nothing is downloaded.

    EncoreError when it is neither, when a file cannot be read, or when a split of `needs` is absent.
    """
    import datasets

    path = Path(path)
    if (path / "dataset_dict.json").exists():
        splits = dict(datasets.load_from_disk(str(path)))
    else:
        suffix, files = _split_files(path)
        builder, options = READERS[suffix]
        try:
            splits = dict(datasets.load_dataset(builder, data_files=files, **options))
        except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
            raise EncoreError(f"{path}: cannot read its {suffix} files ({error}); write them again") from error
    absent = sorted(set(needs) - splits.keys())
    if absent:
        raise EncoreError(f"{path}: needs the splits {', '.join(needs)}; it has {', '.join(splits)}")
    return splits


def _split_files(path: Path) -> tuple[str, dict[str, list[str]]]:
    for suffix in READERS:
        found: dict[str, list[str]] = {}
        for file in sorted(path.glob(f"*{suffix}")):
            split = next((split for split in SPLITS if file.name.startswith(split)), None)
            if split is not None:
                found.setdefault(split, []).append(str(file))
        if found:
            return suffix, found
    raise EncoreError(
        f"{path}: no data set; expected one saved by datasets' save_to_disk, or files train*, validation* in Parquet, "
        "JSON lines, CSV or TSV"
    )


def column(rows: Any, name: str, where: str | Path, kind: type | tuple[type, ...] = str) -> list[Any]:
    """One column of a split as a list of `kind`. EncoreError names the first row (from 0) that has none, or another."""
    if name not in rows.column_names:
        raise EncoreError(f"{where}: no column {name!r}; it has {', '.join(rows.column_names)}")
    values = list(rows[name])
    for i, value in enumerate(values):
        if not isinstance(value, kind):
            what = "nothing" if value is None else repr(value)[:40]
            raise EncoreError(f"{where}: row {i} has {what} in column {name!r}; fill it or leave the row out")
    return values


class Examples(NamedTuple):
    """texts: a list for each of the one or two texts of an example; labels: classes 0 .. C - 1, or numbers."""

    texts: list[list[str]]
    labels: list[float]


def examples(rows: Any, columns: Sequence[str], num_classes: int, where: str | Path, label: str = "label") -> Examples:
    """The labelled texts of a split. num_classes 1 is regression; otherwise a label that is no class is an error (the
    hidden ones of a test split are -1)."""
    texts = [column(rows, name, where) for name in columns]
    labels = column(rows, label, where, (int, float))
    if num_classes > 1:
        for i, value in enumerate(labels):
            if value not in range(num_classes):
                raise EncoreError(
                    f"{where}: row {i} has the label {value}, but classes are 0 to {num_classes - 1}; "
                    "mend it or leave the row out"
                )
    return Examples(texts, labels)


class Labelled(Dataset):
    """(row, label) pairs; a row is what `join` makes of the token ids of an example's one or two texts.

    ids: for each of the texts the token ids of all examples.
    """

    def __init__(
        self, ids: Sequence[Sequence[list[int]]], labels: Sequence[float], join: Callable[[list[list[int]]], Any]
    ) -> None:
        self.ids, self.labels, self.join = ids, labels, join

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, float]:
        return self.join([ids[index] for ids in self.ids]), self.labels[index]


def collate_labels(items: Sequence[tuple[Any, float]], regression: bool = False) -> Tensor:
    """(B,) labels of (row, label) pairs: int64 or, for regression, float32."""
    return torch.tensor([label for _, label in items], dtype=torch.float32 if regression else torch.int64)


def cut_longest(parts: Sequence[list[int]], room: int) -> list[list[int]]:
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


class BertRow:
    """The ids of one or two texts -> (tokens, segments), (N,) each, N at most max_length: `[CLS]` a `[SEP]`, or `[CLS]`
    a `[SEP]` b `[SEP]` with b in segment 1."""

    def __init__(self, tokenizer: WordPiece, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, parts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        ids, segments = [self.tokenizer.cls], [0]
        for number, part in enumerate(cut_longest(parts, self.max_length - 1 - len(parts))):
            ids += [*part, self.tokenizer.sep]
            segments += [number] * (len(part) + 1)
        return torch.tensor(ids), torch.tensor(segments)


@dataclass(frozen=True)
class Task:
    """Columns of a GLUE task; num_classes 1 is regression. validation: the names of its development sets."""

    columns: tuple[str, ...]
    num_classes: int = 2
    validation: tuple[str, ...] = ("validation",)


_PAIR = ("sentence1", "sentence2")
GLUE = {
    "mnli": Task(("premise", "hypothesis"), 3, ("validation_matched", "validation_mismatched")),
    "qqp": Task(("question1", "question2")),
    "qnli": Task(("question", "sentence")),
    "sst2": Task(("sentence",)),
    "cola": Task(("sentence",)),
    "rte": Task(_PAIR),
    "mrpc": Task(_PAIR),
    "stsb": Task(_PAIR, num_classes=1),
}


def glue_task(name: str) -> Task:
    """The task of that name; EncoreError naming the others."""
    if name not in GLUE:
        raise EncoreError(f"no GLUE task {name!r}; choose {', '.join(GLUE)}")
    return GLUE[name]


def glue_examples(path: str | Path, name: str) -> tuple[Examples, list[Examples]]:
    """Training examples of a task in a folder (see local_dataset), and those of each of its development sets."""
    task = glue_task(name)
    splits = local_dataset(path, ("train", *task.validation))
    train, *valid = (
        examples(splits[split], task.columns, task.num_classes, f"{path} ({split})")
        for split in ("train", *task.validation)
    )
    return train, valid


class GLUETask(Loaders):
    """One GLUE task from a local folder (see local_dataset): batches (what `collate` makes of the rows, ..., labels).

    A subclass of a paper says how its tokenizer makes rows: `rows(examples)` and `collate`. MNLI validates on its
    matched and on its mismatched part.
    """

    def __init__(
        self, path: str, task: str, *, batch_size: int = 32, max_length: int = 512, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.path, self.task_name, self.task, self.max_length = path, task, glue_task(task), max_length

    def rows(self, examples: Examples) -> Dataset:
        """The rows of a split, with their labels."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if self.train is None:
            train, valid = glue_examples(self.path, self.task_name)
            self.train, self.valid = self.rows(train), [self.rows(part) for part in valid]

    def val_dataloader(self) -> list[DataLoader]:
        return [self.evaluation(part) for part in self.valid]

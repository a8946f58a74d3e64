"""Text for BART: raw corpora cut into blocks and corrupted on the fly, GLUE, and summarisation pairs."""

import functools
import hashlib
import importlib.resources
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import sources
from common.errors import EncoreError
from common.formats.tables import read_text
from common.formats.tokenizers import ByteBPE, load_byte_bpe, train_byte_bpe
from common.training.loaders import train_loader
from papers.bart.model import BOS, EOS, PAD
from papers.bart.noise import Flags, Noise, Tokens, Vocabulary

Pair = tuple[Tokens, Tokens]
Document = list[str]  # the lines of one document

# ---------------------------------------------------------------------------------------------------------- raw text


def split_documents(text: str) -> Iterator[Document]:
    """Documents of a raw corpus: runs of non-blank lines between blank ones."""
    for document in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in document.splitlines() if line.strip()]
        if lines:
            yield lines


def wikitext_documents(text: str) -> Iterator[Document]:
    """Articles of WikiText, which begin with ` = Title = ` and have blank lines inside."""
    article: Document = []
    for line in text.splitlines():
        if re.match(r"^ = [^=].* = $", line) and article:
            yield article
            article = []
        if line.strip():
            article.append(line.strip())
    if article:
        yield article


def bundled_documents() -> list[Document]:
    """Prose that comes with scikit-learn, the descriptions of its data sets: one document a paragraph, one line a line.

    The lock file pins that package, so these are the same words on every machine.
    """
    folder = importlib.resources.files("sklearn.datasets") / "descr"
    texts = [file.read_text() for file in sorted(folder.iterdir(), key=str) if file.name.endswith(".rst")]
    paragraphs = [[line.strip() for line in part.splitlines()] for text in texts for part in text.split("\n\n")]
    return [paragraph for paragraph in paragraphs if len(" ".join(paragraph).split()) > 8]


def noise_vocabulary(tokenizer: ByteBPE) -> Vocabulary:
    """What the noise must know of a tokenizer. Full stops are "." and " ." alike; only "." exists in detached text."""
    if tokenizer.mask is None:
        raise EncoreError("the tokenizer has no <mask> token; BART's vocabulary has one as its last entry")
    full_stop = np.zeros(len(tokenizer), dtype=bool)
    for piece in (".", " ."):
        ids = tokenizer.encode(piece)
        if len(ids) == 1:
            full_stop[ids] = True
    return Vocabulary(tokenizer.starts_word().numpy(), full_stop, tokenizer.mask)


def blocks(ids: Tokens, full_stop: Flags, length: int) -> Iterator[Tokens]:
    """Blocks `<s> ...

    </s>` of up to `length` tokens out of one document: as many whole sentences as fit; a sentence that is longer than a
    block is cut. ids: (N,), full_stop: (N,) bool.
    """
    room = length - 2
    ends = np.append(np.flatnonzero(full_stop[ids]) + 1, len(ids))
    start = 0
    while start < len(ids):
        fitting = ends[(ends > start) & (ends <= start + room)]
        stop = int(fitting[-1]) if len(fitting) else min(start + room, len(ids))
        yield np.concatenate([[BOS], ids[start:stop], [EOS]])
        start = stop


class Blocks(Dataset):
    """Blocks of a corpus, one after the other in `tokens` (in memory or mapped); block i ends at `offsets`[i + 1]."""

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray) -> None:
        self.tokens, self.offsets = tokens, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tokens:
        return np.asarray(self.tokens[self.offsets[index] : self.offsets[index + 1]], dtype=np.int64)

    @classmethod
    def of(cls, documents: Iterable[Document], tokenizer: ByteBPE, length: int) -> "Blocks":
        """Encode and cut documents, in memory."""
        made = list(encode_blocks(documents, tokenizer, length))
        if not made:
            raise EncoreError("the corpus has no text; a document is a run of non-blank lines")
        return cls(np.concatenate(made), np.cumsum([0, *map(len, made)]))

    @classmethod
    def cached(cls, files: Sequence[Path], tokenizer: ByteBPE, length: int, cache: Path) -> "Blocks":
        """Encode files once into `cache` (one file at a time, nothing half-written) and map the result into memory."""
        key = hashlib.sha256(repr((len(tokenizer), tokenizer.tokenizer.to_str(), length)).encode())
        for file in files:
            key.update(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
        stem = cache / key.hexdigest()[:16]
        tokens, offsets = stem.with_suffix(".tokens"), stem.with_suffix(".offsets.npy")
        if not offsets.exists():
            cache.mkdir(parents=True, exist_ok=True)
            ends, temporary = [0], stem.with_suffix(f".tmp{os.getpid()}")
            with temporary.open("wb") as out:
                for file in files:
                    for block in encode_blocks(split_documents(read_text(file)), tokenizer, length):
                        out.write(block.astype(np.uint32).tobytes())
                        ends.append(ends[-1] + len(block))
            if len(ends) == 1:
                temporary.unlink()
                raise EncoreError(f"{files[0].parent}: the text files are empty")
            os.replace(temporary, tokens)
            np.save(temporary.with_suffix(".npy"), np.array(ends))
            os.replace(temporary.with_suffix(".npy"), offsets)  # last, so that it vouches for the tokens
        return cls(np.memmap(tokens, dtype=np.uint32, mode="r"), np.load(offsets))


def encode_blocks(documents: Iterable[Document], tokenizer: ByteBPE, length: int) -> Iterator[Tokens]:
    """Blocks of many documents. Lines of a document are joined by a space, so that every line starts a word."""
    full_stop = noise_vocabulary(tokenizer).full_stop
    for document in documents:
        yield from blocks(np.array(tokenizer.encode(" ".join(document)), dtype=np.int64), full_stop, length)


class Denoised(Dataset):
    """(corrupted, original) blocks. Noise is a function of (noise.seed, epoch, index).

    In training (epoch None) the loader's generator, seeded for every batch of the run, draws the epoch number: the
    noise differs whenever a block comes again, and a resumed run repeats it exactly.
    """

    def __init__(self, dataset: Blocks, vocabulary: Vocabulary, noise: Noise, epoch: int | None = None) -> None:
        self.blocks, self.vocabulary, self.noise, self.epoch = dataset, vocabulary, noise, epoch

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Pair:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Pair]:
        epoch = int(torch.randint(2**31, ())) if self.epoch is None else self.epoch
        return [(self.noise(x, self.vocabulary, epoch=epoch, index=i), x) for i in indices for x in [self.blocks[i]]]


def pad(rows: Sequence[Tokens]) -> Tensor:
    """Rows of ids -> (B, longest) int64, filled with `<pad>` on the right."""
    out = torch.full((len(rows), max(map(len, rows))), PAD)
    for target, row in zip(out, rows):
        target[: len(row)] = torch.as_tensor(row)
    return out


def collate_pairs(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Pairs of rows -> padded source (B, N), target (B, T)."""
    return pad([source for source, _ in pairs]), pad([target for _, target in pairs])


class Corpus(L.LightningDataModule):
    """Denoising batches (source, target) from a raw text corpus.

    path: a directory with train/*.txt and valid/*.txt (or .txt.gz), one sentence or paragraph a line and a blank line
        between documents. Without it the named `source` is used: "wikitext2" (trains on its test text and validates on
        its validation text; the training text is not part of the source) or "sklearn" (comes with scikit-learn).
    tokenizer: directory of a published byte-level BPE; without it one of `vocab_size` is trained on the training text.
    cache: where encoded blocks of `path` are kept, so that they are encoded once.
    """

    def __init__(
        self,
        path: str | None = None,
        source: Literal["wikitext2", "sklearn"] = "sklearn",
        tokenizer: str | None = None,
        vocab_size: int = 2000,
        block_length: int = 512,
        noise: Noise = Noise(),  # noqa: B008 (a frozen dataclass)
        batch_size: int = 32,
        num_workers: int = 0,
        cache: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path = Path(path) if path else None
        self.source, self.tokenizer_path, self.vocab_size = source, tokenizer, vocab_size
        self.block_length, self.noise, self.batch_size = block_length, noise, batch_size
        self.num_workers, self.seed = num_workers, seed
        self.cache = Path(cache) if cache else None
        self.train: Blocks | None = None

    def prepare_data(self) -> None:
        if self.cache is not None:
            self._build()  # writes the cache, on one process

    def setup(self, stage: str | None = None) -> None:
        if self.train is None:
            self.tokenizer, self.train, self.valid = self._build()
            self.vocabulary = noise_vocabulary(self.tokenizer)

    def _build(self) -> tuple[ByteBPE, Blocks, Blocks]:
        if self.path is None:
            splits = named_documents(self.source)
            tokenizer = self._tokenizer([" ".join(document) for document in splits[0]])
            train, valid = (Blocks.of(split, tokenizer, self.block_length) for split in splits)
            return tokenizer, train, valid
        files = {split: text_files(self.path / split) for split in ("train", "valid")}
        tokenizer = self._tokenizer(" ".join(d) for f in files["train"] for d in split_documents(read_text(f)))
        if self.cache is not None:
            made = [Blocks.cached(files[s], tokenizer, self.block_length, self.cache) for s in ("train", "valid")]
        else:
            texts = ([d for f in files[s] for d in split_documents(read_text(f))] for s in ("train", "valid"))
            made = [Blocks.of(documents, tokenizer, self.block_length) for documents in texts]
        return tokenizer, made[0], made[1]

    def _tokenizer(self, texts: Iterable[str]) -> ByteBPE:
        if self.tokenizer_path:
            return load_byte_bpe(Path(self.tokenizer_path))
        return train_byte_bpe(texts, self.vocab_size)

    def train_dataloader(self) -> DataLoader:
        assert self.train is not None
        return train_loader(
            Denoised(self.train, self.vocabulary, self.noise),
            self.batch_size,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=collate_pairs,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        data = Denoised(self.valid, self.vocabulary, self.noise, epoch=0)
        return DataLoader(data, self.batch_size, collate_fn=collate_pairs)


def named_documents(source: str) -> tuple[list[Document], list[Document]]:
    """Training and validation documents of a named source."""
    if source == "sklearn":
        documents = bundled_documents()
        return documents[::10] + documents[1::10] + documents[2::10], documents[9::10]
    files = sources.locate(source)
    train, valid = files["wikitext2_test.txt.gz"], files["wikitext2_valid.txt.gz"]
    return list(wikitext_documents(read_text(train))), list(wikitext_documents(read_text(valid)))


def text_files(folder: Path) -> list[Path]:
    """The .txt and .txt.gz files of a folder, in order of their names."""
    files = sorted([*folder.glob("*.txt"), *folder.glob("*.txt.gz")])
    if not files:
        raise EncoreError(f"{folder}: no .txt or .txt.gz files; a corpus has folders train and valid with text files")
    return files


# ------------------------------------------------------------------------------------- labelled text and summarisation


def local_dataset(path: str | Path) -> dict[str, Any]:
    """{split: datasets.Dataset} of a local directory: one written by save_to_disk, or one with a Parquet, JSON-lines or
    CSV file (or several) a split, named train*, validation*, test*. Nothing is downloaded."""
    import datasets

    path = Path(path)
    if (path / "dataset_dict.json").exists():
        return dict(datasets.load_from_disk(str(path)))
    for suffix, builder in ((".parquet", "parquet"), (".jsonl", "json"), (".json", "json"), (".csv", "csv")):
        found = {
            split: files
            for split in ("train", "validation", "test")
            if (files := sorted(str(f) for f in path.glob(f"{split}*{suffix}")))
        }
        if found:
            try:
                return dict(datasets.load_dataset(builder, data_files=found))
            except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
                raise EncoreError(f"{path}: cannot read its {suffix} files ({error}); write them again") from error
    raise EncoreError(
        f"{path}: no data set; expected one saved by datasets' save_to_disk, or train/validation files "
        "in Parquet, JSON lines or CSV"
    )


def column(dataset: Any, name: str, path: str | Path) -> list[Any]:
    """One column of a split."""
    if name not in dataset.column_names:
        raise EncoreError(f"{path}: no column {name!r}; it has {', '.join(dataset.column_names)}")
    return list(dataset[name])


def wrap(tokenizer: ByteBPE, texts: Sequence[str], max_length: int) -> list[Tokens]:
    """`<s> text </s>` of every text, cut to max_length with `</s>` kept."""
    return [np.array([BOS, *ids[: max_length - 2], EOS]) for ids in tokenizer.encode_batch(texts)]


def wrap_pairs(tokenizer: ByteBPE, first: Sequence[str], second: Sequence[str], max_length: int) -> list[Tokens]:
    """`<s> a </s> b </s>` with one separator, as in the released code. The longer text is cut, `</s>` never."""
    rows = []
    for a, b in zip(tokenizer.encode_batch(first), tokenizer.encode_batch([" " + text for text in second])):
        while len(a) + len(b) > max_length - 3:
            (a if len(a) > len(b) else b).pop()
        rows.append(np.array([BOS, *a, EOS, *b, EOS]))
    return rows


class Labelled(Dataset):
    """(ids, label) rows."""

    def __init__(self, rows: Sequence[Tokens], labels: Sequence[float]) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tokens, float]:
        return self.rows[index], self.labels[index]


def collate_labelled(items: Sequence[tuple[Tokens, float]], regression: bool = False) -> tuple[Tensor, Tensor]:
    """(B, N) ids and (B,) labels, int64 or, for regression, float32."""
    labels = torch.tensor([label for _, label in items], dtype=torch.float32 if regression else torch.int64)
    return pad([row for row, _ in items]), labels


# GLUE task -> text columns (the label column is "label" everywhere)
GLUE_COLUMNS: dict[str, tuple[str, ...]] = {
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "cola": ("sentence",),
    "stsb": ("sentence1", "sentence2"),
}
Task = Literal["mnli", "qnli", "qqp", "rte", "sst2", "mrpc", "cola", "stsb"]


class GLUE(L.LightningDataModule):
    """One GLUE task from a local directory in the `datasets` library's layout (see local_dataset): batches (ids,
    labels).

    MNLI's matched development set may be called validation or validation_matched.
    """

    def __init__(
        self,
        path: str,
        task: Task,
        tokenizer: str,
        batch_size: int = 32,
        max_length: int = 512,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.task, self.tokenizer_path = path, task, tokenizer
        self.batch_size, self.max_length, self.num_workers, self.seed = batch_size, max_length, num_workers, seed
        self.train: Labelled | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.train is None:
            splits, self.tokenizer = local_dataset(self.path), load_byte_bpe(Path(self.tokenizer_path))
            valid = splits.get("validation", splits.get("validation_matched"))
            if "train" not in splits or valid is None:
                raise EncoreError(f"{self.path}: needs the splits train and validation; it has {', '.join(splits)}")
            self.train, self.valid = self._encode(splits["train"]), self._encode(valid)

    def _encode(self, split: Any) -> Labelled:
        texts = [column(split, name, self.path) for name in GLUE_COLUMNS[self.task]]
        if len(texts) == 1:
            rows = wrap(self.tokenizer, texts[0], self.max_length)
        else:
            rows = wrap_pairs(self.tokenizer, texts[0], texts[1], self.max_length)
        return Labelled(rows, column(split, "label", self.path))

    @property
    def collate(self) -> Callable[[Sequence[tuple[Tokens, float]]], tuple[Tensor, Tensor]]:
        return functools.partial(collate_labelled, regression=self.task == "stsb")

    def train_dataloader(self) -> DataLoader:
        assert self.train is not None
        return train_loader(
            self.train,
            self.batch_size,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=self.collate,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.valid, self.batch_size, collate_fn=self.collate)  # type: ignore[arg-type]


class Pairs(Dataset):
    """(source ids, target ids) rows, encoded when asked for. Over-long texts are cut, `</s>` stays."""

    def __init__(
        self, sources: Sequence[str], targets: Sequence[str], tokenizer: ByteBPE, max_source: int, max_target: int
    ) -> None:
        self.sources, self.targets, self.tokenizer = sources, targets, tokenizer
        self.max_source, self.max_target = max_source, max_target

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Pair:
        source = wrap(self.tokenizer, [self.sources[index]], self.max_source)
        return source[0], wrap(self.tokenizer, [self.targets[index]], self.max_target)[0]


class PairBatches(L.LightningDataModule):
    """Loaders of (source, target) batches from `train`, `valid` and `test`, which `setup` of a subclass fills."""

    train: Any
    valid: Any
    test: Any
    batch_size: int
    num_workers: int
    seed: int

    def train_dataloader(self) -> DataLoader:
        assert self.train is not None
        return train_loader(
            self.train,
            self.batch_size,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=collate_pairs,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.valid, self.batch_size, collate_fn=collate_pairs)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, self.batch_size, collate_fn=collate_pairs)


SUMMARY_COLUMNS = {"cnn_dailymail": ("article", "highlights"), "xsum": ("document", "summary")}


class Summaries(PairBatches):
    """CNN/DailyMail or XSum from a local directory in the `datasets` library's layout: batches (source, target).

    Text stays cased and untokenised; line breaks inside a text become spaces.
    """

    def __init__(
        self,
        path: str,
        name: Literal["cnn_dailymail", "xsum"],
        tokenizer: str,
        batch_size: int = 2,
        max_source: int = 1024,
        max_target: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.columns, self.tokenizer_path, self.batch_size = (
            path,
            SUMMARY_COLUMNS[name],
            tokenizer,
            batch_size,
        )
        self.max_source, self.max_target, self.num_workers, self.seed = max_source, max_target, num_workers, seed
        self.train: Pairs | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.train is None:
            splits, self.tokenizer = local_dataset(self.path), load_byte_bpe(Path(self.tokenizer_path))
            if not {"train", "validation"} <= splits.keys():
                raise EncoreError(f"{self.path}: needs the splits train and validation; it has {', '.join(splits)}")
            self.train, self.valid = self._pairs(splits["train"]), self._pairs(splits["validation"])
            self.test = self._pairs(splits["test"]) if "test" in splits else self.valid

    def _pairs(self, split: Any) -> Pairs:
        source, target = ([" ".join(text.split()) for text in column(split, name, self.path)] for name in self.columns)
        empty = sum(not s or not t for s, t in zip(source, target))
        kept = [(s, t) for s, t in zip(source, target) if s and t]
        if not kept:
            raise EncoreError(f"{self.path}: all {empty} examples have an empty text")
        return Pairs([s for s, _ in kept], [t for _, t in kept], self.tokenizer, self.max_source, self.max_target)

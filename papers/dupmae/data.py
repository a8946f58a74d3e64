"""Batches for pre-training, fine-tuning and retrieval."""

import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from common.errors import EncoreError
from common.formats.wordpiece import PAD, WordPiece
from common.training.loaders import seeded, train_loader
from papers.dupmae.blocks import article_blocks, load_from_disk, sentences
from papers.dupmae.collection import (
    Collection,
    Passage,
    cranfield,
    read_collection,
    read_negatives,
    read_scores,
)
from papers.dupmae.masking import decoder_mask, encoder_mask, word_index
from papers.dupmae.model import Batch


class Groups(NamedTuple):
    """queries: (Q, N) ids; passages: (Q * G, M) ids, a query's positive first in its group; teacher: (Q, G) scores."""

    queries: Tensor
    passages: Tensor
    teacher: Tensor | None = None


Group = tuple[Passage, list[Passage], list[float] | None]  # query, its passages (positive first), teacher's scores


class Encoded(NamedTuple):
    """Texts to encode: tokens (B, N) and their ids."""

    tokens: Tensor
    ids: list[str]


def wrap(tokenizer: WordPiece, ids: Sequence[int], length: int) -> Tensor:
    """`[CLS]` ids `[SEP]` as int64, the ids cut so that the row has at most `length` tokens."""
    return torch.tensor([tokenizer.cls, *ids[: length - 2], tokenizer.sep])


def pad(rows: Sequence[Tensor]) -> Tensor:
    """Rows of ids -> (B, longest) int64, `[PAD]` on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=PAD)


# ------------------------------------------------------------------------------------------------------- pre-training


class MaskedText:
    """Collates blocks of token ids into a Batch (Sec. 3.1, 3.2): cuts them, wraps them, draws all masks.

    Masks come from torch's global generator. With `fixed` they depend on the tokens alone (validation).
    """

    def __init__(
        self, tokenizer: WordPiece, length: int, encoder_ratio: float, decoder_ratio: float, fixed: bool = False
    ) -> None:
        self.tokenizer, self.length, self.fixed = tokenizer, length, fixed
        self.encoder_ratio, self.decoder_ratio = encoder_ratio, decoder_ratio

    def __call__(self, blocks: Sequence[Sequence[int]]) -> Batch:
        tokens = pad([wrap(self.tokenizer, ids, self.length) for ids in blocks])
        if self.fixed:
            with seeded(0, int(tokens.sum())):
                return self.mask(tokens)
        return self.mask(tokens)

    def mask(self, tokens: Tensor) -> Batch:
        """tokens: (B, N) with their special tokens."""
        t = self.tokenizer
        valid = tokens.ne(PAD)
        text = valid & tokens.ne(t.cls) & tokens.ne(t.sep)
        words = word_index(tokens, text, t.continues)
        inputs, labels = encoder_mask(
            tokens,
            words,
            valid.sum(1),
            ratio=self.encoder_ratio,
            mask_id=t.mask,
            unknown=t.unk,
            vocab_size=len(t),
        )
        return Batch(tokens, text, inputs, labels, decoder_mask(words, valid, self.decoder_ratio))


class SavedBlocks(Dataset):
    """Token ids of the rows of a folder written by papers.dupmae.blocks or the RetroMAE repository's script."""

    def __init__(self, path: str | Path) -> None:
        self.rows = load_from_disk(path)
        if "token_ids" not in self.rows.column_names:
            raise EncoreError(f"{path}: no column 'token_ids'; it has {', '.join(self.rows.column_names)}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[int]:
        return self.rows[index]["token_ids"]


def bundled_texts() -> list[str]:
    """Prose that comes with scikit-learn, the descriptions of its data sets, a paragraph a text.

    The lock file pins that package, so these are the same words on every machine.
    """
    folder = importlib.resources.files("sklearn.datasets") / "descr"
    texts = [file.read_text() for file in sorted(folder.iterdir(), key=str) if file.name.endswith(".rst")]
    paragraphs = [" ".join(part.split()) for text in texts for part in text.split("\n\n")]
    return [paragraph for paragraph in paragraphs if len(paragraph.split()) > 8]


def named_texts(source: Literal["bundled", "cranfield"]) -> list[str]:
    """Texts of a named source: scikit-learn's descriptions, or the abstracts of Cranfield."""
    if source == "bundled":
        return bundled_texts()
    return [passage.text for passage in cranfield().corpus.values() if passage.text]


def get_tokenizer(path: str | None, texts: Sequence[str], vocab_size: int) -> WordPiece:
    """The tokenizer of a folder, or one trained on texts."""
    return WordPiece.load(path) if path else WordPiece.train(texts, vocab_size)


class Corpus(L.LightningDataModule):
    """Pre-training batches.

    paths: folders of blocks (see papers.dupmae.blocks); without them the named `source` is cut into blocks here.
    tokenizer: folder of a published vocabulary; without it one of `vocab_size` is trained on the source.
    held_out: that many blocks, spread evenly over the corpus, are for validation.
    """

    def __init__(
        self,
        paths: list[str] | None = None,
        source: Literal["bundled", "cranfield"] = "bundled",
        tokenizer: str | None = None,
        vocab_size: int = 2048,
        length: int = 512,
        encoder_ratio: float = 0.3,
        decoder_ratio: float = 0.5,
        batch_size: int = 32,
        held_out: int = 1000,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if paths and not tokenizer:
            raise EncoreError("Corpus: blocks of token ids need the tokenizer that made them; give its folder")
        self.paths, self.source, self.tokenizer_path, self.vocab_size = paths, source, tokenizer, vocab_size
        self.length, self.ratios, self.batch_size = length, (encoder_ratio, decoder_ratio), batch_size
        self.held_out, self.num_workers, self.seed = held_out, num_workers, seed
        self.train: Dataset | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.train is not None:
            return
        blocks: Any
        if self.paths:
            self.tokenizer = WordPiece.load(str(self.tokenizer_path))
            blocks = ConcatDataset([SavedBlocks(path) for path in self.paths])
        else:
            texts = named_texts(self.source)
            self.tokenizer = get_tokenizer(self.tokenizer_path, texts, self.vocab_size)
            blocks = list(article_blocks(texts, self.tokenizer, self.length - 2))
        held_out = {len(blocks) * (2 * i + 1) // (2 * self.held_out) for i in range(self.held_out)}
        if len(held_out) >= len(blocks):
            raise EncoreError(f"Corpus: {self.held_out} of {len(blocks)} blocks cannot be held out; lower held_out")
        self.train = Subset(blocks, [i for i in range(len(blocks)) if i not in held_out])
        self.valid = Subset(blocks, sorted(held_out))

    def train_dataloader(self) -> DataLoader:
        return train_loader(
            self.train,
            self.batch_size,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=MaskedText(self.tokenizer, self.length, *self.ratios),
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        collate = MaskedText(self.tokenizer, self.length, *self.ratios, fixed=True)
        return DataLoader(self.valid, self.batch_size, collate_fn=collate)


# --------------------------------------------------------------------------------------------------------- retrieval


class Encoding:
    """How queries and passages become ids; cut to a length in tokens, `[CLS]` and `[SEP]` included."""

    def __init__(
        self, tokenizer: WordPiece, query_length: int = 32, passage_length: int = 140, use_title: bool = True
    ) -> None:
        self.tokenizer, self.use_title = tokenizer, use_title
        self.query_length, self.passage_length = query_length, passage_length

    def query(self, query: Passage) -> Tensor:
        """`[CLS]` query `[SEP]`. EncoreError when the query has no words."""
        ids = self.tokenizer.encode_batch([query.text])[0]
        if not ids:
            raise EncoreError(f"the query {query.text!r} has no words; remove it from the query file")
        return wrap(self.tokenizer, ids, self.query_length)

    def passage(self, passage: Passage) -> Tensor:
        """`[CLS]` title `[SEP]` text `[SEP]`, or `[CLS]` text `[SEP]` without a title."""
        title, text = self.tokenizer.encode_batch([passage.title if self.use_title else "", passage.text])
        return wrap(self.tokenizer, [*title, self.tokenizer.sep, *text] if title else text, self.passage_length)

    def groups(self, items: Sequence[Group]) -> Groups:
        """Training groups -> a batch."""
        queries = pad([self.query(query) for query, _, _ in items])
        passages = pad([self.passage(passage) for _, group, _ in items for passage in group])
        return Groups(queries, passages, None if items[0][2] is None else torch.tensor([s for _, _, s in items]))


class Texts(Dataset):
    """(id, ids of tokens) of passages or queries, for encoding them all. encode: Encoding.passage or .query."""

    def __init__(self, texts: Mapping[str, Passage], names: Sequence[str], encode: Callable[[Passage], Tensor]) -> None:
        self.texts, self.names, self.encode = texts, names, encode

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        return self.names[index], self.encode(self.texts[self.names[index]])


def collate_encoded(items: Sequence[tuple[str, Tensor]]) -> Encoded:
    """Items of Texts -> a padded batch."""
    return Encoded(pad([tokens for _, tokens in items]), [name for name, _ in items])


class TrainingGroups(Dataset):
    """(query, passages, teacher scores or None) for every judged query: one positive and `group_size` - 1 negatives.

    Negatives are drawn from the first `sample_from` of its list; a list that is too short is used up and filled with
    random passages. Everything random comes from torch's global generator.
    """

    def __init__(
        self,
        collection: Collection,
        negatives: Mapping[str, list[str]],
        teacher: Mapping[str, Mapping[str, float]] | None,
        group_size: int,
        sample_from: int = 200,
    ) -> None:
        self.collection, self.negatives, self.teacher = collection, negatives, teacher
        self.group_size, self.sample_from = group_size, sample_from
        self.positives = {q: [p for p, grade in g.items() if grade > 0] for q, g in collection.judged.items()}
        self.queries = [query for query, positives in self.positives.items() if positives]
        self.corpus_ids = list(collection.corpus)
        if len(self.corpus_ids) < group_size + max(map(len, self.positives.values()), default=0):
            raise EncoreError(f"{len(self.corpus_ids)} passages are too few for groups of {group_size}")

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> Group:
        query = self.queries[index]
        positives = self.positives[query]
        chosen = [positives[int(torch.randint(len(positives), ()))], *self._negatives(query)]
        scores = None
        if self.teacher is not None:
            known = self.teacher.get(query, {})
            if lost := [passage for passage in chosen if passage not in known]:
                raise EncoreError(
                    f"the teacher has no score for query {query} and passage {lost[0]}; "
                    "score the positives and all negatives that can be drawn"
                )
            scores = [known[passage] for passage in chosen]
        try:
            return self.collection.queries[query], [self.collection.corpus[p] for p in chosen], scores
        except KeyError as error:
            raise EncoreError(f"query {query} names the passage {error.args[0]!r}, which the corpus lacks") from None

    def _negatives(self, query: str) -> list[str]:
        listed, wanted = self.negatives.get(query, [])[: self.sample_from], self.group_size - 1
        if len(listed) >= wanted:
            return [listed[i] for i in torch.randperm(len(listed))[:wanted]]
        taken = {*listed, *self.positives[query]}
        chosen = list(listed)
        while len(chosen) < wanted:
            passage = self.corpus_ids[int(torch.randint(len(self.corpus_ids), ()))]
            if passage not in taken:
                taken.add(passage)
                chosen.append(passage)
        return chosen


class Ranking(L.LightningDataModule):
    """Fine-tuning on judged queries and retrieval over a whole collection (layout: papers/dupmae/collection.py).

    negatives: file of hard negatives (without it random passages); teacher: files with a cross-encoder's scores.
    split: which queries are validated and tested; test passes give (documents, queries), in this order. path None: the
    named source cranfield, for validation and test only, with a tokenizer of `vocab_size` trained on its abstracts.
    """

    def __init__(
        self,
        path: str | None = None,
        tokenizer: str | None = None,
        vocab_size: int = 2048,
        negatives: str | None = None,
        teacher: list[str] | None = None,
        split: str = "dev",
        group_size: int = 16,
        sample_from: int = 200,
        query_length: int = 32,
        passage_length: int = 140,
        use_title: bool = True,
        batch_size: int = 16,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if path and not tokenizer:
            raise EncoreError("Ranking: give the folder of the tokenizer that the model was pre-trained with")
        self.path, self.tokenizer_path, self.vocab_size, self.split = path, tokenizer, vocab_size, split
        self.negatives, self.teacher, self.group_size, self.sample_from = negatives, teacher, group_size, sample_from
        self.lengths, self.batch_size, self.eval_batch_size = (
            (query_length, passage_length, use_title),
            batch_size,
            eval_batch_size,
        )
        self.num_workers, self.seed = num_workers, seed
        self.collection: Collection | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.collection is None:
            self.collection = read_collection(self.path, self.split) if self.path else cranfield()
            texts = [] if self.tokenizer_path else [p.text for p in self.collection.corpus.values()]
            self.encoding = Encoding(get_tokenizer(self.tokenizer_path, texts, self.vocab_size), *self.lengths)

    def training_groups(self) -> Dataset:
        """The judged training queries with their passages."""
        if self.path is None or self.collection is None:
            raise EncoreError("Ranking: Cranfield has no training queries; fine-tune with InverseCloze")
        return TrainingGroups(
            read_collection(self.path, "train", self.collection.corpus),
            read_negatives(self.negatives) if self.negatives else {},
            read_scores(*self.teacher) if self.teacher else None,
            self.group_size,
            self.sample_from,
        )

    def train_dataloader(self) -> DataLoader:
        return train_loader(
            self.training_groups(),
            self.batch_size,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=self.encoding.groups,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> list[DataLoader]:
        assert self.collection is not None
        corpus, queries, judged = self.collection
        texts = [
            Texts(corpus, list(corpus), self.encoding.passage),
            Texts(queries, list(judged), self.encoding.query),
        ]
        return [
            DataLoader(some, self.eval_batch_size, collate_fn=collate_encoded, num_workers=self.num_workers)
            for some in texts
        ]

    test_dataloader = val_dataloader


class Cloze(Dataset):
    """(query, passages, None): a random sentence of a text, and the rest of it (inverse cloze task, Lee et al. 2019).

    With probability `keep` the sentence stays in the passage too, so that equal words count as well.
    """

    def __init__(self, texts: Sequence[str], keep: float = 0.1) -> None:
        self.texts = [parts for text in texts if len(parts := sentences(text)) > 1]
        self.keep = keep
        if not self.texts:
            raise EncoreError("no text has two sentences; the inverse cloze task needs some")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Group:
        parts = self.texts[index]
        at = int(torch.randint(len(parts), ()))
        rest = parts if torch.rand(()) < self.keep else parts[:at] + parts[at + 1 :]
        return Passage("", parts[at]), [Passage("", " ".join(rest))], None


class InverseCloze(Ranking):
    """Unsupervised fine-tuning on Cranfield's abstracts; validation and test on its queries, as in Ranking."""

    def training_groups(self) -> Dataset:
        assert self.collection is not None
        return Cloze([passage.text for passage in self.collection.corpus.values()])

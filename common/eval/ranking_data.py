"""Batches of judged queries with their passages for fine-tuning, and of a whole collection for retrieval."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.errors import EncoreError
from common.formats.collection import (
    Collection,
    Passage,
    cranfield,
    read_collection,
    read_negatives,
    read_scores,
)
from common.formats.text_corpus import pad, wrap
from common.formats.wordpiece import WordPiece
from common.training.loaders import Loaders

Group = tuple[Passage, list[Passage], list[float] | None]  # query, its passages (positive first), teacher's scores


class Groups(NamedTuple):
    """queries: (Q, N) ids; passages: (Q * G, M) ids, a query's positive first in its group; teacher: (Q, G) scores."""

    queries: Tensor
    passages: Tensor
    teacher: Tensor | None = None


class Encoded(NamedTuple):
    """Texts to encode: tokens (B, N) and their ids."""

    tokens: Tensor
    ids: list[str]


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

    def pair(self, query: Passage, passage: Passage, length: int) -> tuple[Tensor, Tensor]:
        """Both in one row for a cross-encoder, `[CLS]` query `[SEP]` passage `[SEP]`; only the passage is cut. Returns
        tokens and segments, (N,) each, segment 1 from the passage on."""
        asked, title, text = self.tokenizer.encode_batch([query.text, passage.title, passage.text])
        first = [self.tokenizer.cls, *asked, self.tokenizer.sep]
        second = [*title, self.tokenizer.sep, *text] if title else text
        second = [*second[: max(length - len(first) - 1, 0)], self.tokenizer.sep]
        return torch.tensor(first + second), torch.tensor([0] * len(first) + [1] * len(second))

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


class RankingData(Loaders):
    """Fine-tuning on judged queries and retrieval over a whole collection (layout: common/formats/collection.py).

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
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        if path and not tokenizer:
            raise EncoreError(f"{type(self).__name__}: give the folder of the tokenizer that the model was made with")
        self.path, self.tokenizer_path, self.vocab_size, self.split = path, tokenizer, vocab_size, split
        self.negatives, self.teacher, self.group_size, self.sample_from = negatives, teacher, group_size, sample_from
        self.lengths = query_length, passage_length, use_title
        self.collection: Collection | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.collection is None:
            self.collection = read_collection(self.path, self.split) if self.path else cranfield()
            if self.tokenizer_path:
                tokenizer = WordPiece.load(self.tokenizer_path)
            else:
                tokenizer = WordPiece.train([p.text for p in self.collection.corpus.values()], self.vocab_size)
            self.encoding = Encoding(tokenizer, *self.lengths)
        if stage == "fit":
            self.train = self.training_groups()

    def training_groups(self) -> Dataset:
        """The judged training queries with their passages."""
        if self.path is None or self.collection is None:
            raise EncoreError(f"{type(self).__name__}: Cranfield has no training queries; name a collection's folder")
        return TrainingGroups(
            read_collection(self.path, "train", self.collection.corpus),
            read_negatives(self.negatives) if self.negatives else {},
            read_scores(*self.teacher) if self.teacher else None,
            self.group_size,
            self.sample_from,
        )

    def collate(self, items: Sequence[Group]) -> Any:
        """Training groups -> a batch."""
        return self.encoding.groups(items)

    def val_dataloader(self) -> list[DataLoader]:
        assert self.collection is not None
        corpus, queries, judged, _ = self.collection
        texts = [
            Texts(corpus, list(corpus), self.encoding.passage),
            Texts(queries, list(judged), self.encoding.query),
        ]
        return [self.evaluation(some, collate=collate_encoded) for some in texts]

    test_dataloader = val_dataloader

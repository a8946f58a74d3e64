"""Retrieval collections as MS MARCO (in RocketQA's cleaned form), the RetroMAE repository and BEIR keep them.

corpus.tsv            id, text | id, title, text | id, url, title, body     (or corpus.jsonl, BEIR's form)
<split>.query.txt     id, text                                              (or queries.jsonl)
qrels.<split>.tsv     query, 0, passage, relevance                          (or qrels/<split>.tsv with a header)
negatives             query, "passage,passage,..."
scores                query passage score
ranking               query, passage, rank, score
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from common import sources
from common.errors import EncoreError
from common.formats.lines import byte_lines, text_lines
from common.formats.tables import read_table

Line = TypeVar("Line")
N = TypeVar("N", int, float)
Judgements = Mapping[str, Mapping[str, int]]  # query -> document -> relevance; above 0 is relevant
Ranking = dict[str, list[tuple[str, float]]]  # query -> (document, score), best first


class Passage(NamedTuple):
    """A title, which may be empty, and a text."""

    title: str
    text: str


class Collection(NamedTuple):
    """corpus: {id: Passage}; queries: {id: text}; judged: {query: {passage: relevance}}.

    shared_ids: a query with the id of a document is that document, as in BEIR (ArguAna, Quora); elsewhere documents and
    queries are numbered for themselves.
    """

    corpus: Mapping[str, Passage]
    queries: Mapping[str, Passage]
    judged: Judgements
    shared_ids: bool = False


class TextFile(Mapping[str, Passage]):
    """Passages or queries of a file, in its order, read when asked for: only ids and line positions are kept."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: dict[str, int] = {}
        starts = []
        for number, (start, line) in enumerate(filled(self.path, byte_lines), 1):
            identifier = self._parse(line, number)[0]
            if identifier in self.rows:
                raise EncoreError(f"{self.path}:{number}: the id {identifier!r} is there twice; ids must differ")
            self.rows[identifier] = number - 1
            starts.append(start)
        self.starts = np.array(starts)

    def __getitem__(self, identifier: str) -> Passage:
        row = self.rows[identifier]
        with self.path.open("rb") as file:
            file.seek(int(self.starts[row]))
            return self._parse(file.readline(), row + 1)[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def _parse(self, line: bytes, number: int) -> tuple[str, Passage]:
        try:
            text = line.decode().rstrip("\r\n")
            if self.path.suffix in (".jsonl", ".json"):
                row = json.loads(text)
                if not isinstance(row["text"], str):
                    raise TypeError("its text is no string")
                return str(row["_id"] if "_id" in row else row["id"]), Passage(row.get("title") or "", row["text"])
            identifier, *columns = text.split("\t")
            if not 1 <= len(columns) <= 3:
                raise ValueError(f"{len(columns) + 1} columns")
            return identifier, Passage("" if len(columns) == 1 else columns[-2], columns[-1])
        except (ValueError, KeyError, TypeError) as error:
            raise EncoreError(
                f"{self.path}:{number}: not a passage ({type(error).__name__}: {error}); "
                "expected id, [title,] text separated by tabs, or a JSON object with id and text"
            ) from None


def filled(path: Path, lines: Callable[[Path], Iterator[Line]]) -> Iterator[Line]:
    """The lines of a file. EncoreError when there are none."""
    line = None
    for line in lines(path):
        yield line
    if line is None:
        raise EncoreError(f"{path}: is empty; make it again")


def rows(path: str | Path, *columns: int, separator: str | None = None) -> Iterator[list[str]]:
    """Fields of every line of a text file; EncoreError when a line has another number of them than allowed."""
    for number, line in enumerate(filled(Path(path), text_lines), 1):
        fields = line.split(separator)
        if len(fields) not in columns:
            wanted = " or ".join(map(str, columns))
            raise EncoreError(f"{path}:{number}: expected {wanted} columns, found {len(fields)}; is the file cut off?")
        yield fields


def read_judgements(path: str | Path) -> dict[str, dict[str, int]]:
    """TREC's four columns (query, 0, passage, relevance), BEIR's three after a header, or pairs query, passage."""
    judged: dict[str, dict[str, int]] = {}
    for fields in rows(path, 2, 3, 4):
        if fields[-1] == "score":
            continue
        passage, grade = (fields[2], fields[3]) if len(fields) == 4 else (fields[1], [*fields, "1"][2])
        judged.setdefault(fields[0], {})[passage] = _number(int, grade, f"{path}: the relevance", fields[0])
    return judged


def read_negatives(path: str | Path) -> dict[str, list[str]]:
    """{query: passages, hardest first}; lines of one query are joined."""
    negatives: dict[str, list[str]] = {}
    for query, passages in rows(path, 2, separator="\t"):
        negatives.setdefault(query, []).extend(passages.split(","))
    return negatives


def read_scores(*paths: str | Path) -> dict[str, dict[str, float]]:
    """{query: {passage: raw score of the teacher}} of one or more files."""
    found: dict[str, dict[str, float]] = {}
    for path in paths:
        for query, passage, score in rows(path, 3):
            found.setdefault(query, {})[passage] = _number(float, score.strip("[]"), f"{path}: the score", query)
    return found


def read_ranking(path: str | Path) -> Ranking:
    """{query: [(passage, score), ...]} in the file's order."""
    ranking: Ranking = {}
    for query, passage, _, score in rows(path, 4):
        ranking.setdefault(query, []).append((passage, _number(float, score, f"{path}: the score", query)))
    return ranking


def _number(kind: type[N], text: str, what: str, query: str) -> N:
    try:
        return kind(text)
    except ValueError:
        number = "a whole number" if kind is int else "a number"
        raise EncoreError(f"{what} {text!r} of query {query} is not {number}; mend that line") from None


def write_ranking(path: str | Path, ranking: Ranking) -> None:
    """Best passage first, ranks from 1."""
    with Path(path).open("w", encoding="utf-8") as file:
        for query, found in ranking.items():
            file.writelines(f"{query}\t{passage}\t{i}\t{score}\n" for i, (passage, score) in enumerate(found, 1))


def mine_negatives(ranking: Ranking, judged: Judgements) -> dict[str, list[str]]:
    """Hard negatives: what a retriever ranks high and nobody judged relevant; never the query itself (its own id)."""
    return {
        query: [name for name, _ in found if name != query and judged.get(query, {}).get(name, 0) <= 0]
        for query, found in ranking.items()
    }


def write_negatives(path: str | Path, negatives: Mapping[str, list[str]]) -> None:
    """One line a query that has any."""
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(f"{query}\t{','.join(passages)}\n" for query, passages in negatives.items() if passages)


def read_collection(folder: str | Path, split: str, corpus: Mapping[str, Passage] | None = None) -> Collection:
    """The collection in a folder (see the top of this file). `judged` keeps only queries that are there.

    corpus: when it has been read before.
    """
    folder = Path(folder)
    corpus = TextFile(_first(folder, "corpus.tsv", "corpus.jsonl", "corpus.json")) if corpus is None else corpus
    queries = TextFile(_first(folder, f"{split}.query.txt", f"{split}.query.tsv", "queries.jsonl"))
    beir = queries.path.name == "queries.jsonl"
    judged = read_judgements(_first(folder, f"qrels.{split}.tsv", f"qrels/{split}.tsv"))
    known = {query: grades for query, grades in judged.items() if query in queries.rows}
    if not known:
        raise EncoreError(f"{folder}: no judgement of split {split!r} belongs to one of its queries")
    return Collection(corpus, queries, known, shared_ids=beir)


def _first(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise EncoreError(f"{folder}: has none of {', '.join(names)}; see common/formats/collection.py for the layout")


def cranfield() -> Collection:
    """The named source: 1,400 abstracts (two of them empty), 225 queries, binary judgements."""
    files = sources.locate("cranfield")
    corpus, queries, judged = (read_table(files[f"{name}.parquet"]) for name in ("corpus", "queries", "qrels"))
    grades: dict[str, dict[str, int]] = {}
    for query, document, relevance in zip(judged["query_id"], judged["doc_id"], judged["relevance"]):
        grades.setdefault(query, {})[document] = int(relevance > 0)
    return Collection(
        # the texts begin with their titles
        {i: Passage("", text) for i, text in zip(corpus["id"], corpus["text"])},
        {i: Passage("", text) for i, text in zip(queries["id"], queries["text"])},
        grades,
    )

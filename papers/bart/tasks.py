"""Data of the fine-tuning tasks (Sec. 3, 5): GLUE, SQuAD, and pairs of texts for summaries, answers, replies and
translation."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import EncoreError
from common.eval import questions
from common.eval.questions import Question
from common.formats.labelled_text import (
    Examples,
    GLUETask,
    Labelled,
    collate_labels,
    column,
    cut_longest,
    local_dataset,
)
from common.formats.tables import numbered_lines
from common.formats.tokenizers import ByteBPE, load_byte_bpe
from common.training.loaders import Loaders
from papers.bart.data import Pair, collate_pairs, pad, wrap
from papers.bart.model import BOS, EOS, PAD
from papers.bart.noise import Tokens

TextPair = tuple[str, str]


class GLUE(GLUETask):
    """Batches (ids, labels) of a GLUE task."""

    def __init__(
        self,
        path: str,
        task: str,
        tokenizer: str,
        batch_size: int = 32,
        max_length: int = 512,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(path, task, batch_size=batch_size, max_length=max_length, num_workers=num_workers, seed=seed)
        self.tokenizer_path = tokenizer

    def rows(self, examples: Examples) -> Labelled:
        return labelled(load_byte_bpe(Path(self.tokenizer_path)), examples, self.max_length)

    def collate(self, items: Sequence[tuple[Tokens, float]]) -> tuple[Tensor, Tensor]:
        return collate_labelled(items, regression=self.task.num_classes == 1)


def labelled(tokenizer: ByteBPE, examples: Examples, max_length: int) -> Labelled:
    """Rows `<s> a </s>` or `<s> a </s> b </s>`, with one separator as in the released code. The longer text is cut,
    `</s>` never."""
    first, *second = examples.texts
    ids = [tokenizer.encode_batch(first), *(tokenizer.encode_batch([" " + text for text in texts]) for texts in second)]

    def join(parts: list[list[int]]) -> Tokens:
        kept = cut_longest(parts, max_length - 1 - len(parts))
        return np.array([BOS, *(i for part in kept for i in (*part, EOS))])

    return Labelled(ids, examples.labels, join)


def collate_labelled(items: Sequence[tuple[Tokens, float]], regression: bool = False) -> tuple[Tensor, Tensor]:
    """(B, N) ids and (B,) labels, int64 or, for regression, float32."""
    return pad([row for row, _ in items]), collate_labels(items, regression)


class SQuAD(questions.SQuAD):
    """Rows `<s> question </s> context </s>`; the question takes at most a quarter of max_length."""

    pad = PAD

    def __init__(
        self,
        path: str,
        tokenizer: str,
        batch_size: int = 48,
        max_length: int = 512,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(path, batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.tokenizer_path, self.max_length = Path(tokenizer), max_length

    def setup(self, stage: str | None = None) -> None:
        self.tokenizer = load_byte_bpe(self.tokenizer_path)
        super().setup(stage)

    def question(self, question: str, context: str) -> Question:
        asked = self.tokenizer.encode(question.strip())[: self.max_length // 4]
        encoded = self.tokenizer.tokenizer.encode(" " + context, add_special_tokens=False)
        first = len(asked) + 2
        room = self.max_length - first - 1
        ids = np.array([BOS, *asked, EOS, *encoded.ids[:room], EOS])
        spans = [(max(a - 1, 0), b - 1) for a, b in encoded.offsets[:room]]  # without the space before the context
        return Question(ids, first, spans, context, [])


class Pairs(Dataset):
    """(source ids, target ids) of pairs of texts, encoded when asked for. Over-long texts are cut, `</s>` stays.

    keep: which end of an over-long source stays. source_tokenizer: of the sources, where they are in another language.
    """

    def __init__(
        self,
        pairs: Iterable[TextPair],
        tokenizer: ByteBPE,
        max_source: int,
        max_target: int,
        *,
        keep: Literal["start", "end"] = "start",
        source_tokenizer: ByteBPE | None = None,
    ) -> None:
        self.pairs, self.tokenizer, self.source_tokenizer = list(pairs), tokenizer, source_tokenizer or tokenizer
        self.max_source, self.max_target, self.keep = max_source, max_target, keep

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        source, target = self.pairs[index]
        ids, room = self.source_tokenizer.encode(source), self.max_source - 2
        ids = ids[:room] if self.keep == "start" else ids[max(0, len(ids) - room) :]
        return np.array([BOS, *ids, EOS]), wrap(self.tokenizer, [target], self.max_target)[0]


class PairsTask(Loaders):
    """Batches (source, target) of pairs of texts; a subclass reads the pairs of a split.

    tokenizer: directory of BART's byte-level BPE. Without a test split, `test` writes for the validation set.
    """

    keep: Literal["start", "end"] = "start"

    def __init__(
        self,
        path: str,
        tokenizer: str,
        batch_size: int = 2,
        max_source: int = 1024,
        max_target: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.path, self.max_source, self.max_target = Path(path), max_source, max_target
        self.tokenizer_path, self.source_tokenizer_path = tokenizer, tokenizer

    def read(self) -> dict[str, list[TextPair]]:
        """{split: (source, target) texts}: train, validation and perhaps test."""
        raise NotImplementedError

    def collate(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        return collate_pairs(pairs)

    def setup(self, stage: str | None = None) -> None:
        if self.train is None:
            self.tokenizer, theirs = (load_byte_bpe(Path(p)) for p in (self.tokenizer_path, self.source_tokenizer_path))
            made = {
                split: Pairs(
                    pairs, self.tokenizer, self.max_source, self.max_target, keep=self.keep, source_tokenizer=theirs
                )
                for split, pairs in self.read().items()
            }
            self.train, self.valid = made["train"], made["validation"]
            self.test = made.get("test", self.valid)


SUMMARY_COLUMNS = {"cnn_dailymail": ("article", "highlights"), "xsum": ("document", "summary")}


class Summaries(PairsTask):
    """CNN/DailyMail or XSum, called `name`, from a local folder (see common.formats.labelled_text.local_dataset).

    Text stays cased and untokenised; line breaks inside a text become spaces. Pairs with an empty text are left out.
    """

    def __init__(self, name: Literal["cnn_dailymail", "xsum"], **options: Any) -> None:
        super().__init__(**options)
        self.columns = SUMMARY_COLUMNS[name]

    def read(self) -> dict[str, list[TextPair]]:
        return {split: self._pairs(rows) for split, rows in local_dataset(self.path, ("train", "validation")).items()}

    def _pairs(self, rows: Any) -> list[TextPair]:
        source, target = ([" ".join(text.split()) for text in column(rows, name, self.path)] for name in self.columns)
        kept = [(s, t) for s, t in zip(source, target, strict=True) if s and t]
        if not kept:
            raise EncoreError(f"{self.path}: all {len(source)} examples have an empty text")
        return kept


class Parallel(PairsTask):
    """Parallel text of WMT from a local folder (see local_dataset): a column `translation` of {language: text}, from
    the language `source` into `target`. Back-translated pairs are simply more rows of the training split.

    source_tokenizer: directory of a byte-level BPE of the foreign language.
    """

    def __init__(self, source_tokenizer: str, source: str = "ro", target: str = "en", **options: Any) -> None:
        super().__init__(**options)
        self.languages, self.source_tokenizer_path = (source, target), source_tokenizer

    def read(self) -> dict[str, list[TextPair]]:
        return {split: self._pairs(rows) for split, rows in local_dataset(self.path, ("train", "validation")).items()}

    def _pairs(self, rows: Any) -> list[TextPair]:
        texts = column(rows, "translation", self.path, dict)
        for i, row in enumerate(texts):
            absent = [language for language in self.languages if not row.get(language)]
            if absent:
                has = ", ".join(sorted(language for language in row if row[language]))
                raise EncoreError(f"{self.path}: row {i} has no language {absent[0]!r}; it has {has}")
        return [(row[self.languages[0]], row[self.languages[1]]) for row in texts]


class Answers(PairsTask):
    """ELI5 as KILT publishes it (Sec. 5.3): question -> answer. The supporting documents the paper puts behind a
    question are not in these files, and the test set is not public."""

    def read(self) -> dict[str, list[TextPair]]:
        return {
            s: read_answers(self.path / f"eli5-{k}-kilt.jsonl") for s, k in (("train", "train"), ("validation", "dev"))
        }


class Dialogues(PairsTask):
    """ConvAI2 as ParlAI publishes it (Sec. 5.3): persona and dialogue so far -> response. An over-long history loses
    its beginning, so that what is to be answered stays; the test set is not public."""

    keep = "end"

    def read(self) -> dict[str, list[TextPair]]:
        names = (("train", "train"), ("validation", "valid"))
        return {split: read_dialogues(self.path / f"{name}_self_original.txt") for split, name in names}


def read_answers(file: Path) -> list[TextPair]:
    """(question, answer) of a file of KILT's: the first output with an answer counts, questions without any are left
    out. Line breaks inside a text become spaces. EncoreError names file and line of what is not in that format."""
    found = []
    for number, line in numbered_lines(file):
        try:
            row = json.loads(line)
            question = " ".join(row["input"].split())
            answers = [" ".join(output["answer"].split()) for output in row["output"] if output.get("answer")]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise EncoreError(
                f'{file}:{number}: not {{"input": question, "output": [{{"answer": text}}, ...]}}; '
                "write one such object a line, as KILT does (its test file has no answers)"
            ) from None
        answer = next(filter(None, answers), "")
        if question and answer:
            found.append((question, answer))
    if not found:
        raise EncoreError(f"{file}: holds no question with an answer; take KILT's file of the training or dev set")
    return found


PERSONA = "your persona:"


def read_dialogues(file: Path) -> list[TextPair]:
    """(persona and history, response) of every turn in a file of ParlAI's, one dialogue after the other.

    A line is `N your persona: text` or `N utterance<tab>response<tab><tab>candidates`, and N is 1 where a dialogue
    begins. The source has a line for each of persona, earlier utterances and responses, and the utterance to respond
    to, which is its last. EncoreError names file and line of what is not in that format.
    """
    found: list[TextPair] = []
    history: list[str] = []
    last = 0
    for line_number, line in numbered_lines(file):
        digits, _, text = line.partition(" ")
        number = int(digits) if digits.isdecimal() else 0
        if number != 1 and not 0 < last < number:
            raise EncoreError(
                f"{file}:{line_number}: begins with {digits!r}; expected 1 (a new dialogue) or a number above {last}"
            )
        if number == 1:
            history = []
        last = number
        fields = [field.strip() for field in text.split("\t")]
        if text.startswith(PERSONA):
            history.append(fields[0])
            continue
        if len(fields) < 2 or not fields[0] or not fields[1]:
            raise EncoreError(
                f"{file}:{line_number}: neither {PERSONA!r} nor an utterance, a tab and its response; "
                "take ParlAI's *_self_original.txt"
            )
        history.append(fields[0])
        found.append(("\n".join(history), fields[1]))
        history.append(fields[1])
    if not found:
        raise EncoreError(f"{file}: holds no utterance with a response; take ParlAI's *_self_original.txt")
    return found

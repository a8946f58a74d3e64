"""Generation beside summarisation (Sec. 4.2, 5.3): ELI5's long answers and ConvAI2's replies as (source, target) pairs.

`module.Summarisation` trains on answers, `replies.Replies` on dialogues; `val/loss` gives a perplexity over tokens.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.errors import EncoreError
from common.formats.tokenizers import load_byte_bpe
from papers.bart.data import Pair, PairBatches, Pairs
from papers.bart.model import BOS, EOS
from papers.bart.noise import Tokens

TextPair = tuple[str, str]
PERSONA = "your persona:"


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the non-blank lines of a UTF-8 file, read one by one: ELI5 has half a gigabyte.

    Only a line feed ends a line: texts of the web hold other characters that `str.splitlines` takes for an end.
    """
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EncoreError(f"{file}: not a readable UTF-8 text ({error}); put the published file there") from None


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


class Histories(Pairs):
    """Pairs whose over-long sources lose their beginning, so that what is to be answered stays."""

    def __getitem__(self, index: int) -> Pair:
        ids = self.tokenizer.encode(self.sources[index])
        source: Tokens = np.array([BOS, *ids[max(0, len(ids) - (self.max_source - 2)) :], EOS])
        return source, super().__getitem__(index)[1]


class TextPairs(PairBatches, ABC):
    """Batches (source, target) of a directory with the two files of `names`; `test` writes for the validation file,
    since the test sets of both tasks are not public. Text stays cased and untokenised."""

    names: tuple[str, str]  # training, validation
    kind: type[Pairs] = Pairs

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
        super().__init__()
        self.path, self.tokenizer_path, self.batch_size = Path(path), tokenizer, batch_size
        self.max_source, self.max_target, self.num_workers, self.seed = max_source, max_target, num_workers, seed
        self.train: Pairs | None = None

    @abstractmethod
    def read(self, file: Path) -> list[TextPair]:
        """The (source, target) texts of a file."""

    def setup(self, stage: str | None = None) -> None:
        if self.train is None:
            self.tokenizer = load_byte_bpe(Path(self.tokenizer_path))
            self.train, self.valid = (self._pairs(self.path / name) for name in self.names)
            self.test = self.valid

    def _pairs(self, file: Path) -> Pairs:
        sources, targets = zip(*self.read(file))
        return self.kind(sources, targets, self.tokenizer, self.max_source, self.max_target)


class Answers(TextPairs):
    """ELI5 as KILT publishes it: question -> answer. The supporting documents the paper puts behind a question are not
    in these files."""

    names = ("eli5-train-kilt.jsonl", "eli5-dev-kilt.jsonl")

    def read(self, file: Path) -> list[TextPair]:
        return read_answers(file)


class Dialogues(TextPairs):
    """ConvAI2 as ParlAI publishes it: persona and dialogue so far -> response, cut from the left."""

    names = ("train_self_original.txt", "valid_self_original.txt")
    kind = Histories

    def read(self, file: Path) -> list[TextPair]:
        return read_dialogues(file)

"""Extractive question answering: SQuAD 1.1 and 2.0 as the start and the end of an answer in the context.

Start and end of an unanswerable question (2.0) are both at the row's first token.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.text import SQuAD as SQuADScore

from common.formats.labelled_text import column, local_dataset
from common.training.loaders import Loaders
from common.training.recipe import Optim, Recipe


class Question(NamedTuple):
    """ids: the row; first: position of the context's first token; spans: (context tokens, 2) characters of the context
    each one covers; start, end: token positions of the first answer, 0 when there is none."""

    ids: NDArray[np.int64]
    first: int
    spans: list[tuple[int, int]]
    context: str
    answers: list[str]
    start: int = 0
    end: int = 0

    def text(self, start: int, end: int) -> str:
        """What the tokens from start to end (inclusive, positions in the row) say; empty for "no answer"."""
        if start < self.first:
            return ""
        return self.context[self.spans[start - self.first][0] : self.spans[end - self.first][1]].strip()

    def found(self, answers: dict[str, list[Any]]) -> "Question | None":
        """The question with the tokens of its first answer, None when that is not whole within the row.

        answers: {"text": [...], "answer_start": [...]}, both empty for an unanswerable question.
        """
        question = self._replace(answers=list(answers["text"]))
        if not answers["text"]:
            return question
        begin = answers["answer_start"][0]
        stop = begin + len(answers["text"][0])
        inside = [i for i, (a, b) in enumerate(self.spans) if a < stop and b > begin]
        if not inside or self.spans[-1][1] < stop:
            return None
        return question._replace(start=self.first + inside[0], end=self.first + inside[-1])


class Batch(NamedTuple):
    """ids: (B, N); allowed: (B, N) bool, the context and the first token; start, end: (B,); and where they are from."""

    ids: Tensor
    allowed: Tensor
    start: Tensor
    end: Tensor
    questions: list[Question]


class SQuAD(Loaders):
    """SQuAD 1.1 or 2.0 from a local folder (see local_dataset) with the columns question, context and answers. A
    subclass of a paper says what a row is: `question(question, context)`, padded with `pad`.

    Training questions whose answer is cut off are left out; `skipped` counts them. In validation they stay, as ones
    that cannot be answered right.
    """

    pad: int = 0

    def __init__(self, path: str, *, batch_size: int, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.path = path

    def question(self, question: str, context: str) -> Question:
        """The row of a question and its context, without answers."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if self.train is None:
            splits = local_dataset(self.path, ("train", "validation"))
            train, valid = (self._questions(splits[split]) for split in ("train", "validation"))
            self.train = [found for _, found, _ in train if found is not None]
            self.skipped = len(train) - len(self.train)
            self.valid = [found or asked._replace(answers=texts) for asked, found, texts in valid]

    def _questions(self, split: Any) -> list[tuple[Question, Question | None, list[str]]]:
        asked = (column(split, name, self.path) for name in ("question", "context"))
        rows = zip(*asked, column(split, "answers", self.path, dict), strict=True)
        made = [(self.question(question, context), answers) for question, context, answers in rows]
        return [(row, row.found(answers), list(answers["text"])) for row, answers in made]

    def collate(self, questions: Sequence[Question]) -> Batch:
        """Questions -> a padded batch."""
        ids = torch.full((len(questions), max(len(q.ids) for q in questions)), self.pad)
        allowed = torch.zeros_like(ids, dtype=torch.bool)
        allowed[:, 0] = True
        for i, q in enumerate(questions):
            ids[i, : len(q.ids)] = torch.as_tensor(q.ids)
            allowed[i, q.first : q.first + len(q.spans)] = True
        start, end = (torch.tensor([getattr(q, name) for q in questions]) for name in ("start", "end"))
        return Batch(ids, allowed, start, end, list(questions))


class SpanExtraction(Recipe):
    """Fine-tuning of `self.model`, which a subclass builds: ids (B, N) -> (B, N, 2), the logits of start and end. The
    loss is the mean of both cross entropies; validation logs val/exact_match and val/f1 in percent."""

    model: nn.Module

    def __init__(self, optim: Optim) -> None:
        super().__init__(optim)
        self.score = SQuADScore()

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Start and end logits (B, N), impossible positions at minus infinity."""
        scores = self.model(batch.ids).masked_fill(~batch.allowed[..., None], float("-inf"))
        return scores[..., 0], scores[..., 1]

    def loss(self, batch: Batch) -> Tensor:
        start, end = self.logits(batch)
        return (F.cross_entropy(start, batch.start) + F.cross_entropy(end, batch.end)) / 2

    def answers(self, batch: Batch) -> list[str]:
        """The best span of every context, or the empty text where the first token scores at least as much."""
        start, end = self.logits(batch)
        inside = batch.allowed.clone()
        inside[:, 0] = False
        first, last = best_span(start, end, inside)
        rows = torch.arange(len(first), device=first.device)
        nothing = start[:, 0] + end[:, 0] >= start[rows, first] + end[rows, last]
        return [
            "" if none else question.text(int(i), int(j))
            for question, none, i, j in zip(batch.questions, nothing.tolist(), first, last)
        ]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        update_score(self.score, self.answers(batch), [question.answers for question in batch.questions])

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.score.compute().items()}, prog_bar=True)
        self.score.reset()


def best_span(start: Tensor, end: Tensor, valid: Tensor, max_length: int = 30) -> tuple[Tensor, Tensor]:
    """Most likely answer: start, end logits (B, N), valid (B, N) bool -> first and last position, each (B,).

    Maximises start[i] + end[j] over valid i <= j < i + max_length.
    """
    length = start.shape[1]
    i = torch.arange(length, device=start.device)
    allowed = (i[:, None] <= i[None, :]) & (i[None, :] < i[:, None] + max_length)
    allowed = allowed & valid[:, :, None] & valid[:, None, :]
    score = (start[:, :, None] + end[:, None, :]).masked_fill(~allowed, float("-inf"))
    best = score.flatten(1).argmax(dim=1)
    return best // length, best % length


def update_score(score: SQuADScore, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Adds answers to a running exact match and F1, each against the best of its references (lower case, no
    punctuation, no articles). No reference means that "no answer", the empty text, is right, as in SQuAD 2.0's script.
    """
    score.update(
        [{"id": str(i), "prediction_text": text} for i, text in enumerate(predictions)],
        [
            {"id": str(i), "answers": {"text": list(texts) or [""], "answer_start": [0]}}
            for i, texts in enumerate(references)
        ],
    )

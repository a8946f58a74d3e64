"""Extractive question answering (Sec. 3.2, 5.2): SQuAD 1.1 and 2.0 as start and end of an answer over decoder states.

A row is `<s> question </s> context </s>`. Start and end of an unanswerable question (2.0) are both at `<s>`.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import EncoreError
from common.formats.tokenizers import ByteBPE, load_byte_bpe
from common.training.loaders import train_loader
from papers.bart.data import column, local_dataset, pad
from papers.bart.interop import load_into
from papers.bart.model import BOS, EOS, PAD, BARTTokenClassifier, best_span
from papers.bart.module import SIZES, Size, decayed
from papers.bart.noise import Tokens


class Question(NamedTuple):
    """ids: the row; first: position of the context's first token; spans: (context tokens, 2) characters of the context
    each one covers; start, end: token positions of the first answer, 0 when there is none."""

    ids: Tokens
    first: int
    spans: list[tuple[int, int]]
    start: int
    end: int
    context: str
    answers: list[str]

    def text(self, start: int, end: int) -> str:
        """What the tokens from start to end (inclusive, positions in the row) say; empty for "no answer"."""
        if start < self.first:
            return ""
        return self.context[self.spans[start - self.first][0] : self.spans[end - self.first][1]].strip()


class Batch(NamedTuple):
    """ids: (B, N); allowed: (B, N) bool, the context and `<s>`; start, end: (B,); questions: where they come from."""

    ids: Tensor
    allowed: Tensor
    start: Tensor
    end: Tensor
    questions: list[Question]


def make_question(
    tokenizer: ByteBPE, question: str, context: str, answers: dict[str, list[Any]], max_length: int
) -> Question | None:
    """Encoded question, or None when the context has to be cut so short that its answer is lost.

    answers: {"text": [...], "answer_start": [...]}, both empty for an unanswerable question.
    """
    asked = tokenizer.encode(question.strip())[: max_length // 4]
    encoded = tokenizer.tokenizer.encode(" " + context, add_special_tokens=False)
    first = len(asked) + 2
    room = max_length - first - 1
    ids = np.array([BOS, *asked, EOS, *encoded.ids[:room], EOS])
    spans = [(max(a - 1, 0), b - 1) for a, b in encoded.offsets[:room]]  # without the space put before the context
    start = end = 0
    if answers["text"]:
        begin = answers["answer_start"][0]
        stop = begin + len(answers["text"][0])
        inside = [i for i, (a, b) in enumerate(spans) if a < stop and b > begin]
        if not inside or spans[-1][1] < stop:
            return None
        start, end = first + inside[0], first + inside[-1]
    return Question(ids, first, spans, start, end, context, list(answers["text"]))


def collate(questions: Sequence[Question]) -> Batch:
    """Questions -> a padded batch."""
    ids = pad([q.ids for q in questions])
    allowed = torch.zeros_like(ids, dtype=torch.bool)
    allowed[:, 0] = True
    for row, q in zip(allowed, questions):
        row[q.first : q.first + len(q.spans)] = True
    start, end = (torch.tensor([getattr(q, name) for q in questions]) for name in ("start", "end"))
    return Batch(ids, allowed, start, end, list(questions))


def answer_scores(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of the best of the reference answers, after the official normalisation (lower case, no
    punctuation, no articles). No reference means that "no answer" (the empty text) is right."""
    ours = _normalised(prediction)
    exact = best = 0.0
    for answer in answers or [""]:
        reference = _normalised(answer)
        exact = max(exact, float(ours == reference))
        common = sum((Counter(ours) & Counter(reference)).values())
        f1 = 2 * common / (len(ours) + len(reference)) if ours and reference else float(ours == reference)
        best = max(best, f1)
    return exact, best


def _normalised(text: str) -> list[str]:
    letters = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", letters).split()


class SQuAD(L.LightningDataModule):
    """SQuAD 1.1 or 2.0 from a local directory in the `datasets` library's layout (context, question, answers).

    Training questions whose answer is cut off are left out; `skipped` counts them.
    """

    def __init__(
        self,
        path: str,
        tokenizer: str,
        batch_size: int = 48,
        max_length: int = 512,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.tokenizer_path, self.batch_size = path, tokenizer, batch_size
        self.max_length, self.num_workers, self.seed = max_length, num_workers, seed
        self.train: list[Question] | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.train is None:
            splits, tokenizer = local_dataset(self.path), load_byte_bpe(Path(self.tokenizer_path))
            if not {"train", "validation"} <= splits.keys():
                raise EncoreError(f"{self.path}: needs the splits train and validation; it has {', '.join(splits)}")
            questions = self._questions(splits["train"], tokenizer)
            self.train = [q for q in questions if q is not None]
            self.skipped = len(questions) - len(self.train)
            self.valid = self._questions(splits["validation"], tokenizer, keep=True)

    def _questions(self, split: Any, tokenizer: ByteBPE, keep: bool = False) -> list[Any]:
        """With `keep`, a question whose answer is cut off stays, as one that cannot be answered right."""
        rows = zip(*(column(split, name, self.path) for name in ("question", "context", "answers")))
        made = []
        for question, context, answers in rows:
            item = make_question(tokenizer, question, context, answers, self.max_length)
            if item is None and keep:
                none: dict[str, list[Any]] = {"text": [], "answer_start": []}
                item = make_question(tokenizer, question, context, none, self.max_length)
                assert item is not None
                item = item._replace(answers=list(answers["text"]))
            made.append(item)
        return made

    def train_dataloader(self) -> DataLoader:
        assert self.train is not None
        return train_loader(
            self.train,
            self.batch_size,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=collate,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.valid, self.batch_size, collate_fn=collate)  # type: ignore[arg-type]


class SpanExtraction(L.LightningModule):
    """Fine-tuning on SQuAD: mean cross entropy of start and end. The optimizer's values are RoBERTa's for SQuAD, since
    the paper gives none."""

    def __init__(
        self,
        size: Size = "large",
        vocab_size: int = 50265,
        max_positions: int = 1024,
        checkpoint: str | None = None,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        lr: float = 1.5e-5,
        warmup_steps: int = 220,
        total_steps: int = 3650,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        bart = SIZES[size](
            vocab_size, dropout=dropout, attention_dropout=attention_dropout, max_positions=max_positions
        )
        self.model = BARTTokenClassifier(bart, num_classes=2)
        if checkpoint is not None:
            load_into(self.model, checkpoint)
        self.optimizer = {"lr": lr, "warmup_steps": warmup_steps, "total_steps": total_steps}
        self.scores: list[tuple[float, float]] = []

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Start and end logits (B, N), impossible positions at minus infinity."""
        scores = self.model(batch.ids).masked_fill(~batch.allowed[..., None], float("-inf"))
        return scores[..., 0], scores[..., 1]

    def loss(self, batch: Batch) -> Tensor:
        start, end = self.logits(batch)
        return (F.cross_entropy(start, batch.start) + F.cross_entropy(end, batch.end)) / 2

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.ids))
        return loss

    def answers(self, batch: Batch) -> list[str]:
        """The best span of every context, or the empty text where `<s>` scores at least as much."""
        start, end = self.logits(batch)
        inside = batch.allowed.clone()
        inside[:, 0] = False
        first, last = best_span(start, end, inside & batch.ids.ne(PAD))
        rows = torch.arange(len(first), device=first.device)
        nothing = start[:, 0] + end[:, 0] >= start[rows, first] + end[rows, last]
        return [
            "" if none else question.text(int(i), int(j))
            for question, none, i, j in zip(batch.questions, nothing.tolist(), first, last)
        ]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.scores += [answer_scores(text, q.answers) for text, q in zip(self.answers(batch), batch.questions)]
        self.log("val/loss", self.loss(batch), batch_size=len(batch.ids))

    def on_validation_epoch_end(self) -> None:
        exact, f1 = (100 * float(np.mean(values)) for values in zip(*self.scores))
        self.log_dict({"val/exact_match": exact, "val/f1": f1}, prog_bar=True)
        self.scores.clear()

    def configure_optimizers(self) -> Any:
        return decayed(self, **self.optimizer, betas=(0.9, 0.98), eps=1e-6)  # type: ignore[arg-type]

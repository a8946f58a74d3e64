"""The teacher of the distillation: a cross-encoder, its training, and the scores it writes for every candidate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from common.formats.wordpiece import PAD, WordPiece
from common.interop.bert import load_bert
from common.layers.bert import INIT_STD, Bert, BertMLM
from common.layers.init import init_weights
from common.training.loaders import train_loader
from papers.dupmae.collection import Collection, Passage, read_ranking
from papers.dupmae.data import Group, Ranking, pad
from papers.dupmae.module import Size, build_bert, decayed

Candidate = tuple[Passage, Passage, tuple[str, str]]  # query, passage, and the ids of both


class Pairs(NamedTuple):
    """tokens, segments: (B, N), `[CLS]` query `[SEP]` passage `[SEP]`, segment 1 from the passage on; groups: how many
    queries the rows belong to, a query's positive first; names: (query, passage) of every row when they are scored."""

    tokens: Tensor
    segments: Tensor
    groups: int
    names: list[tuple[str, str]]


class CrossEncoder(nn.Module):
    """BERT over query and passage together, a score from [CLS]."""

    def __init__(self, bert: Bert, dropout: float = 0.1) -> None:
        super().__init__()
        self.bert = bert
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Linear(bert.config["dim"], 1))
        init_weights(self.out, INIT_STD)

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """(B, N) each -> (B,) scores."""
        cls = torch.zeros(len(tokens), 1, dtype=torch.int64, device=tokens.device)
        return self.out(self.bert(tokens, tokens.ne(PAD), segments, read=cls)[:, 0])[:, 0]


class PairEncoding:
    """How a query and a passage become one row of at most `length` tokens; only the passage is cut."""

    def __init__(self, tokenizer: WordPiece, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length

    def pair(self, query: Passage, passage: Passage) -> tuple[Tensor, Tensor]:
        """Tokens and segments, (N,) each."""
        asked, title, text = self.tokenizer.encode_batch([query.text, passage.title, passage.text])
        first = [self.tokenizer.cls, *asked, self.tokenizer.sep]
        second = [*title, self.tokenizer.sep, *text] if title else text
        second = [*second[: max(self.length - len(first) - 1, 0)], self.tokenizer.sep]
        return torch.tensor(first + second), torch.tensor([0] * len(first) + [1] * len(second))

    def groups(self, items: Sequence[Group]) -> Pairs:
        """Training groups -> a batch of all their pairs."""
        rows = [self.pair(query, passage) for query, passages, _ in items for passage in passages]
        return Pairs(pad([row[0] for row in rows]), pad([row[1] for row in rows]), len(items), [])

    def candidates(self, items: Sequence[Candidate]) -> Pairs:
        """Pairs to score -> a batch."""
        rows = [self.pair(query, passage) for query, passage, _ in items]
        return Pairs(pad([row[0] for row in rows]), pad([row[1] for row in rows]), 0, [names for _, _, names in items])


class CandidatePairs(Dataset):
    """(query, passage, (query id, passage id)) of a list of names."""

    def __init__(self, collection: Collection, names: Sequence[tuple[str, str]]) -> None:
        self.collection, self.names = collection, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Candidate:
        query, passage = self.names[index]
        return self.collection.queries[query], self.collection.corpus[passage], (query, passage)


class Candidates(Ranking):
    """Training groups as pairs, and for `test` the pairs of a ranking file (the first `depth` of every query) together
    with all judged pairs of the split, which a ranking may lack. The other arguments are those of Ranking."""

    def __init__(self, *, length: int = 200, ranking: str | None = None, depth: int = 200, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length, self.ranking_file, self.depth = length, ranking, depth

    def train_dataloader(self) -> DataLoader:
        return train_loader(
            self.training_groups(),
            self.batch_size,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=PairEncoding(self.encoding.tokenizer, self.length).groups,
            num_workers=self.num_workers,
        )

    def test_dataloader(self) -> Any:
        assert self.collection is not None
        ranking = read_ranking(self.ranking_file) if self.ranking_file else {}
        names = [(q, p) for q, found in ranking.items() for p, _ in found[: self.depth]]
        names += [(q, p) for q, grades in self.collection.judged.items() for p, grade in grades.items() if grade > 0]
        return DataLoader(
            CandidatePairs(self.collection, list(dict.fromkeys(names))),
            self.eval_batch_size,
            collate_fn=PairEncoding(self.encoding.tokenizer, self.length).candidates,
            num_workers=self.num_workers,
        )


class Reranking(L.LightningModule):
    """Cross entropy of the positive within its group; `test` writes "query passage score" lines to `scores`."""

    def __init__(
        self,
        size: Size = "base",
        vocab_size: int = 30522,
        start: str | None = None,
        scores: str = "scores.txt",
        dropout: float = 0.1,
        lr: float = 1e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.008,
        total_steps: int = 125_735,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        bert = build_bert(size, vocab_size, dropout)
        if start is not None:
            load_bert(BertMLM(bert), start)
        self.model = CrossEncoder(bert, dropout)
        self.scores_file = Path(scores)
        self.optimizer = {"lr": lr, "weight_decay": weight_decay, "warmup": warmup, "total_steps": total_steps}
        self.lines: list[str] = []

    def training_step(self, batch: Pairs, batch_idx: int) -> Tensor:
        scores = self.model(batch.tokens, batch.segments).view(batch.groups, -1)
        loss = F.cross_entropy(scores, torch.zeros(batch.groups, dtype=torch.int64, device=scores.device))
        self.log("train/loss", loss, prog_bar=True, batch_size=batch.groups)
        return loss

    def test_step(self, batch: Pairs, batch_idx: int) -> None:
        scores = self.model(batch.tokens, batch.segments).tolist()
        self.lines += [f"{query}\t{passage}\t{score}\n" for (query, passage), score in zip(batch.names, scores)]

    def on_test_epoch_end(self) -> None:
        self.scores_file.parent.mkdir(parents=True, exist_ok=True)
        self.scores_file.write_text("".join(self.lines), encoding="utf-8")
        self.lines = []

    def configure_optimizers(self) -> Any:
        return decayed(self, **self.optimizer)  # type: ignore[arg-type]

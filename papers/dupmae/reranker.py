"""The teacher of the distillation: a cross-encoder, its training, and the scores it writes for every candidate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.eval.ranking_data import Group, RankingData
from common.formats.collection import Passage, read_ranking
from common.formats.text_corpus import pad
from common.formats.wordpiece import PAD
from common.interop.bert import load_bert
from common.layers.bert import INIT_STD, Bert, BertMLM
from common.layers.init import init_weights
from common.training.recipe import Optim, Recipe
from papers.dupmae.module import Size, build_bert

Names = tuple[str, str]  # ids of a query and a passage


class Pairs(NamedTuple):
    """tokens, segments: (B, N), `[CLS]` query `[SEP]` passage `[SEP]`, segment 1 from the passage on; groups: how many
    queries the rows belong to, a query's positive first; names: (query, passage) of every row when they are scored."""

    tokens: Tensor
    segments: Tensor
    groups: int = 0
    names: Sequence[Names] = ()


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


class Candidates(RankingData):
    """Training groups as pairs, and for `test` the pairs of a ranking file (the first `depth` of every query) together
    with all judged pairs of the split, which a ranking may lack. The other arguments are those of RankingData."""

    def __init__(self, *, length: int = 200, ranking: str | None = None, depth: int = 200, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length, self.ranking_file, self.depth = length, ranking, depth

    def pairs(self, pairs: Sequence[tuple[Passage, Passage]]) -> tuple[Tensor, Tensor]:
        """Tokens and segments of (query, passage) pairs, (B, N) each."""
        rows = [self.encoding.pair(query, passage, self.length) for query, passage in pairs]
        return pad([tokens for tokens, _ in rows]), pad([segments for _, segments in rows])

    def collate(self, items: Sequence[Group]) -> Pairs:
        """Training groups -> a batch of all their pairs."""
        return Pairs(*self.pairs([(query, passage) for query, group, _ in items for passage in group]), len(items))

    def candidates(self, names: Sequence[Names]) -> Pairs:
        """Pairs to score -> a batch."""
        assert self.collection is not None
        corpus, queries = self.collection.corpus, self.collection.queries
        return Pairs(*self.pairs([(queries[query], corpus[passage]) for query, passage in names]), names=names)

    def test_dataloader(self) -> Any:
        assert self.collection is not None
        ranking = read_ranking(self.ranking_file) if self.ranking_file else {}
        names = [(q, p) for q, found in ranking.items() for p, _ in found[: self.depth]]
        names += [(q, p) for q, grades in self.collection.judged.items() for p, grade in grades.items() if grade > 0]
        return self.evaluation(list(dict.fromkeys(names)), collate=self.candidates)


class Reranking(Recipe):
    """Cross entropy of the positive within its group; `test` writes "query passage score" lines to `scores`."""

    def __init__(
        self,
        optim: Optim,
        size: Size = "base",
        vocab_size: int = 30522,
        start: str | None = None,
        scores: str = "scores.txt",
        dropout: float = 0.1,
    ) -> None:
        super().__init__(optim)
        bert = build_bert(size, vocab_size, dropout)
        if start is not None:
            load_bert(BertMLM(bert), start)
        self.model = CrossEncoder(bert, dropout)
        self.scores_file = Path(scores)
        self.lines: list[str] = []

    def loss(self, batch: Pairs) -> Tensor:
        scores = self.model(batch.tokens, batch.segments).view(batch.groups, -1)
        return F.cross_entropy(scores, torch.zeros(batch.groups, dtype=torch.int64, device=scores.device))

    def test_step(self, batch: Pairs, batch_idx: int) -> None:
        scores = self.model(batch.tokens, batch.segments).tolist()
        self.lines += [f"{query}\t{passage}\t{score}\n" for (query, passage), score in zip(batch.names, scores)]

    def on_test_epoch_end(self) -> None:
        self.scores_file.parent.mkdir(parents=True, exist_ok=True)
        self.scores_file.write_text("".join(self.lines), encoding="utf-8")
        self.lines = []

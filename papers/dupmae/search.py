"""Exact search over encoded documents, and the measures of a ranking."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalMRR, RetrievalNormalizedDCG, RetrievalRecall

from common.errors import EncoreError
from papers.dupmae.retriever import Representation, scores

Judgements = Mapping[str, Mapping[str, int]]  # query -> document -> relevance; above 0 is relevant
Ranking = dict[str, list[tuple[str, float]]]  # query -> (document, score), best first


class Index:
    """Documents as their dense parts and the top-k entries of their lexical parts, kept on the CPU."""

    def __init__(self, vocab_size: int, top_k: int) -> None:
        self.vocab_size, self.top_k = vocab_size, min(top_k, vocab_size)
        self.ids: list[str] = []
        self.dense: list[Tensor] = []
        self.words: list[Tensor] = []
        self.weights: list[Tensor] = []

    def add(self, ids: Sequence[str], documents: Representation) -> None:
        """Documents in the order of `ids`; their lexical parts need not be sparse."""
        self.ids += ids
        self.dense.append(documents.dense.float().cpu())
        if self.top_k:
            top = documents.lexical.float().topk(self.top_k, dim=1)
            self.words.append(top.indices.int().cpu())
            self.weights.append(top.values.cpu())

    def search(self, queries: Representation, depth: int, chunk: int = 4096) -> tuple[Tensor, Tensor]:
        """The `depth` best documents of every query: scores and rows of the index, (Q, depth) each, best first.

        Exact: every document is scored, `chunk` of them at a time on the device of the queries.
        """
        if not self.ids:
            raise EncoreError("the index is empty: the collection has no documents")
        self._join()
        device = queries.dense.device
        queries = Representation(queries.dense.float(), queries.lexical.float())
        best = torch.empty(len(queries.dense), 0, device=device)
        rows = torch.empty(len(queries.dense), 0, dtype=torch.int64, device=device)
        for start in range(0, len(self.ids), chunk):
            part = slice(start, start + chunk)
            dense = self.dense[0][part].to(device)
            words = torch.zeros(len(dense), queries.lexical.shape[1], device=device)
            if self.top_k:
                words.scatter_(1, self.words[0][part].to(device).long(), self.weights[0][part].to(device))
            found = torch.cat([best, scores(queries, Representation(dense, words))], dim=1)
            new = torch.arange(start, start + len(dense), device=device).expand(len(found), -1)
            best, at = found.topk(min(depth, found.shape[1]), dim=1)
            rows = torch.cat([rows, new], dim=1).gather(1, at)
        return best, rows

    def _join(self) -> None:
        for parts in (self.dense, self.words, self.weights):
            if len(parts) > 1:
                parts[:] = [torch.cat(parts)]


def ranking_metrics(ranking: Ranking, judged: Judgements, recall_at: Sequence[int] = (50, 1000)) -> dict[str, float]:
    """MRR@10, MRR@100, nDCG@10 (linear gain, as trec_eval) and recall@k, fractions between 0 and 1.

    Means over the queries with a relevant document. What a ranking does not hold counts as found behind everything.
    """
    metrics = {
        "mrr@10": RetrievalMRR(top_k=10),
        "mrr@100": RetrievalMRR(top_k=100),
        "ndcg@10": RetrievalNormalizedDCG(top_k=10),
    }
    metrics |= {f"recall@{k}": RetrievalRecall(top_k=k) for k in recall_at}
    asked = [q for q in judged if any(grade > 0 for grade in judged[q].values())]
    if not asked:
        raise EncoreError("no query has a relevant document; check that the judgements belong to these queries")
    deepest = max((*recall_at, 100))
    for number, query in enumerate(asked):
        grades = [max(judged[query].get(document, 0), 0) for document, _ in ranking.get(query, [])]
        found = {document for document, _ in ranking.get(query, [])}
        lost = [grade for document, grade in judged[query].items() if grade > 0 and document not in found]
        row = torch.tensor(grades + [0] * (deepest - len(grades)) + lost)
        order = 1 / torch.arange(1, len(row) + 1)  # positive: torchmetrics takes a score of 0 or less as "not found"
        index = torch.full_like(row, number)
        for name, metric in metrics.items():
            metric.update(order, row if name.startswith("ndcg") else row > 0, indexes=index)
    return {name: metric.compute().item() for name, metric in metrics.items()}

"""Ranking: search over encoded documents, the measures of a ranking, and those of a matrix of similarities."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalMRR, RetrievalNormalizedDCG, RetrievalRecall

from common.errors import EncoreError
from common.formats.collection import Judgements, Ranking


def search(score: Callable[[slice], Tensor], count: int, depth: int, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """The `depth` best of `count` documents for every query: scores and document numbers, (Q, depth), best first.

    score: a range of documents -> (Q, n) scores. Exact: every document is scored, `chunk` of them at a time.
    """
    if not count:
        raise EncoreError("the index is empty: the collection has no documents")
    best = rows = None
    for start in range(0, count, chunk):
        found = score(slice(start, min(start + chunk, count)))
        new = torch.arange(start, start + found.shape[1], device=found.device).expand(len(found), -1)
        if best is not None and rows is not None:
            found, new = torch.cat([best, found], dim=1), torch.cat([rows, new], dim=1)
        best, at = found.topk(min(depth, found.shape[1]), dim=1)
        rows = new.gather(1, at)
    assert best is not None
    assert rows is not None
    return best, rows


def ranking_metrics(
    ranking: Ranking, judged: Judgements, recall_at: Sequence[int] = (50, 1000), shared_ids: bool = True
) -> dict[str, float]:
    """MRR@10, MRR@100, nDCG@10 (linear gain, as trec_eval) and recall@k, fractions between 0 and 1.

    Means over the queries with a relevant document. What a ranking does not hold counts as found behind everything.
    shared_ids: a document with the id of its query is the query itself and left out, as BEIR's toolkit does it; not
    where documents and queries are numbered for themselves.
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
        names = [name for name, _ in ranking.get(query, []) if not (shared_ids and name == query)]
        grades, found = [max(judged[query].get(name, 0), 0) for name in names], set(names)
        lost = [grade for name, grade in judged[query].items() if grade > 0 and name not in found]
        row = torch.tensor(grades + [0] * (deepest - len(grades)) + lost)
        order = 1 / torch.arange(1, len(row) + 1)  # positive: torchmetrics takes a score of 0 or less as "not found"
        index = torch.full_like(row, number)
        for name, metric in metrics.items():
            metric.update(order, row if name.startswith("ndcg") else row > 0, indexes=index)
    return {name: metric.compute().item() for name, metric in metrics.items()}


def ranks(similarity: Tensor, positives: Tensor | None = None) -> Tensor:
    """Rank (1 = first) of the best positive in every row, int64 (N,). similarity: (N, M).

    positives: bool (N, M), at least one in a row; default: the diagonal. A negative with equal similarity, and NaN,
    ranks before the positive, so that a collapsed model scores nothing.
    """
    if positives is None:
        if similarity.shape[0] != similarity.shape[1]:
            raise EncoreError(
                f"retrieval: similarity is {tuple(similarity.shape)}; say which pairs match with positives="
            )
        positives = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    if not positives.any(1).all():
        raise EncoreError(f"retrieval: row {int(positives.any(1).int().argmin())} has no positive")
    best = similarity.masked_fill(~positives, -torch.inf).amax(1, keepdim=True)
    return 1 + (~(similarity < best) & ~positives).sum(1)


def retrieval(
    similarity: Tensor,
    positives: Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    names: tuple[str, str] = ("image_to_text", "text_to_image"),
) -> dict[str, float]:
    """Recall@k in percent and median rank, rows to columns (names[0]) and columns to rows (names[1]).

    similarity: (N, M); positives as in `ranks`. Keys: ``image_to_text_recall@1``, ..., ``text_to_image_median_rank``.
    """
    metrics = {}
    transposed = None if positives is None else positives.T
    for name, rank in zip(names, (ranks(similarity, positives), ranks(similarity.T, transposed))):
        for k in ks:
            metrics[f"{name}_recall@{k}"] = 100 * (rank <= k).double().mean().item()
        metrics[f"{name}_median_rank"] = rank.double().quantile(0.5).item()
    return metrics

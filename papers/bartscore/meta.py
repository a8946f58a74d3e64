"""Meta-evaluation (Sec. 4): how well the scores of a metric agree with people, one protocol for each kind of data.

Everywhere `human`, `metric` are (N,) and `documents` names the document of every row; correlations lie in [-1, 1].
"""

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kendalltau, pearsonr, spearmanr

from common.errors import EncoreError
from papers.bartscore.judged import Judged, Protocol

Values = NDArray[np.float64]
Correlation = Callable[[Values, Values], float]


def spearman(human: Values, metric: Values) -> float:
    """Rank correlation of all rows pooled: data-to-text."""
    return float(spearmanr(human, metric).statistic)


def kendall(human: Values, metric: Values) -> float:
    """Kendall's tau-b of all rows pooled."""
    return float(kendalltau(human, metric).statistic)


def pearson(human: Values, metric: Values) -> float:
    """Linear correlation of all rows: QAGS."""
    return float(pearsonr(human, metric).statistic)


def rows_of(documents: Sequence[Hashable]) -> dict[Hashable, NDArray[np.intp]]:
    """{document: its rows}, in order of first appearance."""
    rows: dict[Hashable, list[int]] = {}
    for row, document in enumerate(documents):
        rows.setdefault(document, []).append(row)
    return {document: np.array(found) for document, found in rows.items()}


def by_document(correlation: Correlation, human: Values, metric: Values, documents: Sequence[Hashable]) -> float:
    """Summaries: the correlation over the systems of one document, averaged over the documents.

    Documents where people or the metric give all systems the same score say nothing and are left out. EncoreError
    when none is left.
    """
    found = [
        correlation(human[rows], metric[rows])
        for rows in rows_of(documents).values()
        if not constant(human[rows]) and not constant(metric[rows])
    ]
    if not found:
        raise EncoreError("no document where both scores differ between systems: there is nothing to correlate")
    return float(np.mean(found))


def constant(values: ArrayLike) -> bool:
    """True when all values are the same."""
    return len(np.unique(np.asarray(values))) == 1


def pairwise_accuracy(better: Values, worse: Values) -> float:
    """Rank19: share of pairs where the correct sentence scores strictly higher."""
    return float(np.mean(better > worse))


def darr_tau(better: Values, worse: Values) -> float:
    """WMT19's Kendall tau on relative rankings: (concordant - discordant) / all; a tie is discordant."""
    concordant = int((better > worse).sum())
    return (2 * concordant - len(better)) / len(better)


@dataclass(frozen=True)
class Comparison:
    """Of `draws` random subsets of the documents, how many each metric won; draws that neither wins are ties."""

    wins: int
    losses: int
    draws: int

    @property
    def verdict(self) -> int:
        """1: the first metric is significantly better, -1: the second is, 0: undecided. More than 95 % must be won."""
        return int(self.wins > 0.95 * self.draws) - int(self.losses > 0.95 * self.draws)


def subset_test(
    documents: Sequence[Hashable],
    compare: Callable[[list[Hashable]], tuple[float, float]],
    *,
    draws: int = 1000,
    share: float = 0.8,
    seed: int = 666,
) -> Comparison:
    """The paper's significance test: which of two metrics agrees better with people on random 80 % of the documents.

    compare(some documents) -> the agreement of the first and of the second metric there. The subsets are those of
    random.seed(seed) and random.shuffle on one list that stays shuffled, as in the released analysis.
    """
    generator, names = random.Random(seed), list(dict.fromkeys(documents))
    wins = losses = 0
    for _ in range(draws):
        generator.shuffle(names)
        first, second = compare(names[: int(share * len(names))])
        wins, losses = wins + (first > second), losses + (first < second)
    return Comparison(wins, losses, draws)


def compare_by_document(
    human: Values, first: Values, second: Values, documents: Sequence[Hashable], correlation: Correlation = spearman
) -> Comparison:
    """subset_test of two metrics on summaries. A document where any of the three is constant counts for neither."""
    found = {
        document: (correlation(human[rows], first[rows]), correlation(human[rows], second[rows]))
        for document, rows in rows_of(documents).items()
        if not any(constant(values[rows]) for values in (human, first, second))
    }
    if not found:
        raise EncoreError("no document where all three scores differ between systems: there is nothing to correlate")

    def compare(some: list[Hashable]) -> tuple[float, float]:
        kept = [found[document] for document in some if document in found]
        ours, theirs = np.mean(kept, axis=0) if kept else (0.0, 0.0)
        return float(ours), float(theirs)

    return subset_test(documents, compare)


def compare_rows(
    agreement: Callable[[Values, Values], float], first: tuple[Values, Values], second: tuple[Values, Values]
) -> Comparison:
    """subset_test of two metrics where every row is a document of its own: first, second are what `agreement` takes,
    (human, metric) on data-to-text and QAGS, the scores of the (better, worse) texts of pairs."""

    def compare(some: list[Hashable]) -> tuple[float, float]:
        rows = np.array(some)
        return agreement(first[0][rows], first[1][rows]), agreement(second[0][rows], second[1][rows])

    return subset_test(range(len(first[0])), compare)


def agreement(protocol: Protocol, rows: Sequence[Judged], metric: Values) -> dict[str, float]:
    """How well a metric's scores (N,) of the rows agree with people, by the protocol of their set.

    Keys: "<what people judged>/spearman", ".../kendall", ".../pearson", "accuracy", "tau"; for the readme's examples
    "<number>/score", the scores themselves. Raises EncoreError when a judgement or one of a pair is missing.
    """
    documents = [row.document for row in rows]
    if protocol.statistic == "values":
        return {f"{document}/score": float(value) for document, value in zip(documents, metric)}
    if protocol.statistic in ("accuracy", "darr"):
        better, worse = split_pairs(protocol, rows, metric)
        if protocol.statistic == "accuracy":
            return {"accuracy": pairwise_accuracy(better, worse)}
        return {"tau": darr_tau(better, worse)}
    found = {}
    for what in protocol.human:
        human = human_scores(rows, what)
        if protocol.statistic == "pearson":
            found[f"{what}/pearson"] = pearson(human, metric)
        else:
            for name, correlation in (("spearman", spearman), ("kendall", kendall)):
                pooled = protocol.statistic == "pooled"
                value = correlation(human, metric) if pooled else by_document(correlation, human, metric, documents)
                found[f"{what}/{name}"] = value
    return found


def human_scores(rows: Sequence[Judged], what: str) -> Values:
    """(N,) judgements; EncoreError when a row has none of that name."""
    absent = [row for row in rows if what not in row.scores]
    if absent:
        first = absent[0]
        raise EncoreError(f"document {first.document}, system {first.system}: nobody judged its {what!r}")
    return np.array([row.scores[what] for row in rows])


def split_pairs(protocol: Protocol, rows: Sequence[Judged], metric: Values) -> tuple[Values, Values]:
    """Scores of the better and of the worse text of every document, in one order."""
    sides = [
        {row.document: value for row, value in zip(rows, metric) if row.system == system}
        for system in (protocol.better, protocol.worse)
    ]
    if not sides[0] or sides[0].keys() != sides[1].keys():
        raise EncoreError(f"pairs need a {protocol.better!r} and a {protocol.worse!r} text in every document")
    return np.array(list(sides[0].values())), np.array([sides[1][document] for document in sides[0]])

"""The baselines that need no model, on the judged sets as released: beside the numbers of the official notebook.

One arm a metric: "unigram" (no row of the paper, but exact), "rouge", "bleu" and "chrf".
"""

from collections.abc import Callable, Sequence

import numpy as np

from common.errors import EncoreError
from common.training.run import Run
from papers.bartscore import ngram
from papers.bartscore.judged import SETS, Judged, Protocol, read_named
from papers.bartscore.meta import Values, agreement

Metrics = dict[str, float]
SMOKE_DOCUMENTS = 12


def n_gram_baselines(run: Run) -> Metrics:
    """{"<set>_<judgement>_<statistic>_<quantity>": value} of the metric run.arm; at smoke scale of a few documents."""
    arms: dict[str, Callable[[bool], Metrics]] = {"unigram": unigrams, "rouge": rouges, "bleu": bleus, "chrf": chrfs}
    if run.arm not in arms:
        raise EncoreError(f"unknown metric {run.arm!r}; one of {', '.join(arms)}")
    return arms[run.arm](run.scale == "smoke")


def rows_of(name: str, smoke: bool) -> tuple[Protocol, list[Judged]]:
    """A set as released (tokenised); at smoke scale its first documents."""
    rows = read_named(name)
    kept = set(list(dict.fromkeys(row.document for row in rows))[:SMOKE_DOCUMENTS])
    return SETS[name], [row for row in rows if row.document in kept] if smoke else rows


def largest(several: Sequence[Sequence[ngram.Overlap]], quantity: str) -> Values:
    """One quantity of every row, the largest over its references. -> (N,)"""
    return np.array([getattr(ngram.best(overlaps), quantity) for overlaps in several])


def unigrams(smoke: bool) -> Metrics:
    """Lower-cased words: recall on REALSumm, f on data-to-text, precision on QAGS."""
    quantities = {"realsumm": "recall", "bagel": "f", "sfhot": "f", "sfres": "f"}
    found: Metrics = {}
    for name, quantity in (quantities | {"qags_cnn": "precision", "qags_xsum": "precision"}).items():
        protocol, rows = rows_of(name, smoke)
        several = [[ngram.unigram(row.hypothesis, r) for r in set(row.references)] for row in rows]
        found |= _named(name, quantity, agreement(protocol, rows, largest(several, quantity)))
    return found


def rouges(smoke: bool) -> Metrics:
    """ROUGE-1, -2, -L: recall on REALSumm, f on Rank19, QAGS-CNN and BAGEL."""
    found: Metrics = {}
    for name, quantity in {"realsumm": "recall", "rank19": "f", "qags_cnn": "f", "bagel": "f"}.items():
        protocol, rows = rows_of(name, smoke)
        several = [[ngram.rouge(row.hypothesis, r) for r in set(row.references)] for row in rows]
        for kind in ("rouge1", "rouge2", "rougeL"):
            values = largest([[scores[kind] for scores in one] for one in several], quantity)
            found |= _named(name, f"{kind}_{quantity}", agreement(protocol, rows, values))
    return found


def bleus(smoke: bool) -> Metrics:
    """BLEU of one sentence on WMT19 kk-en."""
    return translations(ngram.sentence_bleu, smoke)


def chrfs(smoke: bool) -> Metrics:
    """chrF2 of one sentence on WMT19 kk-en."""
    return translations(ngram.chrf, smoke)


def translations(of: Callable[[str, str], float], smoke: bool) -> Metrics:
    """A metric of one sentence on all pairs, and on those whose reference has 15 to 25 words (as in the notebook)."""
    protocol, rows = rows_of("kk_en", smoke)
    values = np.array([of(row.hypothesis, row.references[0]) for row in rows])
    found = _named("kk_en", "all", agreement(protocol, rows, values))
    middle = [i for i, row in enumerate(rows) if 15 <= len(row.references[0].split(" ")) <= 25]
    if middle:
        found |= _named("kk_en", "15_25", agreement(protocol, [rows[i] for i in middle], values[middle]))
    return found


def _named(name: str, quantity: str, found: Metrics) -> Metrics:
    return {f"{name}_{what.replace('/', '_')}_{quantity}": value for what, value in found.items()}

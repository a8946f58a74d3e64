"""The baselines that count n-grams, as the paper ran them: overlap of words, ROUGE, BLEU and chrF of one sentence.

ROUGE is rouge-score's with stemming (the paper: the Perl script), chrF sacreBLEU's. BLEU is that of the paper's
sacreBLEU 1.5: later ones, the installed one too, give 0 where no word is shared at all.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a


class Overlap(NamedTuple):
    """Precision, recall and their harmonic mean, 0 to 1."""

    precision: float
    recall: float
    f: float


def overlap(hypothesis: Counter, reference: Counter) -> Overlap:
    """Overlap of two bags of n-grams."""
    common = sum((hypothesis & reference).values())
    precision = common / max(sum(hypothesis.values()), 1)
    recall = common / max(sum(reference.values()), 1)
    return Overlap(precision, recall, 2 * precision * recall / (precision + recall) if common else 0.0)


def unigram(hypothesis: str, reference: str) -> Overlap:
    """Overlap of lower-cased words between spaces."""
    return overlap(Counter(hypothesis.lower().split()), Counter(reference.lower().split()))


@cache
def _rouge_scorer() -> RougeScorer:
    return RougeScorer(["rouge1", "rouge2", "rougeLsum"], use_stemmer=True)


def rouge(hypothesis: str, reference: str) -> dict[str, Overlap]:
    """ROUGE-1, -2 and -L of lower-cased tokenised texts, with stemming: {"rouge1": ..., "rouge2": ..., "rougeL": ...}.

    ROUGE-L is that of whole summaries; as in the released code a sentence ends at " . ".
    """
    ours, theirs = (text.lower().replace(" . ", " .\n") for text in (hypothesis, reference))
    scores = _rouge_scorer().score(theirs, ours)
    return {kind.removesuffix("sum"): Overlap(s.precision, s.recall, s.fmeasure) for kind, s in scores.items()}


def best(of: Sequence[Overlap]) -> Overlap:
    """The largest of each quantity by itself, over several references (data-to-text)."""
    return Overlap(*(max(values) for values in zip(*of)))


def chrf(hypothesis: str, reference: str) -> float:
    """chrF2 of one sentence, 0 to 1."""
    return _chrf().sentence_score(hypothesis, [reference]).score / 100


def sentence_bleu(hypothesis: str, reference: str) -> float:
    """BLEU-4 of one sentence, 0 to 1: mteval-v13a tokens, an empty order counts 1/2, 1/4, ... of one n-gram (`exp`
    smoothing); 0 for fewer than four tokens."""
    ours, theirs = (_tokens(text) for text in (hypothesis, reference))
    if len(ours) < 4:
        return 0.0
    log_precision, misses = 0.0, 0
    for n in range(1, 5):
        total = len(ours) - n + 1
        common = sum((_grams(ours, n) & _grams(theirs, n)).values())
        misses += not common
        log_precision += math.log(common / total if common else 0.5**misses / total) / 4
    return math.exp(log_precision + min(0.0, 1 - len(theirs) / len(ours)))


_chrf, _tokenizer = cache(CHRF), cache(Tokenizer13a)


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(_tokenizer()(text).split())


def _grams(text: tuple[str, ...], n: int) -> Counter:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))

"""ROUGE of generated summaries."""

from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer

from common.errors import EncoreError


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 in percent of ROUGE-1, -2, -L and -Lsum, with Porter stemming.

    Sentences of one text are separated by newlines (only -Lsum sees them). Follows the Perl script ROUGE-1.5.5 closely,
    not exactly.
    """
    if len(predictions) != len(references) or not predictions:
        raise EncoreError(f"rouge: {len(predictions)} predictions for {len(references)} references")
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    scores = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references)]
    return {kind: 100 * sum(score[kind].fmeasure for score in scores) / len(scores) for kind in kinds}

"""Figures that follow from the method, computed with the code that scores and tunes; named in paper.yaml."""

import torch

from papers.bart.model import BOS, EOS
from papers.bartscore.model import bartscore_tiny
from papers.bartscore.prompts import REFERENCE_PROMPTS, SOURCE_PROMPTS, TRANSLATION_PROMPTS


def prompts(kind: str) -> int:
    """How many different prompts there are for "source", "reference" or "translation"."""
    return len(
        set({"source": SOURCE_PROMPTS, "reference": REFERENCE_PROMPTS, "translation": TRANSLATION_PROMPTS}[kind])
    )


def tuning_steps(pairs: int, epochs: int = 3, batch_size: int = 20) -> int:
    """Steps over which the official script lets the learning rate fall to zero."""
    return epochs * (pairs // batch_size + 1)


def uniform_score(vocab_size: int) -> float:
    """The score of any text under a model that finds all tokens equally likely: -ln V."""
    with torch.device("cpu"), torch.no_grad():
        scorer = bartscore_tiny(vocab_size).eval()
        scorer.bart.tokens.weight.zero_()
        ids = torch.tensor([[BOS, 7, 9, 8, EOS]])
        return float(scorer(ids, ids[:, [0, 2, 4]]))

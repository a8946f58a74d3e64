"""From texts to BARTScores: batches, the perspectives of Sec. 3.2, several references, and prompts (Sec. 3.3)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import EncoreError
from common.formats.tokenizers import ByteBPE
from papers.bart.data import pad, wrap
from papers.bartscore.judged import Judged, Protocol
from papers.bartscore.model import BARTScorer
from papers.bartscore.prompts import (
    REFERENCE_PROMPTS,
    SOURCE_PROMPTS,
    TRANSLATION_PROMPTS,
    decoder_side,
    encoder_side,
)

Values = NDArray[np.float64]
Score = Callable[[Sequence[str], Sequence[str]], Values]  # sources, targets -> BARTScore of every pair
Quantities = dict[str, Values]
Aggregate = Literal["mean", "max"]
Side = Literal["encoder", "decoder"]


class TextScorer:
    """A BARTScorer on texts: `<s> text </s>`, cut to max_length tokens with `</s>` kept, padded on the right.

    Always in evaluation mode and without gradient. Pairs go through the model once each, sorted by length.
    """

    def __init__(self, model: BARTScorer, tokenizer: ByteBPE, max_length: int = 1024, batch_size: int = 4) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_length, self.batch_size = max_length, batch_size

    @torch.no_grad()
    def __call__(self, sources: Sequence[str], targets: Sequence[str]) -> Values:
        """sources, targets: N texts each -> (N,) scores in nats a token."""
        check_texts(sources, targets)
        place = {pair: i for i, pair in enumerate(dict.fromkeys(zip(sources, targets)))}
        x, y = (wrap(self.tokenizer, list(texts), self.max_length) for texts in zip(*place))
        order = sorted(range(len(place)), key=lambda i: len(x[i]) + len(y[i]))
        scores, training = np.empty(len(place)), self.model.training
        device = self.model.bart.tokens.weight.device
        self.model.eval()
        try:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                source, target = (pad([rows[i] for i in batch]).to(device) for rows in (x, y))
                scores[batch] = self.model(source, target).double().cpu().numpy()
        finally:
            self.model.train(training)
        return scores[[place[pair] for pair in zip(sources, targets)]]


def check_texts(sources: Sequence[str], targets: Sequence[str]) -> None:
    """EncoreError unless there are as many sources as targets, at least one, and all of them are texts."""
    if isinstance(sources, str) or isinstance(targets, str) or len(sources) != len(targets) or not sources:
        raise EncoreError(f"{len(sources)} sources for {len(targets)} targets; give two lists of texts of one length")
    for i, text in enumerate((*sources, *targets)):
        if not isinstance(text, str):
            side = "source" if i < len(sources) else "target"
            raise EncoreError(f"{side} {i % len(sources)} is {text!r}, not a text")


def aggregated(values: Values, owner: NDArray[np.intp], how: Aggregate) -> Values:
    """Mean or maximum of the values (N,) of each owner 0 .. K - 1, every one of which has some. -> (K,)"""
    if how == "max":
        out = np.full(owner.max() + 1, -np.inf)
        np.maximum.at(out, owner, values)
        return out
    return np.bincount(owner, values) / np.bincount(owner)


def multi_reference(score: Score, sources: Sequence[str], targets: Sequence[Sequence[str]], how: Aggregate) -> Values:
    """Scores of every source to its several targets, their mean or maximum. -> (N,)"""
    flat, owner = _flattened(targets)
    return aggregated(score([sources[i] for i in owner], flat), owner, how)


def _flattened(several: Sequence[Sequence[str]]) -> tuple[list[str], NDArray[np.intp]]:
    empty = [i for i, texts in enumerate(several) if isinstance(texts, str) or not texts]
    if empty:
        raise EncoreError(f"text {empty[0]} has no list of references; give at least one reference for each")
    return [text for texts in several for text in texts], np.repeat(np.arange(len(several)), [len(t) for t in several])


def perspectives(reference_score: Score, examples: Sequence[Judged], how: Aggregate) -> Quantities:
    """precision (reference -> hypothesis), recall (hypothesis -> reference), f and harm of every example, (N,) each.

    f is (P + R) / 2; harm is P R / (P + R), without the 2 of a harmonic mean, as in the released code. Over several
    references "mean" averages P and R and takes f and harm of the averages; "max" takes the largest of each of the
    four by itself, so that the best P and the best f may come from different references.
    """
    references, owner = _flattened([example.references for example in examples])
    hypotheses = [examples[i].hypothesis for i in owner]
    p, r = reference_score(references, hypotheses), reference_score(hypotheses, references)
    if how == "mean":
        p, r = (aggregated(values, owner, "mean") for values in (p, r))
    found = {"precision": p, "recall": r, "f": (p + r) / 2, "harm": p * r / (p + r)}
    return found if how == "mean" else {name: aggregated(v, owner, "max") for name, v in found.items()}


def faithfulness(source_score: Score, examples: Sequence[Judged]) -> Values:
    """Source -> hypothesis: factuality, coherence, fluency, relevance (Sec. 3.2)."""
    return source_score([example.source for example in examples], [example.hypothesis for example in examples])


def prompted(score: Score, prompt: str, side: Side) -> Score:
    """The same score with a prompt behind every source (encoder) or before every target (decoder)."""
    if side == "encoder":
        return lambda sources, targets: score([encoder_side(text, prompt) for text in sources], targets)
    return lambda sources, targets: score(sources, [decoder_side(text, prompt) for text in targets])


def averaged(found: Iterable[Quantities]) -> Quantities:
    """Every quantity averaged over prompts."""
    several = list(found)
    return {name: np.mean([one[name] for one in several], axis=0) for name in several[0]}


def judge(score: Score, examples: Sequence[Judged], protocol: Protocol, side: Side | None = None) -> Quantities:
    """All quantities that a protocol asks for; with a side, each one averaged over the prompts of that side."""
    between = REFERENCE_PROMPTS if protocol.prompts == "reference" else TRANSLATION_PROMPTS
    with_prompts = [score] if side is None else [prompted(score, prompt, side) for prompt in between]
    found = averaged(perspectives(one, examples, protocol.aggregate) for one in with_prompts)
    if protocol.from_source:
        announced = [score] if side is None else [prompted(score, prompt, side) for prompt in SOURCE_PROMPTS]
        found["faithfulness"] = np.mean([faithfulness(one, examples) for one in announced], axis=0)
    return found

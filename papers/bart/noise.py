"""The noise functions of BART (Sec. 2.2), on one block of token ids `<s> ... </s>` at a time.

All of them take and return a 1-d int64 array, keep its first and last token in place, and draw from a numpy Generator.
Lengths of text infilling are counted in words, as in the released code, although the paper says tokens.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Flags = NDArray[np.bool_]
FIRST_TEXT_ID = 4  # ids 0-3 are <s> <pad> </s> <unk>


@dataclass(frozen=True)
class Vocabulary:
    """What the noise must know of a tokenizer. word_start, full_stop: (V,) bool over ids; mask: the id of `<mask>`."""

    word_start: Flags
    full_stop: Flags
    mask: int


@dataclass(frozen=True)
class Noise:
    """A composition of noise functions in the released code's order: sentence permutation, then spans, then rotation.

    spans: what happens to a fraction `ratio` of the block: "infilling" (words, whole spans become one mask), "masking"
        (single tokens become masks), "deletion" (single tokens vanish) or "none".
    poisson_lambda: mean span length of infilling, in words. The paper says 3; the arguments posted later say 3.5.
    random_ratio: fraction of masks that become a random token instead (0 in the paper, 0.1 in the posted arguments).
    permute_ratio: fraction of a block's sentences that change places among themselves.
    rotate_ratio: probability that a block is rotated.
    """

    spans: Literal["infilling", "masking", "deletion", "none"] = "infilling"
    ratio: float = 0.3
    poisson_lambda: float = 3.0
    random_ratio: float = 0.0
    permute_ratio: float = 1.0
    rotate_ratio: float = 0.0
    seed: int = 0

    def __call__(self, tokens: Tokens, vocabulary: Vocabulary, *, epoch: int, index: int) -> Tokens:
        """The corrupted block: a pure function of (seed, epoch, index) and the block, new in every epoch."""
        rng = np.random.default_rng([self.seed, epoch, index])
        if self.permute_ratio > 0:
            tokens = permute_sentences(tokens, vocabulary.full_stop[tokens], self.permute_ratio, rng)
        if self.spans == "infilling":
            tokens = infill(tokens, vocabulary, self.ratio, self.poisson_lambda, rng, self.random_ratio)
        elif self.spans == "masking":
            tokens = mask_tokens(tokens, vocabulary, self.ratio, rng, self.random_ratio)
        elif self.spans == "deletion":
            tokens = delete_tokens(tokens, self.ratio, rng)
        if rng.random() < self.rotate_ratio:
            tokens = rotate(tokens, rng)
        return tokens


def budget(ratio: float, count: int) -> int:
    """ceil(ratio * count), without the ceiling seeing rounding errors such as 0.55 * 20 = 11.000000000000002."""
    return min(count, math.ceil(ratio * count - 1e-9))


def mask_tokens(
    tokens: Tokens, vocabulary: Vocabulary, ratio: float, rng: np.random.Generator, random_ratio: float = 0.0
) -> Tokens:
    """Token masking: ceil(ratio * n) of the n inner tokens, each replaced by one mask (as in BERT)."""
    chosen = 1 + rng.permutation(len(tokens) - 2)[: budget(ratio, len(tokens) - 2)]
    result = tokens.copy()
    result[chosen] = _masks(len(chosen), vocabulary, random_ratio, rng)
    return result


def delete_tokens(tokens: Tokens, ratio: float, rng: np.random.Generator) -> Tokens:
    """Token deletion: ceil(ratio * n) of the n inner tokens vanish; the model must find out where."""
    gone = 1 + rng.permutation(len(tokens) - 2)[: budget(ratio, len(tokens) - 2)]
    return np.delete(tokens, gone)


@lru_cache
def span_length_table(poisson_lambda: float) -> tuple[float, ...]:
    """Poisson probabilities of k = 0, 1, ... up to and including the first one under 1e-7 (18 entries for lambda 3)."""
    table = [math.exp(-poisson_lambda)]
    while table[-1] >= 1e-7 and len(table) < 128:
        table.append(table[-1] * poisson_lambda / len(table))
    return tuple(table)


def draw_span_lengths(words: int, poisson_lambda: float, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """Span lengths that add up to `words` exactly, the last one trimmed, and how many zero-length spans came between.

    Returns the positive lengths (their order is random) and the number of zeros.
    """
    cumulative = np.cumsum(span_length_table(poisson_lambda))
    lengths = np.empty(0, dtype=np.int64)
    while lengths.sum() < words:
        draws = np.searchsorted(cumulative, rng.random(words) * cumulative[-1], side="right")
        lengths = np.concatenate([lengths, draws])
    total = np.cumsum(lengths)
    last = int(np.searchsorted(total, words))  # the first prefix that reaches the budget
    lengths = lengths[: last + 1]
    lengths[-1] -= total[last] - words
    positive = lengths[lengths > 0]
    return positive, len(lengths) - len(positive)


def infill(
    tokens: Tokens,
    vocabulary: Vocabulary,
    ratio: float,
    poisson_lambda: float,
    rng: np.random.Generator,
    random_ratio: float = 0.0,
) -> Tokens:
    """Text infilling: spans of Poisson length, ceil(ratio * words) words in all, each replaced by ONE mask.

    A span starts at a random word start and runs up to the start of the word after it, so all pieces of its words go;
    it stops before `</s>`. Spans may run into one another; a head inside another span vanishes with it. Spans of length
    zero remove nothing and add a mask at a random place, on top of the budget.
    """
    is_start = vocabulary.word_start[tokens]
    is_start[[0, -1]] = False
    starts = np.flatnonzero(is_start)
    words = budget(ratio, len(starts))
    if words == 0:
        return tokens
    lengths, inserts = draw_span_lengths(words, poisson_lambda, rng)
    first_word = rng.permutation(len(starts))[: len(lengths)]
    boundaries = np.append(starts, np.full(lengths.max(), len(tokens) - 1))  # spans past the last word end at </s>
    heads, ends = starts[first_word], boundaries[first_word + lengths]
    change = np.zeros(len(tokens) + 1, dtype=np.int64)  # +1 where a removed stretch begins, -1 where it ends
    np.add.at(change, heads + 1, 1)
    np.add.at(change, ends, -1)
    result = tokens.copy()
    result[heads] = _masks(len(heads), vocabulary, random_ratio, rng)
    result = result[np.cumsum(change[:-1]) == 0]
    return insert_masks(result, inserts, vocabulary, rng, random_ratio)


def insert_masks(
    tokens: Tokens, count: int, vocabulary: Vocabulary, rng: np.random.Generator, random_ratio: float = 0.0
) -> Tokens:
    """`count` masks at random places between the first and the last token; the others keep their order.

    Of inserted masks ceil(random_ratio * count) are random tokens, while those that replace words are so by chance, one
    by one: the released code draws the two in these ways.
    """
    length = len(tokens) + count
    places = 1 + rng.permutation(length - 2)[:count]
    result = np.empty(length, dtype=np.int64)
    result[places] = vocabulary.mask
    if random_ratio > 0:
        random = places[: budget(random_ratio, count)]
        result[random] = _random_tokens(len(random), vocabulary, rng)
    result[np.delete(np.arange(length), places)] = tokens
    return result


def permute_sentences(tokens: Tokens, full_stop: Flags, ratio: float, rng: np.random.Generator) -> Tokens:
    """Sentence permutation: ceil(ratio * S) of the S sentences change places among themselves.

    full_stop: (N,) bool. A sentence ends at a full stop whose predecessor is none; the last inner token counts as a
    full stop. (So when a block ends in two full stops, the second one stays where it is, as in the released code.)
    """
    stop = full_stop.copy()
    stop[-2] = True
    ends = np.flatnonzero(stop[1:-1] & ~stop[:-2]) + 2  # exclusive
    chosen = rng.permutation(len(ends))[: budget(ratio, len(ends))]
    order = np.arange(len(ends))
    order[chosen] = rng.permutation(chosen)
    begins = np.concatenate([[1], ends[:-1]]).astype(np.int64)
    sentences = [tokens[begins[i] : ends[i]] for i in order]
    return np.concatenate([tokens[:1], *sentences, tokens[ends[-1] if len(ends) else 1 :]])


def rotate(tokens: Tokens, rng: np.random.Generator) -> Tokens:
    """Document rotation: a token is drawn uniformly and the inside of the block is turned to begin with it."""
    offset = rng.integers(1, max(2, len(tokens)))
    return np.concatenate([tokens[:1], tokens[offset:-1], tokens[1:offset], tokens[-1:]])


def _masks(count: int, vocabulary: Vocabulary, random_ratio: float, rng: np.random.Generator) -> Tokens:
    """`count` mask ids, each one replaced by a random text token with probability random_ratio."""
    ids = np.full(count, vocabulary.mask, dtype=np.int64)
    if random_ratio > 0:
        random = rng.random(count) < random_ratio
        ids[random] = _random_tokens(int(random.sum()), vocabulary, rng)
    return ids


def _random_tokens(count: int, vocabulary: Vocabulary, rng: np.random.Generator) -> Tokens:
    return rng.integers(FIRST_TEXT_ID, len(vocabulary.word_start), size=count)


def poisson_probability(k: int, poisson_lambda: float = 3.0) -> float:
    """Probability of a span of k words before normalisation (for the facts)."""
    return span_length_table(poisson_lambda)[k]


def poisson_entries(poisson_lambda: float = 3.0) -> int:
    """How many lengths the truncated table holds (for the facts)."""
    return len(span_length_table(poisson_lambda))


def poisson_missing_mass(poisson_lambda: float = 3.0) -> float:
    """How much probability the truncation leaves out (for the facts)."""
    return 1.0 - math.fsum(span_length_table(poisson_lambda))

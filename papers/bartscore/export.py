"""The encoder of a BARTScore scorer to use elsewhere: a BART."""

from typing import ClassVar

from papers.bart.export import BARTEncoder


class BARTScoreEncoder(BARTEncoder):
    """Batches are token ids (B, N) int64, as for BART: padding id 1, tokens (B, N, D), pooled (B, D) their mean."""

    prefixes: ClassVar[tuple[str, ...]] = ("scorer.bart.",)


ENCODER = BARTScoreEncoder

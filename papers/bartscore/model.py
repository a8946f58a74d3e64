"""BARTScore (Sec. 3): BART as a judge. Nothing is added to BART and nothing is trained at scoring time."""

import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import EncoreError
from papers.bart.model import BART, PAD, bart_large, bart_large_cnn, bart_tiny, shift_right


class BARTScorer(nn.Module):
    """How probable a target is for a BART that reads a source (Eq. 3), in nats a token: 0 is certain, below is less.

    The weights of the tokens are uniform, 1 / m, as in all of the paper's experiments.
    """

    def __init__(self, bart: BART) -> None:
        super().__init__()
        self.bart = bart

    def log_probabilities(self, source: Tensor, target: Tensor) -> Tensor:
        """log p(y_t | y_<t, x) of every target token, 0 at padding. source (B, N), target (B, T) ids -> (B, T).

        `<s>` is the first target token: the decoder reads `</s>` before it.
        """
        hidden, real = self.bart(source, shift_right(target)), target.ne(PAD)
        result = hidden.new_zeros(target.shape)
        result[real] = -F.cross_entropy(self.bart.logits(hidden[real]), target[real], reduction="none").to(result.dtype)
        return result

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """BARTScore(x -> y): the mean of log_probabilities over the m real tokens of each target. -> (B,)

        m counts `<s>`, the pieces and `</s>`.
        """
        lengths = target.ne(PAD).sum(dim=1)
        if not bool(lengths.all()):
            raise EncoreError("a target has no token at all; wrap every text in <s> and </s>, an empty one too")
        return self.log_probabilities(source, target).sum(dim=1) / lengths


def bartscore() -> BARTScorer:
    """The plain scorer on bart-large."""
    return BARTScorer(bart_large())


def bartscore_cnn() -> BARTScorer:
    """`+CNN`, on the checkpoint for CNN/DailyMail. `+CNN+Para` is this one, tuned further."""
    return BARTScorer(bart_large_cnn())


def bartscore_tiny(vocab_size: int = 600, dropout: float = 0.0, max_positions: int = 64) -> BARTScorer:
    """2 + 2 layers, width 96: the size of our small-scale claims."""
    return BARTScorer(bart_tiny(vocab_size, max_positions, dropout=dropout))

"""ConvAI2 (Sec. 5.3, Table 4): replies, measured by the F1 of their words and by perplexity over words."""

import math

from torch import Tensor

from papers.bart.model import PAD
from papers.bart.module import Summarisation
from papers.bart.squad import answer_scores


class Replies(Summarisation):
    """Fine-tuning on (persona and dialogue, reply) pairs.

    `test` logs test/f1, the mean over replies of the F1 of their words in percent (lower case, no punctuation, no
    articles), and test/perplexity: e to the nats of all tokens of the references over their words, each reply's end
    counted as one word. A word between spaces may be several tokens.
    """

    nats, words = 0.0, 0

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        source, target = batch
        self.nats += self.model.loss(source, target).item() * int(target.ne(PAD).sum())
        self.words += sum(len(reference.split()) + 1 for _, reference in self.written[-len(target) :])

    def on_test_epoch_end(self) -> None:
        f1 = [answer_scores(ours, [reference])[1] for ours, reference in self.written]
        self.log_dict({"test/f1": 100 * sum(f1) / len(f1), "test/perplexity": math.exp(self.nats / self.words)})
        self.written.clear()
        self.nats, self.words = 0.0, 0

"""Writing with BART: beam search over the decoder with a key/value cache."""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.eval.decoding import beam_search
from papers.bart.model import BART, BOS, EOS, PAD, BARTTranslator


@dataclass(frozen=True)
class Decoding:
    """How to search. Lengths count what is generated: `<s>`, the text and `</s>`.

    length_penalty: exponent of the length that divides a summed log-probability; above 1 favours long texts.
    no_repeat_ngram: no n-gram of that size comes twice; 0 allows all.
    force_bos: the first token is `<s>`, as every training target begins. force_eos: the last one is `</s>`.
    early_stopping: stop at `beam` finished texts instead of when no running one can get better.
    """

    beam: int = 1
    max_length: int = 128
    min_length: int = 0
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    force_bos: bool = True
    force_eos: bool = False
    early_stopping: bool = False


# The released settings: lengths 55..140 and 10..60 there leave out </s>.
CNN_DM = Decoding(
    beam=4, max_length=141, min_length=56, length_penalty=2.0, no_repeat_ngram=3, force_eos=True, early_stopping=True
)
XSUM = Decoding(
    beam=6, max_length=61, min_length=11, length_penalty=1.0, no_repeat_ngram=3, force_eos=True, early_stopping=True
)


@torch.no_grad()
def generate(model: BART | BARTTranslator, source: Tensor, how: Decoding = Decoding()) -> tuple[Tensor, Tensor]:
    """source: (B, N) ids -> the best text of every row (B, L), `<pad>` after `</s>`, and its length-normalised score
    (B,).

    beam=1 is greedy. The encoder runs once; each step computes one new token per hypothesis.
    """
    bart = model if isinstance(model, BART) else model.bart
    memory = model.encode(source).repeat_interleave(how.beam, dim=0)
    valid = source.ne(PAD).repeat_interleave(how.beam, dim=0)
    cache = bart.decoder.blocks.make_cache()

    def step(prefix: Tensor) -> Tensor:
        hidden = bart.decode(prefix[:, -1:], memory, valid, cache)
        return bart.logits(hidden[:, -1]).log_softmax(dim=-1)

    def reorder(indices: Tensor) -> None:
        for layer in cache:
            layer.reorder(indices)

    found = beam_search(
        step,
        reorder,
        start=source.new_full((len(source),), EOS),
        beam=how.beam,
        max_length=how.max_length,
        min_length=how.min_length,
        eos=EOS,
        pad=PAD,
        length_penalty=how.length_penalty,
        no_repeat_ngram=how.no_repeat_ngram,
        force_first=BOS if how.force_bos else None,
        force_eos=how.force_eos,
        early_stopping=how.early_stopping,
    )
    return found.tokens, found.scores

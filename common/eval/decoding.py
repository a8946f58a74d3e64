"""Beam search over any step function: words of a vocabulary (BART) or positions of an input (Pointer Networks)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NEVER = float("-inf")


class Decoded(NamedTuple):
    """tokens: (B, L), the best sequence of every row without its start token, `pad` after the end; includes the end
    token.
    scores: (B,), its summed log-probability divided by length ** length_penalty."""

    tokens: Tensor
    scores: Tensor


def beam_search(
    step: Callable[[Tensor], Tensor],
    reorder: Callable[[Tensor], None],
    *,
    start: Tensor,
    beam: int,
    max_length: int,
    eos: int,
    pad: int,
    length_penalty: float = 1.0,
    min_length: int = 0,
    no_repeat_ngram: int = 0,
    force_first: int | None = None,
    force_eos: bool = False,
    allowed: Callable[[Tensor], Tensor] | None = None,
    early_stopping: bool = False,
) -> Decoded:
    """The best continuation of each row's start token; beam=1 is greedy search.

    step(prefix): prefix (B * beam, t), start token first, -> log-probabilities (B * beam, V) of the next token. Rows
    of one
        input stand together, so encoder states are to be repeated with repeat_interleave(beam). step may keep a cache;
    reorder(indices): is called after every step with the (B * beam,) rows that go on, for that cache.
    start: (B,) first tokens. max_length and min_length count what is generated, the end token included.
    length_penalty: the exponent of the length by which summed log-probabilities are divided: above 1 favours long
    outputs.
    no_repeat_ngram: no n-gram of that size (the start token included) is produced twice.
    force_first: the only token allowed at the first step; force_eos: only `eos` is allowed at the last one.
    allowed(prefix) -> (B * beam, V) bool masks impossible tokens. Probabilities are not renormalised after masking.
    early_stopping: stop a row at `beam` finished sequences, else when no running one can beat the worst of them at the
        current length.
    """
    batch, device = start.shape[0], start.device
    rows = torch.arange(batch, device=device)
    prefix = start[:, None, None].expand(batch, beam, 1)
    scores = torch.full((batch, beam), NEVER, device=device)
    scores[:, 0] = 0.0
    best = torch.full((batch, beam, max_length), pad, dtype=start.dtype, device=device)
    best_scores = torch.full((batch, beam), NEVER, device=device)
    running = torch.ones(batch, dtype=torch.bool, device=device)

    for t in range(1, max_length + 1):
        flat = prefix.flatten(0, 1)
        logp = step(flat).float()
        vocabulary = logp.shape[-1]
        mask = _impossible(flat, t, vocabulary, eos, min_length, no_repeat_ngram, force_first)
        if allowed is not None:
            mask |= ~allowed(flat)
        if force_eos and t == max_length:
            mask = (torch.arange(vocabulary, device=device) != eos).expand_as(mask)
        total = scores[..., None] + logp.masked_fill(mask, NEVER).unflatten(0, (batch, beam))
        top, index = total.flatten(1).topk(min(2 * beam, beam * vocabulary))
        origin, token = index // vocabulary, index % vocabulary
        candidates = torch.cat([prefix[rows[:, None], origin], token[..., None].to(prefix.dtype)], dim=-1)
        ends = (token == eos) | (t == max_length)

        # Finished: among the `beam` best candidates only; merged with what finished before.
        done = top[:, :beam] / t**length_penalty
        done = done.masked_fill(~(ends[:, :beam] & running[:, None]), NEVER)
        padded = torch.nn.functional.pad(candidates[:, :beam, 1:], (0, max_length - t), value=pad)
        best_scores, order = torch.cat([best_scores, done], dim=1).topk(beam)
        best = torch.cat([best, padded], dim=1)[rows[:, None], order]
        if t == max_length:
            break

        scores, order = top.masked_fill(ends, NEVER).topk(beam)
        prefix = candidates[rows[:, None], order]
        reorder((rows[:, None] * beam + origin[rows[:, None], order]).flatten())
        full = (best_scores > NEVER).all(dim=1)
        hopeless = scores[:, 0] / t**length_penalty <= best_scores[:, -1]
        running = running & (scores[:, 0] > NEVER) & ~(full & (hopeless | early_stopping))
        if not running.any():
            break
    return Decoded(best[:, 0], best_scores[:, 0])


def _impossible(
    prefix: Tensor, t: int, vocabulary: int, eos: int, min_length: int, ngram: int, force_first: int | None
) -> Tensor:
    """(rows, V) bool, True where the next token must not be."""
    mask = torch.zeros(prefix.shape[0], vocabulary, dtype=torch.bool, device=prefix.device)
    if t == 1 and force_first is not None:
        mask[:] = True
        mask[:, force_first] = False
        return mask
    if t < min_length:
        mask[:, eos] = True
    if ngram and prefix.shape[1] >= ngram:
        grams = prefix.unfold(1, ngram, 1)
        current = prefix[:, prefix.shape[1] - ngram + 1 :]
        repeats = (grams[..., :-1] == current[:, None]).all(dim=-1)
        row, where = repeats.nonzero(as_tuple=True)
        mask[row, grams[row, where, -1]] = True
    return mask

"""Beam search against exhaustive search and against transformers."""

import itertools

import pytest
import torch

from common.eval.decoding import beam_search

VOCABULARY, EOS, PAD = 5, 4, -1


def table_model(seed: int):
    """Log-probabilities that depend on the last two tokens: small enough to enumerate."""
    table = torch.randn(VOCABULARY, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 1.5

    def step(prefix: torch.Tensor) -> torch.Tensor:
        before = prefix[:, -2] if prefix.shape[1] > 1 else torch.zeros_like(prefix[:, -1])
        return table[before, prefix[:, -1]].log_softmax(-1)

    return step


def exhaustive(step, start: int, length: int, penalty: float, ok=lambda s: True):
    best = (float("-inf"), ())
    for n in range(1, length + 1):
        for body in itertools.product(range(VOCABULARY), repeat=n):
            if EOS in body[:-1] or (n < length and body[-1] != EOS) or not ok(body):
                continue
            score, prefix = 0.0, [start]
            for token in body:
                score += float(step(torch.tensor([prefix]))[0, token])
                prefix.append(token)
            best = max(best, (score / n**penalty, body))
    return best


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_wide_beam_finds_the_best_sequence_of_all(seed: int, penalty: float) -> None:
    step = table_model(seed)
    found = beam_search(
        step,
        lambda _: None,
        start=torch.tensor([0, 2]),
        beam=200,
        max_length=4,
        eos=EOS,
        pad=PAD,
        length_penalty=penalty,
    )
    for row, start in enumerate([0, 2]):
        score, body = exhaustive(step, start, 4, penalty)
        assert [t for t in found.tokens[row].tolist() if t != PAD] == list(body)
        assert float(found.scores[row]) == pytest.approx(score, abs=1e-5)


def test_constraints_hold_and_the_best_allowed_sequence_is_found() -> None:
    step = table_model(3)

    def no_repeats(prefix: torch.Tensor) -> torch.Tensor:
        ok = torch.ones(prefix.shape[0], VOCABULARY, dtype=torch.bool)
        return ok.scatter(1, prefix[:, 1:], False) if prefix.shape[1] > 1 else ok

    found = beam_search(
        step,
        lambda _: None,
        start=torch.tensor([0]),
        beam=100,
        max_length=4,
        min_length=3,
        eos=EOS,
        pad=PAD,
        allowed=no_repeats,
    )
    score, body = exhaustive(step, 0, 4, 1.0, lambda s: len(set(s)) == len(s) and (len(s) >= 3 or s[-1] != EOS))
    assert [t for t in found.tokens[0].tolist() if t != PAD] == list(body)
    assert float(found.scores[0]) == pytest.approx(score, abs=1e-5)


def test_no_ngram_comes_twice_and_greedy_takes_the_best_token_each_time() -> None:
    step = table_model(4)
    greedy = beam_search(step, lambda _: None, start=torch.tensor([1]), beam=1, max_length=6, eos=99, pad=PAD)
    prefix = [1]
    for _ in range(6):
        prefix.append(int(step(torch.tensor([prefix])).argmax()))
    assert greedy.tokens[0].tolist() == prefix[1:]
    blocked = beam_search(
        step, lambda _: None, start=torch.tensor([1]), beam=3, max_length=12, eos=99, pad=PAD, no_repeat_ngram=2
    )
    sequence = [1, *blocked.tokens[0].tolist()]
    grams = list(itertools.pairwise(sequence))
    assert len(grams) == len(set(grams))


def test_first_and_last_tokens_can_be_forced() -> None:
    found = beam_search(
        table_model(5),
        lambda _: None,
        start=torch.tensor([1]),
        beam=2,
        max_length=4,
        min_length=4,
        eos=EOS,
        pad=PAD,
        force_first=3,
        force_eos=True,
    )
    assert found.tokens[0, 0] == 3
    assert found.tokens[0].tolist().index(EOS) == 3


def test_reorder_keeps_a_cache_in_step_with_its_prefix() -> None:
    step = table_model(6)
    cache = {"seen": torch.empty(6, 0, dtype=torch.long)}

    def cached(prefix: torch.Tensor) -> torch.Tensor:
        cache["seen"] = torch.cat([cache["seen"], prefix[:, -1:]], dim=1)
        assert torch.equal(cache["seen"], prefix)
        return step(prefix)

    def reorder(indices: torch.Tensor) -> None:
        cache["seen"] = cache["seen"][indices]

    beam_search(cached, reorder, start=torch.tensor([0, 1]), beam=3, max_length=6, eos=EOS, pad=PAD)

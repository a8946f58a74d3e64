"""Masked words: whole ones against the walk word by word, single tokens at their rate."""

import random

import pytest
import torch

from common.masking.words import MaskWords, whole_word_masks, word_index

V = 50
CLS, SEP, MASK, UNK = 2, 3, 4, 1
CONTINUES = torch.arange(V) >= 40


class Pieces:
    """A vocabulary of 50 pieces, the last ten of which go on with a word."""

    cls, sep, mask, special_ids, continues = CLS, SEP, MASK, [0, UNK, CLS, SEP, MASK], CONTINUES

    def __len__(self) -> int:
        return V


def test_words_are_counted_in_every_row_and_special_tokens_belong_to_none():
    tokens = torch.tensor([[CLS, 10, 41, 42, 11, 43, SEP, 0], [CLS, 44, 45, 12, SEP, 0, 0, 0]])
    text = tokens.gt(SEP)
    assert word_index(tokens, text, CONTINUES).tolist() == [
        [-1, 0, 0, 0, 1, 1, -1, -1],
        [-1, 0, 0, 1, -1, -1, -1, -1],  # a text cut inside a word begins with its rest
    ]


def literal_mask(words: list[int], length: int, ratio: float, order: list[int]) -> list[bool]:
    """The greedy walk, one word after the other."""
    wanted, chosen, taken = min(512, max(1, round(ratio * length))), set(), 0
    for word in order:
        size = words.count(word)
        if size and taken + size <= wanted:
            chosen.add(word)
            taken += size
    return [w >= 0 and w in chosen for w in words]


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.01])
def test_whole_word_masks_equal_the_walk_word_by_word(ratio):
    rng = random.Random(0)
    rows, lengths = [], []
    for length in (20, 13, 5):
        words = sorted(rng.randrange(length // 2) for _ in range(length - 2))
        names = {w: i for i, w in enumerate(dict.fromkeys(words))}
        rows.append([-1, *(names[w] for w in words), -1] + [-1] * (20 - length))
        lengths.append(length)
    words = torch.tensor(rows)
    torch.manual_seed(5)
    masks = whole_word_masks(words, torch.tensor(lengths), ratio, draws=4)
    torch.manual_seed(5)
    orders = torch.rand(3, 4, int(words.max()) + 1).argsort(dim=2)
    for b, (row, length) in enumerate(zip(rows, lengths)):
        for draw in range(4):
            assert masks[b, draw].tolist() == literal_mask(row, length, ratio, orders[b, draw].tolist())


def test_whole_words_are_hidden_for_thirty_percent_of_the_tokens():
    torch.manual_seed(0)
    tokens = torch.randint(5, V, (400, 40))
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    tokens[:, 20] = UNK
    hide = MaskWords(Pieces(), 0.3, whole_words=True)
    words = hide.words(tokens)
    inputs, labels = hide(tokens)
    asked = labels.ne(-100)
    assert torch.equal(labels[asked], tokens[asked])
    assert not asked[:, [0, -1]].any()
    assert torch.equal(inputs[~asked], tokens[~asked])
    assert 11.0 < asked.sum(1).float().mean() <= 12  # 0.3 * 40, less the [UNK]s among them
    assert not asked[:, 20].any()
    for row, chosen in zip(words[:50].tolist(), asked[:50].tolist()):
        whole = {w for w, c, at in zip(row, chosen, range(40)) if c and at != 20}
        assert all(c for w, c, at in zip(row, chosen, range(40)) if w in whole and at != 20)
    kinds = inputs[asked]
    assert kinds.eq(MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert kinds.eq(tokens[asked]).float().mean().item() == pytest.approx(0.1 + 0.1 / V, abs=0.02)


def test_single_tokens_are_hidden_at_the_rate_and_special_ones_never():
    torch.manual_seed(0)
    tokens = torch.randint(0, V, (400, 40))
    inputs, labels = MaskWords(Pieces(), 0.15)(tokens)
    asked, special = labels.ne(-100), tokens.lt(5)
    assert not (asked & special).any()
    assert torch.equal(inputs[~asked], tokens[~asked])
    assert torch.equal(labels[asked], tokens[asked])
    assert (asked.sum() / (~special).sum()).item() == pytest.approx(0.15, abs=0.01)
    assert inputs[asked].eq(MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)

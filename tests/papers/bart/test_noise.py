"""The noise functions of BART: invariants of every one, and the exact procedure of text infilling."""

import numpy as np
import pytest

from papers.bart.noise import (
    Noise,
    Vocabulary,
    delete_tokens,
    draw_span_lengths,
    infill,
    insert_masks,
    mask_tokens,
    permute_sentences,
    rotate,
    span_length_table,
)

MASK, STOP, SIZE = 99, 13, 100


def make_vocabulary(pieces_from: int = 70) -> Vocabulary:
    """Ids below `pieces_from` begin a word, those above continue one."""
    ids = np.arange(SIZE)
    return Vocabulary(word_start=ids < pieces_from, full_stop=ids == STOP, mask=MASK)


VOCABULARY = make_vocabulary()


def block(rng: np.random.Generator, words: int = 40) -> np.ndarray:
    """<s>, words of one to three pieces all of them different where possible, a full stop now and then, </s>."""
    inside: list[int] = []
    for _ in range(words):
        inside.append(STOP if rng.random() < 0.15 else int(rng.integers(14, 70)))
        inside.extend(int(i) for i in rng.integers(70, 99, size=rng.integers(0, 3)))
    return np.array([0, *inside, 2])


def walked_infilling(tokens, starts, heads, lengths):
    """Step 5 of the procedure as a walk: from every head go right and delete until the words are used up."""
    result, keep = tokens.copy(), np.ones(len(tokens), dtype=bool)
    for head, length in zip(heads, lengths):
        result[head] = MASK
        left, at = length - 1, head + 1
        while at < len(tokens) - 1:
            left -= starts[at]
            if left < 0:
                break
            keep[at] = False
            at += 1
    return result[keep]


def test_poisson_table_of_the_paper_has_18_lengths_and_sums_to_one():
    table = span_length_table(3.0)
    assert len(table) == 18
    np.testing.assert_allclose(table[:5], [0.0498, 0.1494, 0.2240, 0.2240, 0.1680], atol=5e-5)
    assert 1 - sum(table) == pytest.approx(4e-9, abs=2e-9)
    assert table[-1] < 1e-7 <= table[-2]


def test_drawn_span_lengths_follow_the_table_and_spend_the_budget_exactly():
    rng = np.random.default_rng(0)
    for words in (1, 2, 7, 50):
        for _ in range(50):
            lengths, zeros = draw_span_lengths(words, 3.0, rng)
            assert lengths.sum() == words
            assert (lengths > 0).all()
            assert zeros >= 0
    lengths, zeros = draw_span_lengths(30000, 3.0, rng)
    counts = np.bincount(np.append(lengths, np.zeros(zeros, dtype=int)), minlength=5)[:5] / (len(lengths) + zeros)
    np.testing.assert_allclose(counts, span_length_table(3.0)[:5], atol=0.015)  # 10,000 draws: three sigma is 0.0125


def test_infilling_equals_the_walk_over_words_of_the_released_procedure(monkeypatch):
    """Same heads and lengths: all pieces of `length` words go, spans stop before </s>, overlaps merge."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        tokens = block(rng, words=12)
        starts = VOCABULARY.word_start[tokens].astype(int)
        starts[[0, -1]] = 0
        lengths = rng.integers(1, 6, size=4)
        monkeypatch.setattr("papers.bart.noise.draw_span_lengths", lambda *_, lengths=lengths: (lengths, 0))
        got = infill(tokens, VOCABULARY, 0.5, 3.0, np.random.default_rng(seed))
        heads = np.flatnonzero(starts)[np.random.default_rng(seed).permutation(starts.sum())[:4]]
        np.testing.assert_array_equal(got, walked_infilling(tokens, starts, heads, lengths))


def test_infilling_removes_whole_words_within_the_budget_and_keeps_the_order_of_the_rest():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        tokens = block(rng)
        noised = infill(tokens, VOCABULARY, 0.3, 3.0, rng)
        assert noised[0] == 0
        assert noised[-1] == 2
        assert (noised == MASK).any()
        kept = noised[noised != MASK]
        position = 0
        for token in kept:  # kept is a subsequence of tokens
            while tokens[position] != token:
                position += 1
            position += 1
        words = VOCABULARY.word_start[tokens[1:-1]].sum()
        removed = words - VOCABULARY.word_start[kept[1:-1]].sum()
        assert 0 < removed <= np.ceil(0.3 * words)


def test_spans_of_length_zero_add_a_mask_and_remove_nothing(monkeypatch):
    """With only zero-length spans before a single word, the masks come on top of the budget."""
    tokens = np.array([0, 20, 21, 22, 23, 24, 2])
    monkeypatch.setattr("papers.bart.noise.draw_span_lengths", lambda *_: (np.array([1]), 3))
    noised = infill(tokens, VOCABULARY, 0.2, 3.0, np.random.default_rng(0))
    assert (noised == MASK).sum() == 4
    assert len(noised) == len(tokens) + 3
    zeros = np.mean([draw_span_lengths(300, 3.0, np.random.default_rng(s))[1] for s in range(100)])
    assert zeros == pytest.approx(5.0, abs=0.7)  # 100 spans of which exp(-3) are empty


def test_pieces_of_a_masked_word_vanish_with_it_even_when_one_word_is_the_budget(monkeypatch):
    monkeypatch.setattr("papers.bart.noise.draw_span_lengths", lambda *_: (np.array([1]), 0))
    tokens = np.array([0, 20, 80, 81, 82, 2])
    np.testing.assert_array_equal(infill(tokens, VOCABULARY, 0.3, 3.0, np.random.default_rng(0)), [0, MASK, 2])


def test_inserted_masks_never_come_before_the_first_or_after_the_last_token():
    tokens = np.array([0, 20, 2])
    places = set()
    for seed in range(40):
        noised = insert_masks(tokens, 2, VOCABULARY, np.random.default_rng(seed))
        assert (noised[0], noised[-1], len(noised)) == (0, 2, 5)
        places.add(int(np.flatnonzero(noised == 20)[0]))
    assert places == {1, 2, 3}


@pytest.mark.parametrize(("count", "random"), [(1, 1), (10, 1), (11, 2), (20, 2)])
def test_of_inserted_masks_the_rounded_up_share_is_random_as_released(count, random):
    tokens, replaced = np.array([0, 20, 2]), []
    for seed in range(10):
        noised = insert_masks(tokens, count, VOCABULARY, np.random.default_rng(seed), random_ratio=0.1)
        assert len(noised) == count + 3
        assert noised[1:-1].min() >= 4
        replaced.append(int((noised[1:-1] != MASK).sum()) - 1)  # the word that was there
    assert max(replaced) == random  # a drawn token may be <mask> now and then
    assert min(replaced) >= random - 1


def test_masking_keeps_length_and_hides_exactly_the_rounded_up_share():
    tokens = block(np.random.default_rng(0))
    inside = len(tokens) - 2
    noised = mask_tokens(tokens, VOCABULARY, 0.15, np.random.default_rng(1))
    assert len(noised) == len(tokens)
    assert (noised == MASK).sum() == np.ceil(0.15 * inside)
    assert (noised[[0, -1]] == [0, 2]).all()
    assert (noised[noised != MASK] == tokens[noised != MASK]).all()


def test_deletion_shortens_by_the_rounded_up_share_and_leaves_no_trace():
    tokens = block(np.random.default_rng(0))
    noised = delete_tokens(tokens, 0.15, np.random.default_rng(1))
    assert len(noised) == len(tokens) - np.ceil(0.15 * (len(tokens) - 2))
    assert (noised[[0, -1]] == [0, 2]).all()
    assert MASK not in noised


def test_permutation_moves_whole_sentences_and_leaves_the_others_in_place():
    tokens = np.array([0, 20, STOP, 30, 31, STOP, STOP, 40, STOP, 50, 51, 2])  # the last sentence has no full stop
    sentences = {(20, STOP), (30, 31, STOP), (STOP, 40, STOP), (50, 51)}
    seen = set()
    for seed in range(60):
        noised = permute_sentences(tokens, tokens == STOP, 1.0, np.random.default_rng(seed))
        np.testing.assert_array_equal(np.sort(noised), np.sort(tokens))
        assert (noised[0], noised[-1]) == (0, 2)
        inside, found = list(noised[1:-1]), []
        while inside:
            sentence = next(s for s in sentences if tuple(inside[: len(s)]) == s and s not in found)
            found.append(sentence)
            inside = inside[len(sentence) :]
        assert set(found) == sentences
        seen.add(tuple(found))
    assert len(seen) > 12  # of 24 orders

    half = permute_sentences(tokens, tokens == STOP, 0.5, np.random.default_rng(3))
    assert (half != tokens).any()
    np.testing.assert_array_equal(permute_sentences(tokens, tokens == STOP, 0.0, np.random.default_rng(0)), tokens)


def test_half_a_permutation_exchanges_only_half_of_the_sentences():
    tokens = np.array([0, *[t for i in range(10) for t in (20 + i, STOP)], 2])
    for seed in range(20):
        noised = permute_sentences(tokens, tokens == STOP, 0.3, np.random.default_rng(seed))
        assert (noised != tokens).sum() <= 3


def test_rotation_is_a_cyclic_shift_of_the_inside_with_every_offset_possible():
    tokens = np.array([0, 20, 21, 22, 23, 2])
    shifts = {tuple(np.roll(tokens[1:-1], -i)) for i in range(4)}
    seen = set()
    for seed in range(60):
        noised = rotate(tokens, np.random.default_rng(seed))
        assert (noised[0], noised[-1]) == (0, 2)
        seen.add(tuple(noised[1:-1]))
    assert seen == shifts


def test_no_noise_is_the_identity():
    tokens = block(np.random.default_rng(0))
    for spans in ("infilling", "masking", "deletion"):
        noised = Noise(spans=spans, ratio=0.0, permute_ratio=0.0)(tokens, VOCABULARY, epoch=0, index=0)
        np.testing.assert_array_equal(noised, tokens)


def test_noise_is_a_function_of_seed_epoch_and_index_and_leaves_its_input_alone():
    tokens = block(np.random.default_rng(0))
    before = tokens.copy()
    noise = Noise(rotate_ratio=0.5, random_ratio=0.1)
    first = noise(tokens, VOCABULARY, epoch=1, index=7)
    np.testing.assert_array_equal(noise(tokens, VOCABULARY, epoch=1, index=7), first)
    for other in (
        noise(tokens, VOCABULARY, epoch=2, index=7),
        noise(tokens, VOCABULARY, epoch=1, index=8),
        Noise(rotate_ratio=0.5, random_ratio=0.1, seed=1)(tokens, VOCABULARY, epoch=1, index=7),
    ):
        assert len(other) != len(first) or (other != first).any()
    Noise(permute_ratio=0.0)(tokens, VOCABULARY, epoch=0, index=0)
    np.testing.assert_array_equal(tokens, before)


def test_random_tokens_replace_that_share_of_masks_and_are_never_special():
    tokens = np.concatenate([[0], np.full(4000, 20), [2]])
    noised = mask_tokens(tokens, VOCABULARY, 0.5, np.random.default_rng(0), random_ratio=0.1)
    replaced = noised[(noised != 20) & (noised != MASK)][1:-1]
    assert len(replaced) / 2000 == pytest.approx(0.1, abs=0.02)
    assert replaced.min() >= 4


@pytest.mark.parametrize("words", [0, 1, 2])
def test_tiny_blocks_survive_every_noise(words):
    tokens = np.array([0, *[20, STOP][:words], 2])
    for spans in ("infilling", "masking", "deletion"):
        for seed in range(10):
            noised = Noise(spans=spans, rotate_ratio=1.0, seed=seed)(tokens, VOCABULARY, epoch=0, index=0)
            assert (noised[0], noised[-1]) == (0, 2)
            if words == 0:
                np.testing.assert_array_equal(noised, tokens)

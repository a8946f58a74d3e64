"""BART's corpora: documents, blocks, their cache, and noise that a seed decides."""

import json

import numpy as np
import pytest
import torch

from common.errors import EncoreError
from common.formats.corpora import documents
from common.formats.labelled_text import Examples
from common.formats.tokenizers import load_byte_bpe, train_byte_bpe
from papers.bart import fixtures
from papers.bart.data import Blocks, Corpus, Denoised, blocks, collate_pairs, noise_vocabulary, split_documents, wrap
from papers.bart.noise import Noise
from papers.bart.tasks import labelled
from tests import tiny
from tests.helpers import requires_mirror


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("bart")
    fixtures.corpus(root)
    return root


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_byte_bpe(folder / "tokenizer")


def corpus(folder, **kwargs) -> Corpus:
    paths = {"path": str(folder / "corpus"), "tokenizer": str(folder / "tokenizer")}
    return Corpus(**(paths | {"block_length": 24, "batch_size": 4} | kwargs))


def test_documents_end_at_blank_lines_and_lines_at_line_feeds_alone():
    assert list(split_documents("a\nb\u2028b\n\n  \nc\n")) == [["a", "b\u2028b"], ["c"]]


def test_blocks_hold_whole_sentences_and_lose_no_token():
    stop = np.zeros(100, dtype=bool)
    stop[13] = True
    ids = np.array([20, 21, 13, 30, 13, 40, 41, 42, 43, 44, 45, 46, 13, 50])
    made = [list(b) for b in blocks(ids, stop, 8)]
    assert made == [[0, 20, 21, 13, 30, 13, 2], [0, 40, 41, 42, 43, 44, 45, 2], [0, 46, 13, 50, 2]]
    assert next(list(b) for b in blocks(ids[1:], stop, 6)) == [0, 21, 13, 30, 13, 2]  # two fit exactly


def test_full_stops_are_found_attached_or_not_so_that_sentences_can_be_permuted(tokenizer):
    vocabulary = noise_vocabulary(tokenizer)
    assert vocabulary.mask == len(tokenizer) - 1
    assert vocabulary.full_stop[tokenizer.encode(".")].all()
    detached = train_byte_bpe(["one . two . three . four ."] * 20, 300)
    assert noise_vocabulary(detached).full_stop[detached.encode(" .")].all()
    ids = np.array([0, *tokenizer.encode("The dogs slept. The sun ran. A house."), 2])
    orders = {tuple(Noise(spans="none", seed=s)(ids, vocabulary, epoch=0, index=0)) for s in range(20)}
    assert len(orders) == 6


def test_a_text_is_wrapped_as_the_released_encoder_wraps_it(tmp_path):
    """ "Hello world!" -> [0, 31414, 232, 328, 2], with a GPT-2 vocabulary that holds just these pieces."""
    chars = {c: 4 + i for i, c in enumerate(["H", "e", "l", "o", "Ġ", "w", "r", "d"])}
    merges = ["H e", "l l", "He ll", "Hell o", "Ġ w", "Ġw o", "r l", "rl d", "Ġwo rld"]
    pieces = {m.replace(" ", ""): 100 + i for i, m in enumerate(merges)}
    specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 50264}
    vocabulary = specials | chars | pieces | {"Hello": 31414, "Ġworld": 232, "!": 328}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    published = load_byte_bpe(tmp_path)
    assert wrap(published, ["Hello world!"], 512)[0].tolist() == [0, 31414, 232, 328, 2]
    assert wrap(published, ["Hello world!"], 4)[0].tolist() == [0, 31414, 232, 2]
    for length, row in ((512, [0, 31414, 232, 328, 2, 232, 2]), (6, [0, 31414, 232, 2, 232, 2])):
        pair, label = labelled(published, Examples([["Hello world!"], ["world"]], [1]), length)[0]
        assert (pair.tolist(), label) == (row, 1)
    assert labelled(published, Examples([["Hello world!"]], [0]), 4)[0][0].tolist() == [0, 31414, 232, 2]


def test_noise_changes_between_passes_and_is_the_same_for_the_same_generator_state(tokenizer):
    data = Blocks.of([[" ".join(tiny.WORDS)]], tokenizer, 64)
    training = Denoised(data, noise_vocabulary(tokenizer), Noise())
    torch.manual_seed(3)
    first, second = training[0], training[0]
    torch.manual_seed(3)
    again = training[0]
    assert first[0].tolist() == again[0].tolist() != second[0].tolist()
    assert first[1].tolist() == second[1].tolist() == data[0].tolist()
    fixed = Denoised(data, noise_vocabulary(tokenizer), Noise(), epoch=0)
    assert fixed[0][0].tolist() == fixed[0][0].tolist()
    source, target = collate_pairs(
        [(np.array([0, 2]), np.array([0, 5, 2])), (np.array([0, 6, 7, 2]), np.array([0, 2]))]
    )
    assert source.tolist() == [[0, 2, 1, 1], [0, 6, 7, 2]]
    assert target.tolist() == [[0, 5, 2], [0, 2, 1]]


def test_a_corpus_is_encoded_once_into_its_cache_and_read_back_equal(folder, tmp_path, monkeypatch):
    plain = corpus(folder)
    plain.setup()
    cached = corpus(folder, cache=str(tmp_path / "cache"))
    cached.prepare_data()
    monkeypatch.setattr("papers.bart.data.encode_blocks", None)  # a second encoding would fail
    cached.setup()
    assert len(cached.train) == len(plain.train) > 20
    for i in range(len(plain.train)):
        np.testing.assert_array_equal(cached.train.blocks[i], plain.train.blocks[i])
    with pytest.raises(EncoreError, match=r"nowhere/train: no \.txt"):
        Corpus(path="/nowhere").setup()


@requires_mirror("wikitext2")
def test_wikitext_articles_have_full_stops_that_stand_alone_and_still_end_sentences():
    train, held_out = documents("wikitext2")
    assert len(train) > 50 < len(held_out)
    tokenizer = train_byte_bpe([" ".join(train[0])], 400)
    vocabulary = noise_vocabulary(tokenizer)
    ids = np.array([0, *tokenizer.encode(" ".join(train[0])), 2])
    assert vocabulary.full_stop[ids].sum() > 20
    noised = Noise(spans="none")(ids, vocabulary, epoch=0, index=0)
    assert (noised != ids).mean() > 0.5

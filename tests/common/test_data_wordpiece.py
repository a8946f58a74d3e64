"""BERT's WordPiece: against transformers' tokenizer, trained, saved and read back."""

import pytest
from transformers import BertTokenizer

from common.errors import EncoreError
from common.formats.wordpiece import SPECIALS, WordPiece

TEXTS = ["The cats sat on the mat.", "A cat's matting, unmatted!", "the Unseen ☃ sat"] * 3


@pytest.fixture(scope="module")
def trained():
    return WordPiece.train(TEXTS, 80)


def test_pieces_equal_those_of_transformers(trained, tmp_path):
    trained.save(tmp_path)
    theirs = BertTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, "Ünmatted cats? unknowable zebra", ""]
    assert trained.encode_batch(texts) == [theirs.encode(text, add_special_tokens=False) for text in texts]


def test_training_is_the_same_every_time_and_survives_a_file(trained, tmp_path):
    again = WordPiece.train(TEXTS, 80)
    assert again.vocabulary == trained.vocabulary
    trained.save(tmp_path / "plain")
    (tmp_path / "whole").mkdir()
    trained.tokenizer.save(str(tmp_path / "whole/tokenizer.json"))
    for folder in ("plain", "whole"):
        assert WordPiece.load(tmp_path / folder).vocabulary == trained.vocabulary
    assert trained.special_ids == [trained.vocabulary[name] for name in SPECIALS] == [0, 1, 2, 3, 4]


def test_continuing_pieces_are_known_and_decoded_into_words(trained):
    (ids,) = trained.encode_batch(["unmattedness cats"])
    starts = [i for i in ids if not trained.continues[i]]
    assert len(starts) == 2
    assert len(ids) > 2
    assert trained.decode(ids) == "unmattedness cats"


def test_rare_characters_become_unknown():
    kept, dropped = (WordPiece.train(TEXTS, 80, rarest=n).encode_batch(["☃"])[0] for n in (1, 4))
    assert kept != [1]
    assert dropped == [1]


def test_what_is_not_a_vocabulary_is_named(tmp_path):
    with pytest.raises(EncoreError, match="no readable vocab.txt or tokenizer.json"):
        WordPiece.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(EncoreError, match=r"\[PAD\] is missing or out of place"):
        WordPiece.load(tmp_path)
    with pytest.raises(EncoreError, match="too small"):
        WordPiece.train(TEXTS, 10)


def test_a_line_feed_alone_ends_a_line_of_a_vocabulary_and_a_byte_order_mark_is_no_part_of_it(tmp_path):
    tokens = [*SPECIALS, "\u2028", "the", "cat", "sat"]  # bert-base-chinese has such a token
    (tmp_path / "vocab.txt").write_text("\r\n".join(tokens) + "\r\n", encoding="utf-8-sig", newline="")
    found = WordPiece.load(tmp_path)
    assert len(found) == len(tokens)
    assert found.encode_batch(["the cat sat"]) == [[6, 7, 8]]


def test_special_strings_in_a_text_are_text(trained, tmp_path):
    trained.save(tmp_path)
    text = "the [MASK] cat[SEP]"
    (ids,) = trained.encode_batch([text])
    assert not {trained.mask, trained.sep} & set(ids)
    theirs = BertTokenizer.from_pretrained(tmp_path)
    assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)

"""DupMAE's blocks of text, its batches, the inverse cloze task, and Cranfield."""

import numpy as np
import pytest
import torch

from common.errors import EncoreError
from common.eval.ranking_data import Encoding
from common.formats.collection import Passage, TextFile, cranfield
from common.formats.text_corpus import TextBlocks, join, sentences
from common.formats.wordpiece import WordPiece
from papers.dupmae import blocks, data, fixtures
from papers.dupmae.data import Cloze, Corpus, InverseCloze, MaskedText
from tests.helpers import requires_mirror


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What fixtures.py writes, and two articles of Wikipedia, as a data set and as blocks."""
    import datasets

    root = tmp_path_factory.mktemp("dupmae")
    fixtures.blocks(root)
    articles = {"title": ["A", "B"], "text": [" ".join(fixtures.texts(6, seed=7)), fixtures.texts(1, seed=8)[0]]}
    datasets.Dataset.from_dict(articles).save_to_disk(root / "wikipedia")
    tokenizer = WordPiece.load(root / "tokenizer")
    blocks.save_blocks("wikipedia", root / "wikipedia", tokenizer, root / "wikipedia_blocks", 22)
    return root


@pytest.fixture(scope="module")
def tokenizer(folder) -> WordPiece:
    return WordPiece.load(folder / "tokenizer")


def test_blocks_end_with_the_sentence_that_fills_them_and_never_span_two_articles(folder, tokenizer):
    assert list(join([[1, 2], [3, 4], [5], [6, 7, 8, 9], [10]], 3)) == [[1, 2, 3, 4], [5, 6, 7, 8, 9], [10]]
    assert sentences('One. Two! "Three?" Four') == ["One.", "Two!", '"Three?', "Four"]
    saved = data.SavedBlocks(folder / "wikipedia_blocks")
    articles = blocks.load_from_disk(folder / "wikipedia")["text"]
    encoded = tokenizer.encode_batch(articles)
    assert [i for block in saved for i in block] == [i for ids in encoded for i in ids]
    ends = np.cumsum([len(block) for block in saved])
    assert len(encoded[0]) in ends
    assert all(len(block) >= 22 for block in list(saved)[:3])
    books = data.SavedBlocks(folder / "books_blocks")
    assert all(len(books[i]) >= 22 for i in range(len(books) - 1))
    passages = data.SavedBlocks(folder / "passages_blocks")
    corpus = TextFile(folder / "msmarco" / "corpus.tsv")
    first = tokenizer.encode_batch([corpus["0"].text])[0]  # its title "-" is too short to count
    assert passages[0] == first[: len(passages[0])]
    second = tokenizer.encode_batch([f"{corpus['1'].title} {corpus['1'].text}"])[0]
    assert second[:22] in [passages[i][:22] for i in range(len(passages))]


def test_a_batch_is_cut_wrapped_and_masked(tokenizer):
    ids = tokenizer.encode_batch(["the river " * 12, "cold wind."])
    torch.manual_seed(0)
    batch = MaskedText(tokenizer)(list(TextBlocks(ids, tokenizer, 16)))
    assert batch.tokens.shape == (2, 16)
    assert batch.tokens[0].tolist() == [tokenizer.cls, *ids[0][:14], tokenizer.sep]
    length = len(ids[1]) + 2
    assert batch.tokens[1, :length].tolist() == [tokenizer.cls, *ids[1], tokenizer.sep]
    assert batch.text[1].tolist() == [False] + [True] * (length - 2) + [False] * (17 - length - 0)
    assert batch.labels.ne(-100).sum(1).tolist()[0] in (4, 5)
    assert batch.allowed.shape == (2, 16, 16)


def corpus(folder, **kwargs) -> Corpus:
    paths = [str(folder / "wikipedia_blocks"), str(folder / "passages_blocks")]
    arguments = {"tokenizer": str(folder / "tokenizer"), "length": 24, "batch_size": 4, "held_out": 4}
    return Corpus(**({"paths": paths} | arguments | kwargs))


def test_a_corpus_holds_blocks_out_masks_them_alike_and_says_what_is_wrong_with_its_folders(folder, tmp_path):
    made = corpus(folder)
    made.setup()
    made.trainer = None
    assert len(made.valid) == 4
    total = sum(len(data.SavedBlocks(folder / f"{kind}_blocks")) for kind in ("wikipedia", "passages"))
    assert len(made.train) == total - 4
    assert not set(made.train.indices) & set(made.valid.indices)
    (one,), (other,) = list(made.val_dataloader()), list(made.val_dataloader())
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.allowed, other.allowed)
    with pytest.raises(EncoreError, match="need the tokenizer that made them"):
        Corpus(paths=["x"])
    with pytest.raises(EncoreError, match="no column 'token_ids'; it has title, text"):
        corpus(folder, paths=[str(folder / "wikipedia")]).setup()
    with pytest.raises(EncoreError, match="not a data set saved by"):
        corpus(folder, paths=[str(tmp_path)]).setup()
    with pytest.raises(EncoreError, match="cannot be held out"):
        corpus(folder, held_out=10_000).setup()


def test_the_command_for_blocks_reports_bad_input_in_one_line(folder, tmp_path, capsys):
    (tmp_path / "empty.tsv").write_text("")
    given = ["--tokenizer", str(folder / "tokenizer"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        blocks.main(["passages", "--input", str(tmp_path / "nothing.tsv"), *given])
    assert "nothing.tsv: cannot be read" in capsys.readouterr().err
    blocks.main(["books", "--input", str(folder / "books"), *given])
    assert capsys.readouterr().out.endswith("blocks\n")


def test_the_cloze_query_is_a_sentence_that_the_passage_mostly_lacks():
    texts = ["One a. Two b. Three c.", "single."]
    cloze = Cloze(texts, keep=0.2)
    assert len(cloze) == 1
    torch.manual_seed(0)
    items = [cloze[0] for _ in range(200)]
    kept = [query.text in passages[0].text for query, passages, _ in items]
    assert 0.1 < np.mean(kept) < 0.3
    assert {query.text for query, _, _ in items} == {"One a.", "Two b.", "Three c."}
    assert all(
        p[0].text in ("One a. Two b. Three c.", "Two b. Three c.", "One a. Three c.", "One a. Two b.")
        for _, p, _ in items
    )
    with pytest.raises(EncoreError, match="no text has two sentences"):
        Cloze(["single."])


def test_pairs_cut_the_passage_alone_and_mark_it_as_the_second_segment(tokenizer):
    query, passage = Passage("", "wing lift"), Passage("drag", "flow " * 20)
    tokens, segments = Encoding(tokenizer).pair(query, passage, 12)
    asked, title, body = tokenizer.encode_batch(["wing lift", "drag", "flow " * 20])
    whole = [tokenizer.cls, *asked, tokenizer.sep, *title, tokenizer.sep, *body]
    assert tokens.tolist() == [*whole[:11], tokenizer.sep]
    assert segments.tolist() == [0] * (len(asked) + 2) + [1] * (10 - len(asked))


@requires_mirror("cranfield")
def test_cranfield_has_its_published_size_and_binary_judgements():
    found = cranfield()
    assert (len(found.corpus), len(found.queries), len(found.judged)) == (1400, 225, 225)
    grades = [grade for row in found.judged.values() for grade in row.values()]
    assert set(grades) == {0, 1}
    assert sum(grades) == 1612
    assert sum(not passage.text for passage in found.corpus.values()) == 2
    module = InverseCloze(vocab_size=500)
    module.setup()
    query, passages, _ = module.training_groups()[0]
    assert query.text
    assert passages[0].text

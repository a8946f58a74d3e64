"""MosaicBERT's data: rows of documents, their masks, C4 in the hub's shards, pairs of GLUE."""

import gzip

import numpy as np
import pytest
import torch

from common.errors import EncoreError
from common.formats.json_shards import MappedBlocks, read_shard
from common.formats.labelled_text import BertRow
from common.formats.text_corpus import TextBlocks, document_blocks, pad
from common.formats.wordpiece import WordPiece
from papers.mosaicbert import fixtures
from papers.mosaicbert.data import C4, GLUE, Masking
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """C4 in the hub's shards, and a tokenizer."""
    root = tmp_path_factory.mktemp("mosaicbert")
    fixtures.c4("mosaicbert_tiny")(root)
    return root


@pytest.fixture(scope="module")
def tokenizer(folder):
    return WordPiece.load(folder / "tokenizer")


def c4(folder, cache, **kwargs) -> C4:
    defaults = {"max_length": 24, "batch_size": 4, "num_workers": 0}
    return C4(str(folder / "c4"), str(folder / "tokenizer"), str(cache), **(defaults | kwargs))


def ready(folder, cache, **kwargs) -> C4:
    data = c4(folder, cache, **kwargs)
    data.prepare_data()
    data.setup()
    data.trainer = None
    return data


def test_documents_are_cut_and_never_joined(tokenizer):
    texts = ["the dogs", " ".join(["sun"] * 50)]
    rows = TextBlocks(document_blocks(texts, tokenizer), tokenizer, 10)
    assert rows[0].tolist() == [tokenizer.cls, *tokenizer.encode_batch(["the dogs"])[0], tokenizer.sep]
    assert (rows[1][0], rows[1][-1], len(rows[1])) == (tokenizer.cls, tokenizer.sep, 10)
    assert pad([rows[0]]).shape == (1, 4)
    batch = pad(list(rows))
    assert batch.shape == (2, 10)
    assert not batch[0, 4:].any()
    with pytest.raises(EncoreError, match=r"text:2: an empty document"):
        document_blocks(["sun", " \t "], tokenizer)


def test_thirty_percent_are_hidden_in_training_and_fifteen_in_validation_never_specials_or_padding(folder, tmp_path):
    data = ready(folder, tmp_path, batch_size=24)
    assert data.val_dataloader().dataset.collate.ratio == 0.15
    special = torch.tensor(data.train.tokenizer.special_ids)

    def share(masking):
        hidden = total = 0
        rows = [data.train[i] for i in range(24)]
        tokens = pad(rows)
        for _ in range(60):
            inputs, valid, labels = masking(rows)
            assert torch.equal(valid, tokens != 0)
            chosen = labels != -100
            assert not (chosen & torch.isin(tokens, special)).any()
            assert torch.equal(inputs[~chosen], tokens[~chosen])
            assert torch.equal(labels[chosen], tokens[chosen])
            hidden, total = hidden + int(chosen.sum()), total + int((~torch.isin(tokens, special)).sum())
        return hidden / total

    torch.manual_seed(0)
    assert share(data.train_dataloader().dataset.collate) == pytest.approx(0.3, abs=0.01)
    assert share(Masking(data.train.tokenizer, 0.15)) == pytest.approx(0.15, abs=0.01)


def test_validation_hides_the_same_words_every_time_and_is_shared_among_processes(folder, tmp_path):
    data = ready(folder, tmp_path)
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    assert len(first) == 3  # of 4, 4 and 2 documents
    assert all(torch.equal(a, b) for one, two in zip(first, second) for a, b in zip(one, two))
    assert not torch.equal(first[0][2][:, :9], first[1][2][:, :9])
    data.trainer = type("Rank", (), {"global_rank": 1, "world_size": 2})()
    (mine,) = data.val_dataloader()
    assert torch.equal(mine[0], first[1][0])


def test_c4_is_encoded_once_a_shard_and_read_back_document_by_document(folder, tmp_path, monkeypatch):
    data = c4(folder, tmp_path)
    data.prepare_data()
    kept = sorted(tmp_path.glob("*.npy"))
    assert len(kept) == 3
    monkeypatch.setattr("common.formats.json_shards.encode_shard", None)  # a second encoding would fail
    data.prepare_data()
    data.setup()
    texts = [t for file in sorted((folder / "c4").glob("c4-train*")) for t in read_shard(file)]
    assert len(data.train) == len(texts) == 24
    whole = TextBlocks(document_blocks(texts, data.train.tokenizer), data.train.tokenizer, 24)
    assert all(torch.equal(data.train[i], whole[i]) for i in range(24))
    assert (
        c4(folder, tmp_path, max_length=16).shards("train").targets[0][1] not in kept
    )  # another length, another cache
    (tmp_path / "short.npy").write_bytes(kept[0].read_bytes()[:200])
    with pytest.raises(EncoreError, match=r"not a whole \.npy file"):
        MappedBlocks([tmp_path / "short.npy"])


def test_a_vocabulary_of_more_than_65536_pieces_keeps_its_ids(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(66_000))]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    for name in ("train", "validation"):
        tiny.lines(tmp_path / f"c4-{name}.00000-of-00001.json.gz", [{"text": "w65999 w1"}])
    data = C4(str(tmp_path), str(tmp_path), str(tmp_path / "rows"), num_workers=0)
    data.prepare_data()
    data.setup()
    assert data.train[0].tolist() == [2, 66_004, 6, 3]


def test_shards_that_cannot_be_read_are_named_with_their_line(folder, tmp_path):
    file = tmp_path / "c4-train.00000-of-01024.json.gz"
    tiny.lines(file, [{"text": text} for text in ("one fish", "", "two")])
    data = C4(str(tmp_path), str(folder / "tokenizer"), str(tmp_path / "cache"), num_workers=0)
    tiny.lines(tmp_path / "c4-validation.00000-of-00008.json.gz", [{"text": "a"}])
    with pytest.raises(EncoreError, match=r"01024\.json\.gz:2: an empty document"):
        data.prepare_data()
    assert not list((tmp_path / "cache").glob("*train*"))
    whole = gzip.compress(b'{"text": "a b c"}\n' * 4000)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncoreError, match="cut short or damaged after line"):
        list(read_shard(file))
    for content, line in ((b'{"text": "a"}\n{"text": ', 2), (b'{"url": "b"}\n', 1), (b'{"text": 3}\n', 1)):
        file.write_bytes(gzip.compress(content))
        with pytest.raises(EncoreError, match=rf"json\.gz:{line}: not a JSON object with a text"):
            list(read_shard(file))
    with pytest.raises(EncoreError, match=r"no c4-train\.\*\.json\.gz"):
        C4(str(tmp_path / "cache"), str(folder / "tokenizer"), str(tmp_path), num_workers=0).prepare_data()


def test_pairs_are_cut_and_marked_as_transformers_does(folder, tokenizer):
    from transformers import BertTokenizer

    theirs = BertTokenizer(str(folder / "tokenizer" / "vocab.txt"))
    rng = np.random.default_rng(3)
    texts = [[" ".join(rng.choice(tiny.WORDS, n)) for n in sizes] for sizes in ((4, 9, 6), (9, 4, 6))]
    for columns, length in ((texts, 12), (texts, 13), (texts, 20), (texts, 200), (texts[:1], 12)):
        for example in zip(*columns):
            expected = theirs(*example, truncation=True, max_length=length)
            ids, segments = BertRow(tokenizer, length)(tokenizer.encode_batch(example))
            assert ids.tolist() == expected["input_ids"]
            assert segments.tolist() == expected["token_type_ids"]


def test_a_batch_of_pairs_is_padded_and_regression_has_numbers_for_labels(folder, tmp_path):
    overrides = fixtures.FIXTURES["paper_glue_stsb.yaml"](tmp_path)
    data = GLUE(str(overrides["data.init_args.path"]), "stsb", str(folder / "tokenizer"), batch_size=4)
    data.setup()
    (loader,) = data.val_dataloader()
    tokens, valid, segments, labels = next(iter(loader))
    assert tokens.shape == valid.shape == segments.shape
    assert labels.tolist() == [0.0, 1.5, 4.0, 0.0]
    assert torch.equal(valid, tokens != 0)

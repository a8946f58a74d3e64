"""Labelled text in each of its forms on disk, and the small corpora."""

import json

import pytest

from common.errors import EncoreError
from common.formats import corpora
from common.formats.labelled_text import (
    Labelled,
    collate_labels,
    column,
    cut_longest,
    examples,
    glue_examples,
    local_dataset,
)
from common.formats.tables import numbered_lines, read_text
from tests.helpers import requires_mirror

MARK = "\ufeff"
TEXTS = ['he said "x', "null", "a\u2028b", "NA"]


@pytest.fixture(autouse=True)
def _no_shared_cache(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(folder, suffix, texts=TEXTS):
    """The texts, labelled 0, 1, 0, 1, as one split `train` in a file of that kind, behind a byte order mark."""
    import datasets

    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    if suffix == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    elif suffix == "jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / "train.jsonl").write_text(MARK + "\n".join(lines), encoding="utf-8")
    elif suffix == "csv":
        quoted = ['"{}",{}'.format(row["text"].replace('"', '""'), row["label"]) for row in rows]
        (folder / "train.csv").write_text(MARK + "\n".join(["text,label", *quoted]), encoding="utf-8")
    else:
        plain = [f"{row['text']}\t{row['label']}" for row in rows]
        (folder / "train.tsv").write_text(MARK + "\n".join(["text\tlabel", *plain]), encoding="utf-8")
    return folder


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
def test_every_form_gives_the_same_examples_whatever_words_quotes_and_separators_are_in_them(suffix, tmp_path):
    rows = local_dataset(write(tmp_path, suffix), needs=["train"])["train"]
    found = examples(rows, ["text"], 2, tmp_path)
    assert found.texts == [TEXTS]
    assert found.labels == [0, 1, 0, 1]


def test_what_is_no_example_is_named_with_its_row(tmp_path):
    import datasets

    rows = local_dataset(write(tmp_path, "parquet", ["a", None, "c"]))["train"]
    with pytest.raises(EncoreError, match=r"row 1 has nothing in column 'text'; fill it or leave the row out"):
        column(rows, "text", tmp_path)
    labels = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]})
    with pytest.raises(EncoreError, match=r"row 1 has the label -1, but classes are 0 to 1"):
        examples(labels, ["text"], 2, tmp_path)
    assert examples(labels, ["text"], 1, tmp_path).labels == [1, -1]  # numbers of a regression


def test_missing_columns_and_splits_are_named(tmp_path):
    rows = local_dataset(write(tmp_path, "tsv"))
    with pytest.raises(EncoreError, match="no column 'sentence'; it has text, label"):
        column(rows["train"], "sentence", tmp_path)
    with pytest.raises(EncoreError, match="needs the splits train, validation; it has train"):
        local_dataset(tmp_path, ("train", "validation"))
    with pytest.raises(EncoreError, match="no data set"):
        local_dataset(tmp_path / "nowhere")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(EncoreError, match=r"cannot read its \.parquet files"):
        local_dataset(tmp_path)


def test_mnli_has_two_development_sets_that_stay_apart(tmp_path):
    import datasets

    for split, text in (("train", "t"), ("validation_matched", "m"), ("validation_mismatched", "mm")):
        rows = [{"premise": f"{text}1", "hypothesis": f"{text}2", "label": 2}]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    train, valid = glue_examples(tmp_path, "mnli")
    assert [part.texts for part in (train, *valid)] == [[["t1"], ["t2"]], [["m1"], ["m2"]], [["mm1"], ["mm2"]]]
    with pytest.raises(EncoreError, match="no GLUE task 'wnli'; choose mnli"):
        glue_examples(tmp_path, "wnli")
    (tmp_path / "validation.parquet").write_bytes((tmp_path / "train-00000-of-00001.parquet").read_bytes())
    with pytest.raises(EncoreError, match="no column 'question'"):
        glue_examples(tmp_path, "qnli")


def test_two_texts_are_joined_by_the_paper_and_cut_from_the_longer_one():
    rows = Labelled([[[1, 2, 3], [4]], [[5], [6, 7]]], [0.5, 2], lambda parts: parts[0] + [0] + parts[1])
    assert [rows[i] for i in range(len(rows))] == [([1, 2, 3, 0, 5], 0.5), ([4, 0, 6, 7], 2)]
    assert collate_labels([rows[0], rows[1]], regression=True).tolist() == [0.5, 2.0]
    a, b = list(range(10)), list(range(10))
    assert [len(part) for part in cut_longest([a, b], 5)] == [2, 3]
    assert [len(part) for part in cut_longest([a, b[:1]], 5)] == [4, 1]
    assert [len(part) for part in cut_longest([[*a, 10], b], 5)] == [3, 2]
    assert cut_longest([a], 4) == [[0, 1, 2, 3]]


def test_lines_end_at_line_feeds_alone_and_a_byte_order_mark_is_no_text(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_bytes(f"{MARK}one\u2028still one\r\n\n three\x85\n".encode())
    assert list(numbered_lines(file)) == [(1, "one\u2028still one"), (3, " three\x85")]
    assert read_text(file).startswith("one")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(EncoreError, match="not a readable UTF-8 text"):
        list(numbered_lines(file))


def test_wikitext_articles_end_at_titles_and_sentences_at_full_stops():
    text = " \n = One = \n \n first . \n = = Part = = \n more . \n \n = Two = \n second . \n"
    assert [d[0] for d in corpora.wikitext_documents(text)] == ["= One =", "= Two ="]
    text = " = Road = \n \n The 3 @.@ 5 km road is <unk> . It ran to a well @-@ known town . \n No . \n"
    assert corpora.wikitext_sentences(text) == ["The 3.5 km road is unk .", "It ran to a well-known town ."]


def test_the_descriptions_are_documents_and_sentences_and_what_is_held_out_is_not_trained_on():
    assert len(corpora.paragraphs()) > 50
    for split in (corpora.documents, corpora.sentences):
        train, held_out = split("sklearn")
        assert len(train) > 40
        assert len(held_out) > 10
    train, held_out = corpora.documents("sklearn")
    found = corpora.paragraphs()
    assert held_out == found[9::10]
    assert sorted(train) == sorted(d for i, d in enumerate(found) if i % 10 in (0, 1, 2))


@requires_mirror("wikitext2")
def test_wikitext2_trains_on_its_test_text_and_holds_out_its_validation_text():
    train, held_out = corpora.documents("wikitext2")
    assert len(train) > 50 < len(held_out)
    assert not {" ".join(d) for d in train} & {" ".join(d) for d in held_out}

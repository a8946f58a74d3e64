"""Retrieval collections in the forms they have on disk, and the batches made of them."""

import json

import pytest
import torch

from common.errors import EncoreError
from common.eval.ranking_data import Encoding, TrainingGroups
from common.formats import collection
from common.formats.collection import Passage, mine_negatives, read_collection
from common.formats.wordpiece import WordPiece
from tests import tiny


@pytest.fixture(scope="module")
def marco(tmp_path_factory):
    """MS MARCO's layout: 40 passages, 12 training queries, negatives and a teacher's scores."""
    root = tmp_path_factory.mktemp("marco")
    rows = [f"{i}\t{f'title {i}' if i % 3 else '-'}\t{text}" for i, text in enumerate(tiny.sentences(40))]
    (root / "corpus.tsv").write_text("\n".join(rows) + "\n")
    (root / "train.query.txt").write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(tiny.sentences(12, 4))))
    (root / "qrels.train.tsv").write_text("".join(f"{i}\t0\t{i}\t1\n" for i in range(12)))
    (root / "train_negs.tsv").write_text("".join(f"{q}\t{','.join(map(str, range(20, 36)))}\n" for q in range(12)))
    pairs = [(q, p) for q in range(12) for p in (q, *range(20, 36))]
    (root / "train_scores.txt").write_text("".join(f"{q}\t{p}\t[{q - p / 7:.3f}]\n" for q, p in pairs))
    return root


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    """BEIR's layout: ten documents, three queries, two of them judged."""
    root = tmp_path_factory.mktemp("beir")
    documents = [
        {"_id": f"d{i}", "title": "", "text": text, "metadata": {}} for i, text in enumerate(tiny.sentences(10))
    ]
    (root / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    tiny.lines(root / "queries.jsonl", [{"_id": f"q{i}", "text": text} for i, text in enumerate(tiny.sentences(3, 3))])
    (root / "qrels").mkdir()
    (root / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td3\t2\nq0\td4\t0\nq2\td9\t1\n")
    return root


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> WordPiece:
    return WordPiece.load(
        tiny.word_piece(tmp_path_factory.mktemp("pieces"), texts=[*tiny.sentences(60), "wing drag lift flow"] * 2)
    )


def test_passages_are_read_where_they_lie_in_all_their_forms(marco, beir, tmp_path):
    corpus = collection.TextFile(marco / "corpus.tsv")
    line = (marco / "corpus.tsv").read_text().splitlines()[7].split("\t")
    assert corpus["7"] == Passage(line[1], line[2])
    assert len(corpus) == 40
    documents = tmp_path / "corpus.tsv"
    documents.write_text("D1\thttp://x\tTitle\tBody é of it\r\nD2\thttp://y\t\tMore\n", encoding="utf-8")
    assert dict(collection.TextFile(documents)) == {"D1": Passage("Title", "Body é of it"), "D2": Passage("", "More")}
    assert collection.TextFile(beir / "corpus.jsonl")["d9"].text.endswith(".")
    (tmp_path / "repository.json").write_text('{"id": "3", "title": "t", "text": "x"}\n')
    assert dict(collection.TextFile(tmp_path / "repository.json")) == {"3": Passage("t", "x")}
    for content, message in (
        ("1\ta\n1\tb\n", "'1' is there twice"),
        ("1\ta\nonly\n", r":2: not a passage"),
        ("", "is empty"),
    ):
        documents.write_text(content)
        with pytest.raises(EncoreError, match=message):
            collection.TextFile(documents)
    (tmp_path / "broken.jsonl").write_text('{"_id": "1", "text": "a"}\n{"_id": "2", "te')
    with pytest.raises(EncoreError, match=r"broken\.jsonl:2: not a passage"):
        collection.TextFile(tmp_path / "broken.jsonl")


@pytest.mark.parametrize("marked", ["corpus.tsv", "test.query.txt", "qrels.test.tsv"])
def test_a_byte_order_mark_loses_no_row_and_a_line_separator_is_text(marked, tmp_path):
    texts = {"corpus.tsv": "0\tt\tze\u2028ro\n1\tt\tone\n", "test.query.txt": "q1\twhat\nq2\twhy\n"}
    for name, text in (texts | {"qrels.test.tsv": "q1\t0\t0\t1\nq2\t0\t1\t1\n"}).items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig" if name == marked else "utf-8")
    found = read_collection(tmp_path, "test")
    assert dict(found.corpus) == {"0": Passage("t", "ze\u2028ro"), "1": Passage("t", "one")}
    assert found.judged == {"q1": {"0": 1}, "q2": {"1": 1}}
    assert not found.shared_ids


def test_judgements_negatives_scores_and_rankings_are_read_in_their_forms(beir, tmp_path):
    assert collection.read_judgements(beir / "qrels/test.tsv") == {"q0": {"d3": 2, "d4": 0}, "q2": {"d9": 1}}
    file = tmp_path / "file"
    file.write_text("19 Q0 D7 3\n19 Q0 D8 0\n")
    assert collection.read_judgements(file) == {"19": {"D7": 3, "D8": 0}}
    file.write_text("1\t9\n1\t8\n")
    assert collection.read_judgements(file) == {"1": {"9": 1, "8": 1}}
    file.write_text("1\t5,6\n2\t7\n1\t8\n")
    assert collection.read_negatives(file) == {"1": ["5", "6", "8"], "2": ["7"]}
    file.write_text("1 5 [2.5]\n1 6 -1e-1\n")
    assert collection.read_scores(file) == {"1": {"5": 2.5, "6": -0.1}}
    ranking = {"1": [("5", 2.0), ("6", 1.0)], "2": [("7", 0.5)]}
    collection.write_ranking(file, ranking)
    assert file.read_text().splitlines()[1] == "1\t6\t2\t1.0"
    assert collection.read_ranking(file) == ranking
    with pytest.raises(EncoreError, match="expected 2 columns, found 4; is the file cut off"):
        collection.read_negatives(file)
    file.write_text("1 0 5 yes\n")
    with pytest.raises(EncoreError, match="the relevance 'yes' of query 1 is not a whole number"):
        collection.read_judgements(file)
    file.write_text("1 5 high\n")
    with pytest.raises(EncoreError, match="the score 'high' of query 1 is not a number"):
        collection.read_scores(file)


def test_hard_negatives_are_what_ranks_high_without_being_relevant(tmp_path):
    ranking = {"1": [("a", 3.0), ("b", 2.0), ("c", 1.0)], "2": [("2", 2.0), ("d", 1.0)]}
    mined = mine_negatives(ranking, {"1": {"b": 1, "c": 0}, "2": {"d": 1}})
    assert mined == {"1": ["a", "c"], "2": []}
    collection.write_negatives(tmp_path / "negatives", mined)
    assert collection.read_negatives(tmp_path / "negatives") == {"1": ["a", "c"]}


def test_a_collection_names_the_file_that_is_missing_or_does_not_fit(beir, tmp_path):
    found = read_collection(beir, "test")
    assert found.shared_ids
    assert list(found.judged) == ["q0", "q2"]
    with pytest.raises(EncoreError, match=r"has none of qrels\.dev\.tsv, qrels/dev\.tsv"):
        read_collection(beir, "dev")
    (tmp_path / "corpus.tsv").write_text("1\ta\n")
    (tmp_path / "dev.query.txt").write_text("1\tq\n")
    (tmp_path / "qrels.dev.tsv").write_text("77\t0\t1\t1\n")
    with pytest.raises(EncoreError, match="no judgement of split 'dev' belongs to one of its queries"):
        read_collection(tmp_path, "dev")


def test_a_passage_is_title_separator_text_and_is_cut_at_the_end(tokenizer):
    encoding = Encoding(tokenizer, query_length=6, passage_length=8)
    wing, drag = (tokenizer.encode_batch([word])[0] for word in ("wing", "drag"))
    row = encoding.passage(Passage("wing", "drag"))
    assert row.tolist() == [tokenizer.cls, *wing, tokenizer.sep, *drag, tokenizer.sep]
    assert encoding.passage(Passage("", "drag")).tolist() == [tokenizer.cls, *drag, tokenizer.sep]
    assert Encoding(tokenizer, use_title=False).passage(Passage("wing", "drag")).tolist()[1:-1] == drag
    long = encoding.passage(Passage("wing", "drag " * 30))
    assert len(long) == 8
    assert long[-1] == tokenizer.sep
    assert len(encoding.query(Passage("", "wing " * 9))) == 6
    assert len(encoding.passage(Passage("", ""))) == 2
    with pytest.raises(EncoreError, match="the query ' ' has no words"):
        encoding.query(Passage("", " "))


def test_a_group_holds_a_positive_and_sampled_negatives_filled_up_at_random(marco):
    judged = read_collection(marco, "train")
    by_text = {passage: name for name, passage in judged.corpus.items()}
    listed = [str(i) for i in range(20, 36)]
    groups = TrainingGroups(judged, dict.fromkeys(judged.judged, listed), None, group_size=4, sample_from=6)
    torch.manual_seed(0)
    drawn = [[by_text[p] for p in groups[3][1]] for _ in range(60)]
    assert all(row[0] == "3" and len(set(row)) == 4 for row in drawn)
    assert {name for row in drawn for name in row[1:]} == set(listed[:6])
    short = TrainingGroups(judged, {"3": ["20", "21"]}, None, group_size=6)
    rows = [[by_text[p] for p in short[3][1]] for _ in range(60)]
    assert all(row[:3] == ["3", "20", "21"] and len(set(row)) == 6 for row in rows)
    assert len({name for row in rows for name in row[3:]}) > 30
    with pytest.raises(EncoreError, match="40 passages are too few for groups of 60"):
        TrainingGroups(judged, {}, None, group_size=60)
    lost = TrainingGroups(judged, {"3": ["999"]}, None, group_size=2)
    with pytest.raises(EncoreError, match="query 3 names the passage '999', which the corpus lacks"):
        lost[3]


def test_teacher_scores_stay_with_their_passages(marco, tokenizer):
    judged = read_collection(marco, "train")
    known = collection.read_scores(marco / "train_scores.txt")
    by_text = {passage: name for name, passage in judged.corpus.items()}
    negatives = collection.read_negatives(marco / "train_negs.tsv")
    groups = TrainingGroups(judged, negatives, known, group_size=5)
    for index in (0, 7):
        _, passages, scores = groups[index]
        assert scores == [known[str(index)][by_text[p]] for p in passages]
    batch = Encoding(tokenizer).groups([groups[0], groups[1]])
    assert batch.teacher.shape == (2, 5)
    assert len(batch.passages) == 10
    with pytest.raises(EncoreError, match="the teacher has no score for query 0"):
        TrainingGroups(judged, {}, known, group_size=20)[0]

"""Data of BART's fine-tuning tasks on tiny files in their published formats."""

import json

import pytest

from common.errors import EncoreError
from common.formats.tokenizers import load_byte_bpe
from papers.bart import fixtures
from papers.bart.fixtures import CONTEXT
from papers.bart.tasks import GLUE, Answers, Dialogues, Parallel, SQuAD, Summaries, read_answers, read_dialogues


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Every set of fixtures.py, and a tiny checkpoint with its tokenizer in the hub's format."""
    root = tmp_path_factory.mktemp("tasks")
    for name in ("paper_glue_mnli", "paper_squad", "paper_xsum", "paper_eli5", "paper_convai2", "paper_roen"):
        fixtures.FIXTURES[f"{name}.yaml"](root)
    return root


@pytest.fixture(scope="module")
def tokenizer(root):
    return load_byte_bpe(root / "hub")


@pytest.fixture(autouse=True)
def _no_shared_cache(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def test_glue_rows_have_one_separator_and_the_labels_of_their_columns(root):
    data = GLUE(str(root / "mnli"), "mnli", str(root / "hub"), batch_size=4)
    data.setup()
    row, label = data.train[1]
    assert (row[0], row[-1], (row == 2).sum(), label) == (0, 2, 2, 1)
    ids, labels = next(iter(data.val_dataloader()[1]))
    assert (len(ids), labels.tolist()) == (4, [0, 1, 2, 0])
    with pytest.raises(EncoreError, match="validation"):
        GLUE(str(root / "mnli"), "qnli", str(root / "hub")).setup()


def test_summaries_lose_line_breaks_empty_pairs_and_what_is_too_long(root, tmp_path):
    data = Summaries(path=str(root / "xsum"), name="xsum", tokenizer=str(root / "hub"), max_source=20)
    data.setup()
    assert len(data.train) == 7  # the empty summary is left out
    source, target = data.train[0]
    assert len(source) == 20
    assert source[-1] == target[-1] == 2
    assert "\n" not in data.train.pairs[0][0]
    with pytest.raises(EncoreError, match="no data set"):
        Summaries(path=str(tmp_path), name="xsum", tokenizer=str(root / "hub")).setup()


def test_parallel_text_has_a_tokenizer_for_each_side_and_both_languages_in_every_row(root):
    paths = {"path": str(root / "wmt"), "source_tokenizer": str(root / "hub"), "tokenizer": str(root / "hub")}
    data = Parallel(**paths)
    data.setup()
    assert [data.tokenizer.decode(row) for row in data.train[0]] == ["raul curge", "The old river ran."]
    with pytest.raises(EncoreError, match="no language 'de'; it has en, ro"):
        Parallel(**paths, source="de").setup()


GOOD = {"id": "3", "input": "Why do dogs sleep?", "output": [{"answer": "They are tired."}]}


def questions(root, max_length=96) -> SQuAD:
    data = SQuAD(str(root / "squad"), str(root / "hub"), batch_size=4, max_length=max_length)
    data.setup()
    return data


def answer(text):
    return {"text": [text], "answer_start": [CONTEXT.index(text)]}


@pytest.mark.parametrize("text", ["The", "old river", "small house", "sun."])
def test_answer_tokens_cover_the_answer_and_read_back_as_it(root, tokenizer, text):
    q = questions(root).question("Which one?", CONTEXT).found(answer(text))
    assert text in q.text(q.start, q.end)
    assert len(q.text(q.start, q.end)) <= len(text) + 3  # at most the rest of a piece
    assert q.ids[q.first - 1] == q.ids[-1] == 2
    assert tokenizer.decode(q.ids[q.first : -1]) == " " + CONTEXT


def test_answers_behind_the_cut_are_left_out_and_unanswerable_questions_point_to_the_start(root):
    lengths = range(12, 96, 4)
    made = [questions(root, length).question("Where?", CONTEXT).found(answer("warm sun")) for length in lengths]
    assert made[0] is None
    assert made[-1] is not None
    assert all(q is None or "warm sun" in q.text(q.start, q.end) for q in made)
    cut = questions(root, 24).question("What?", CONTEXT).found(answer("old"))
    assert len(cut.ids) == 24
    assert cut.ids[-1] == 2
    none = questions(root).question("Who sang?", CONTEXT).found({"text": [], "answer_start": []})
    assert (none.start, none.end, none.text(0, 0)) == (0, 0, "")
    short = questions(root, 40)
    assert short.skipped + len(short.train) == 4 == len(short.valid)
    assert short.skipped > 0
    assert [q.answers for q in short.valid] == [["old river"], ["two dogs"], [], ["under the warm sun"]]


def test_the_first_answer_is_taken_and_a_question_without_one_is_left_out(root):
    assert read_answers(root / "eli5-dev-kilt.jsonl") == [
        ("Why is the river cold?", "Snow melts into it."),
        ("Why do dogs sleep?", "They are tired."),
    ]


def test_a_response_sees_persona_and_history_and_number_one_begins_another_dialogue(root):
    persona = "your persona: i like to fish.\nyour persona: i have two dogs."
    first = f"{persona}\nhi , how are you ?"
    assert read_dialogues(root / "valid_self_original.txt") == [
        (first, "i am fine ."),
        (f"{first}\ni am fine .\nwhat do you do ?", "i fish with my dogs ."),
        ("your persona: i am old.\nhello .", "good day ."),
    ]


def test_an_over_long_history_loses_its_beginning_and_an_over_long_response_its_end(root):
    tokenizer = load_byte_bpe(root / "hub")
    latest, response = (tokenizer.encode(text) for text in ("what do you do ?", "i fish with my dogs ."))
    room = {"max_source": len(latest) + 2, "max_target": len(response)}
    data = Dialogues(str(root), str(root / "hub"), **room)
    data.setup()
    source, target = data.train[1]
    assert source.tolist() == [0, *latest, 2]
    assert target.tolist() == [0, *response[:-2], 2]
    whole = Dialogues(str(root), str(root / "hub"))
    whole.setup()
    source, target = whole.train[1]
    assert source.tolist() == [0, *tokenizer.encode(whole.train.pairs[1][0]), 2]
    assert target.tolist() == [0, *response, 2]


def test_an_over_long_question_keeps_its_beginning(root):
    data = Answers(str(root), str(root / "hub"), max_source=6)
    data.setup()
    assert data.train[0][0].tolist() == [0, *data.tokenizer.encode("Why is the river cold?")[:4], 2]


@pytest.mark.parametrize(
    "line",
    ['{"input": "a?", "output": [', '{"output": [{"answer": "b"}]}', '{"input": "a?"}', '["a"]', "3",
     '{"input": "a?", "output": [{"answer": 3}]}', '{"input": "a?", "output": ["b"]}'],
)  # fmt: skip
def test_a_line_that_is_not_kilts_is_named(line, tmp_path):
    file = tmp_path / "eli5-dev-kilt.jsonl"
    file.write_text(json.dumps(GOOD) + "\n\n" + line + "\n")
    with pytest.raises(EncoreError, match=r"eli5-dev-kilt\.jsonl:3: not .*one such object a line"):
        read_answers(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no number\tyes", "begins with 'no'; expected 1"),
        ("2 again\tyes", "begins with '2'; expected 1 .* or a number above 2"),
        ("0 zero\tyes", "begins with '0'"),
        ("3 partner's persona: i ski.", "neither 'your persona:' nor an utterance"),
        ("3 hello\t\t\tyes|no", "neither 'your persona:' nor an utterance"),
        ("3 \tyes", "neither 'your persona:' nor an utterance"),
    ],
)
def test_a_line_that_is_not_parlais_is_named(line, message, tmp_path):
    file = tmp_path / "valid_self_original.txt"
    file.write_text("1 your persona: i ski.\n2 hi\tyes\n" + line + "\n")
    with pytest.raises(EncoreError, match=rf"valid_self_original\.txt:3: {message}"):
        read_dialogues(file)


def test_a_dialogue_begins_with_line_one(tmp_path):
    file = tmp_path / "valid_self_original.txt"
    file.write_text("4 hi\tyes\n")
    with pytest.raises(EncoreError, match=r"txt:1: begins with '4'; expected 1"):
        read_dialogues(file)


def test_files_that_are_absent_unreadable_or_without_examples_are_named(root, tmp_path):
    with pytest.raises(EncoreError, match=r"eli5-train-kilt\.jsonl: cannot be read"):
        Answers(str(tmp_path), str(root / "hub")).setup()
    file = tmp_path / "file"
    file.write_bytes(b"1 \xff\tyes\n")
    with pytest.raises(EncoreError, match="file:1: not a readable UTF-8 text"):
        read_dialogues(file)
    file.write_text("1 your persona: i ski.\n")
    with pytest.raises(EncoreError, match="file: holds no utterance"):
        read_dialogues(file)
    file.write_text(json.dumps({"input": "Unanswered?", "output": [{"answer": " "}]}))
    with pytest.raises(EncoreError, match="file: holds no question"):
        read_answers(file)

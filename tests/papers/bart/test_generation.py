"""ELI5 and ConvAI2 on tiny fixtures in their published formats, and their recipes shrunk to one step."""

import json
import math
from pathlib import Path

import pytest
import torch

from common.errors import EncoreError
from common.formats.tokenizers import load_byte_bpe, train_byte_bpe
from common.training.cli import run
from papers.bart import interop
from papers.bart.generation import Answers, Dialogues, read_answers, read_dialogues
from papers.bart.model import bart_tiny
from papers.bart.replies import Replies

CONFIGS = Path(__file__).parents[3] / "papers" / "bart" / "configs"
QUESTIONS = [
    {
        "id": "1oy5tc",
        "input": "Why is\nthe river  cold?",
        "output": [
            {"provenance": [{"wikipedia_id": "1", "title": "River"}]},
            {"answer": "Snow melts\u2028into it.", "provenance": []},
            {"answer": "Another answer.", "meta": {"score": 3}},
        ],
        "meta": {},
    },
    {"id": "2", "input": "Unanswered?", "output": [{"answer": " "}, {"provenance": []}]},
    {"id": "3", "input": "Why do dogs sleep?", "output": [{"answer": "They are tired."}]},
]
DIALOGUES = """\
1 your persona: i like to fish.
2 your persona: i have two dogs.
3 hi , how are you ?\ti am fine .\t\ti am fine .|no .|fish .
4 what do you do ?\ti fish with my dogs .\t\tyes .|i fish with my dogs .
1 your persona: i am old.
2 hello .\tgood day .\t\tgood day .|bye .
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both data sets, and a tiny checkpoint with its tokenizer in the hub's format."""
    root = tmp_path_factory.mktemp("generation")
    for split in ("train", "dev"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in QUESTIONS)
        (root / f"eli5-{split}-kilt.jsonl").write_text(text, encoding="utf-8")
    for split in ("train", "valid"):
        (root / f"{split}_self_original.txt").write_text(DIALOGUES)
    train_byte_bpe([*DIALOGUES.splitlines(), *(row["input"] for row in QUESTIONS)], 300).save(root / "hub")
    interop.save(bart_tiny(300, max_positions=64), root / "hub")
    return root


def test_the_first_answer_is_taken_and_a_question_without_one_is_left_out(folder):
    assert read_answers(folder / "eli5-dev-kilt.jsonl") == [
        ("Why is the river cold?", "Snow melts into it."),
        ("Why do dogs sleep?", "They are tired."),
    ]


def test_a_response_sees_persona_and_history_and_number_one_begins_another_dialogue(folder):
    persona = "your persona: i like to fish.\nyour persona: i have two dogs."
    first = f"{persona}\nhi , how are you ?"
    assert read_dialogues(folder / "valid_self_original.txt") == [
        (first, "i am fine ."),
        (f"{first}\ni am fine .\nwhat do you do ?", "i fish with my dogs ."),
        ("your persona: i am old.\nhello .", "good day ."),
    ]


def test_an_over_long_history_loses_its_beginning_and_an_over_long_response_its_end(folder):
    tokenizer = load_byte_bpe(folder / "hub")
    latest, response = (tokenizer.encode(text) for text in ("what do you do ?", "i fish with my dogs ."))
    room = {"max_source": len(latest) + 2, "max_target": len(response)}
    data = Dialogues(str(folder), str(folder / "hub"), **room)
    data.setup()
    source, target = data.train[1]
    assert source.tolist() == [0, *latest, 2]
    assert target.tolist() == [0, *response[:-2], 2]
    whole = Dialogues(str(folder), str(folder / "hub"))
    whole.setup()
    source, target = whole.train[1]
    assert source.tolist() == [0, *tokenizer.encode(whole.train.sources[1]), 2]
    assert target.tolist() == [0, *response, 2]


def test_an_over_long_question_keeps_its_beginning(folder):
    data = Answers(str(folder), str(folder / "hub"), max_source=6)
    data.setup()
    assert data.train[0][0].tolist() == [0, *data.tokenizer.encode("Why is the river cold?")[:4], 2]


@pytest.mark.parametrize(
    "line",
    ['{"input": "a?", "output": [', '{"output": [{"answer": "b"}]}', '{"input": "a?"}', '["a"]', "3",
     '{"input": "a?", "output": [{"answer": 3}]}', '{"input": "a?", "output": ["b"]}'],
)  # fmt: skip
def test_a_line_that_is_not_kilts_is_named(line, tmp_path):
    file = tmp_path / "eli5-dev-kilt.jsonl"
    file.write_text(json.dumps(QUESTIONS[2]) + "\n\n" + line + "\n")
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


def test_files_that_are_absent_unreadable_or_without_examples_are_named(folder, tmp_path):
    with pytest.raises(EncoreError, match=r"eli5-train-kilt\.jsonl: not a readable UTF-8 text"):
        Answers(str(tmp_path), str(folder / "hub")).setup()
    file = tmp_path / "file"
    file.write_bytes(b"1 \xff\tyes\n")
    with pytest.raises(EncoreError, match="file: not a readable UTF-8 text"):
        read_dialogues(file)
    file.write_text("1 your persona: i ski.\n")
    with pytest.raises(EncoreError, match="file: holds no utterance"):
        read_dialogues(file)
    file.write_text(json.dumps(QUESTIONS[1]))
    with pytest.raises(EncoreError, match="file: holds no question"):
        read_answers(file)


@pytest.mark.parametrize("name", ["paper_eli5.yaml", "paper_convai2.yaml"])
def test_recipe_takes_a_step_and_writes_texts_that_are_scored(name, folder, tmp_path):
    overrides = {
        "model.init_args.size": "tiny", "model.init_args.vocab_size": 300, "model.init_args.max_positions": 64,
        "model.init_args.checkpoint": folder / "hub", "model.init_args.decoding.max_length": 6,
        "model.init_args.decoding.min_length": 0, "trainer.max_steps": 1, "trainer.accelerator": "cpu",
        "trainer.devices": 1, "trainer.precision": "32-true", "trainer.strategy": "auto",
        "trainer.accumulate_grad_batches": 1, "trainer.limit_val_batches": 1, "trainer.default_root_dir": tmp_path,
        "data.init_args.path": folder, "data.init_args.tokenizer": folder / "hub", "data.init_args.max_source": 64,
        "data.init_args.max_target": 32, "data.init_args.num_workers": 0,
    }  # fmt: skip
    arguments = [f"--{key}={value}" for key, value in overrides.items()]
    cli = run(["fit", "--config", str(CONFIGS / name), *arguments])
    assert cli.trainer.global_step == 1
    source, target = next(iter(cli.datamodule.val_dataloader()))
    assert len(source) == len(target) == 2
    (scores,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    if name == "paper_eli5.yaml":
        assert 0 <= scores["test/rougeL"] <= 100
        return
    cli.model.eval()
    nats = words = 0.0
    for source, target in cli.datamodule.test_dataloader():
        with torch.no_grad():
            nats += sum(cli.model.model.loss(s[None], t[None][:, : int((t != 1).sum())]).item() * int((t != 1).sum())
                        for s, t in zip(source, target))  # fmt: skip
        words += sum(len(cli.datamodule.tokenizer.decode(t).split()) + 1 for t in target)
    assert scores["test/perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-4)
    assert 0 <= scores["test/f1"] <= 100


def test_f1_of_replies_is_the_mean_over_replies(monkeypatch):
    model = Replies("tiny", 300, 64)
    model.written, model.nats, model.words = [("the cat sat", "a cat sat down"), ("no", "yes")], 6.0, 3
    logged = {}
    monkeypatch.setattr(model, "log_dict", logged.update)
    model.on_test_epoch_end()
    assert logged["test/f1"] == pytest.approx(100 * (2 * 2 / 5) / 2)
    assert logged["test/perplexity"] == pytest.approx(math.exp(2))
    assert (model.written, model.nats, model.words) == ([], 0.0, 0)

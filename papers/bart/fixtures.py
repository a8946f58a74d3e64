"""Tiny files in the formats BART reads, for tests and for a first try: corpora, GLUE, SQuAD, pairs of texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.formats import tiny as write
from papers.bart import interop
from papers.bart.model import bart_tiny
from papers.bart.tasks import PERSONA, SUMMARY_COLUMNS

SIZES = {"vocab_size": 300, "max_positions": 96}
TINY = {"class_path": "papers.bart.model.bart_tiny", "init_args": SIZES}
CONTEXT = "The old river ran past a small house, where two dogs slept under the warm sun."


def hub(root: Path) -> Path:
    """A tiny checkpoint of the hub with its tokenizer, which knows 300 pieces."""
    folder = write.byte_bpe(root / "hub")
    torch.manual_seed(0)
    interop.save(bart_tiny(**SIZES), folder)
    return folder


def task(make: Callable[[Path], dict[str, Any]], **model: Any) -> Callable[[Path], dict[str, Any]]:
    """A task on files that `make` writes, for a tiny model that starts from a checkpoint."""

    def writer(root: Path) -> dict[str, Any]:
        folder = hub(root)
        start = {"model.init_args.model": TINY, "model.init_args.checkpoint": folder, **model}
        return start | {"data.init_args.tokenizer": folder, "data.init_args.batch_size": 2} | make(root)

    return writer


def corpus(root: Path) -> dict[str, Any]:
    """train/*.txt and valid/*.txt with blank lines between documents."""
    for split, documents in (("train", 24), ("valid", 4)):
        text = "\n\n".join("\n".join(write.sentences(3, seed=i)) for i in range(documents))
        (root / "corpus" / split).mkdir(parents=True)
        (root / "corpus" / split / "part0.txt").write_text(text)
    return {
        "model.init_args.model": TINY,
        "data.init_args.path": root / "corpus",
        "data.init_args.tokenizer": write.byte_bpe(root / "tokenizer"),
        "data.init_args.cache": root / "cache",
        "data.init_args.block_length": 24,
        "data.init_args.batch_size": 4,
    }


def glue(name: str, *columns: str, classes: int = 2, splits: tuple[str, ...] = ("validation",)) -> Any:
    """A GLUE task as save_to_disk writes it."""

    def make(root: Path) -> dict[str, Any]:
        labels = [i % classes if classes > 1 else i / 3 for i in range(8)]
        rows: dict[str, list[Any]] = {**{column: write.sentences(8) for column in columns}, "label": labels}
        write.dataset(root / name, **dict.fromkeys(("train", *splits), rows))
        return {"data.init_args.path": root / name}

    return task(make)


def squad(root: Path) -> dict[str, Any]:
    """SQuAD 2.0: answers at characters of the context, and none."""
    asked = [
        ("What ran?", "old river"),
        ("Who slept?", "two dogs"),
        ("Who sang?", ""),
        ("Where?", "under the warm sun"),
    ]
    answers = [{"text": [a] if a else [], "answer_start": [CONTEXT.index(a)] if a else []} for _, a in asked]
    rows: dict[str, list[Any]] = {
        "question": [question for question, _ in asked],
        "context": [CONTEXT] * 4,
        "answers": answers,
    }
    write.dataset(root / "squad", train=rows, validation=rows)
    return {"data.init_args.path": root / "squad", "data.init_args.max_length": 96}


SHORT = {"model.init_args.decoding.max_length": 6, "model.init_args.decoding.min_length": 0}
CUT = {"data.init_args.max_source": 64, "data.init_args.max_target": 32}


def summaries(name: str) -> Any:
    """CNN/DailyMail or XSum as JSON lines; one training summary is empty."""

    def make(root: Path) -> dict[str, Any]:
        source, target = SUMMARY_COLUMNS[name]
        for split, count in (("train", 8), ("validation", 2), ("test", 2)):
            texts = zip(write.sentences(count), write.sentences(count, 4, seed=1))
            rows = [{source: f"{a}\n{a}", target: b} for a, b in texts]
            rows[0][target] = rows[0][target] if split == "test" else ""
            write.lines(root / name / f"{split}.jsonl", rows)
        return {"data.init_args.path": root / name} | SHORT | CUT

    return task(make)


def answers(root: Path) -> dict[str, Any]:
    """ELI5 as KILT has it; one question without an answer."""
    rows: list[dict[str, Any]] = [
        {
            "id": "1",
            "input": "Why is\nthe river  cold?",
            "output": [{"provenance": []}, {"answer": "Snow melts\u2028into it."}, {"answer": "Another answer."}],
        },
        {"id": "2", "input": "Unanswered?", "output": [{"answer": " "}, {"provenance": []}]},
        {"id": "3", "input": "Why do dogs sleep?", "output": [{"answer": "They are tired."}]},
    ]
    for split in ("train", "dev"):
        write.lines(root / f"eli5-{split}-kilt.jsonl", rows)
    return {"data.init_args.path": root} | SHORT | CUT


def dialogues(root: Path) -> dict[str, Any]:
    """ConvAI2 as ParlAI has it."""
    lines = [
        f"1 {PERSONA} i like to fish.", f"2 {PERSONA} i have two dogs.",
        "3 hi , how are you ?\ti am fine .\t\ti am fine .|no .|fish .",
        "4 what do you do ?\ti fish with my dogs .\t\tyes .|i fish with my dogs .",
        f"1 {PERSONA} i am old.", "2 hello .\tgood day .\t\tgood day .|bye .",
    ]  # fmt: skip
    for split in ("train", "valid"):
        (root / f"{split}_self_original.txt").write_text("\n".join(lines) + "\n")
    return {"data.init_args.path": root} | SHORT | CUT


def parallel(root: Path) -> dict[str, Any]:
    """WMT's column `translation`."""
    rows = {"translation": [{"ro": "raul curge", "en": "The old river ran."}] * 4}
    write.dataset(root / "wmt", train=rows, validation=rows)
    sizes = {"model.init_args.source_vocab_size": 300, "model.init_args.source_depth": 1}
    return {"data.init_args.path": root / "wmt", "data.init_args.source_tokenizer": root / "hub"} | SHORT | sizes


FIXTURES = {
    "paper_base.yaml": corpus,
    "paper_large.yaml": corpus,
    "paper_glue_mnli.yaml": glue(
        "mnli", "premise", "hypothesis", classes=3, splits=("validation_matched", "validation_mismatched")
    ),
    "paper_glue_qqp.yaml": glue("qqp", "question1", "question2"),
    "paper_glue_qnli.yaml": glue("qnli", "question", "sentence"),
    "paper_glue_sst2.yaml": glue("sst2", "sentence"),
    "paper_glue_cola.yaml": glue("cola", "sentence"),
    "paper_glue_stsb.yaml": glue("stsb", "sentence1", "sentence2", classes=1),
    "paper_glue_*.yaml": glue("pairs", "sentence1", "sentence2"),
    "paper_squad.yaml": task(squad),
    "paper_cnndm.yaml": summaries("cnn_dailymail"),
    "paper_xsum.yaml": summaries("xsum"),
    "paper_eli5.yaml": task(answers),
    "paper_convai2.yaml": task(dialogues),
    "paper_roen.yaml": task(parallel),
}


def tiny() -> tuple[dict[str, Any], torch.Tensor]:
    """A module as a config describes it, and a batch for the encoder that is exported from it."""
    spec = {"class_path": "papers.bart.module.Denoising", "init_args": {"model": TINY, "optim": {"lr": 1e-3}}}
    return spec, torch.tensor([[0, 7, 9, 8, 2], [0, 30, 2, 1, 1], [0, 5, 6, 2, 1]])

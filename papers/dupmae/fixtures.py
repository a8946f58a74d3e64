"""Tiny files in the formats DupMAE reads, for tests and for a first try: saved blocks, and MS MARCO's collection."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.formats import tiny as write
from common.formats.wordpiece import WordPiece
from common.interop.bert import bert_to_hub
from common.layers.bert import BertMLM
from papers.dupmae.blocks import save_blocks
from papers.dupmae.model import tiny_bert

VOCAB = 160


def texts(count: int, seed: int) -> list[str]:
    """Texts of three sentences."""
    parts = write.sentences(3 * count, seed=seed)
    return [" ".join(parts[i : i + 3]) for i in range(0, 3 * count, 3)]


def marco(root: Path) -> Path:
    """40 passages, most with titles, 12 training and 4 development queries, negatives and a teacher's scores."""
    rng = random.Random(0)
    root.mkdir(parents=True, exist_ok=True)
    titles = [f"{rng.choice(write.WORDS)} {i}" if i % 3 else "-" for i in range(40)]
    rows = [f"{i}\t{title}\t{text}" for i, (title, text) in enumerate(zip(titles, texts(40, seed=1)))]
    (root / "corpus.tsv").write_text("\n".join(rows) + "\n")
    for split, count, first in (("train", 12, 0), ("dev", 4, 100)):
        asked = enumerate(write.sentences(count, 4, seed=first), first)
        (root / f"{split}.query.txt").write_text("".join(f"{number}\t{text}\n" for number, text in asked))
        (root / f"qrels.{split}.tsv").write_text("".join(f"{first + i}\t0\t{i}\t1\n" for i in range(count)))
    (root / "train_negs.tsv").write_text("".join(f"{q}\t{','.join(map(str, range(20, 36)))}\n" for q in range(12)))
    pairs = [(q, p) for q in range(12) for p in (q, *range(20, 36))]
    (root / "train_scores.txt").write_text("".join(f"{q}\t{p}\t[{rng.gauss(0, 3):.3f}]\n" for q, p in pairs))
    return root


def start(root: Path, name: str) -> dict[str, Any]:
    """A tokenizer, and a tiny BERT in the hub's format to start from."""
    torch.manual_seed(0)
    bert_to_hub(BertMLM(tiny_bert(VOCAB)), root / "start")
    return {
        "model.init_args.size": "tiny",
        "model.init_args.vocab_size": VOCAB,
        "model.init_args.start": root / "start",
        f"model.init_args.{name}": root / "out",
        "data.init_args.tokenizer": write.word_piece(root / "tokenizer", VOCAB),
        "data.init_args.batch_size": 2,
    }


def blocks(root: Path) -> dict[str, Any]:
    """Books, a sentence a line, and passages, as blocks of token ids."""
    overrides = start(root, "export")
    (root / "books").mkdir()
    (root / "books" / "part.txt").write_text("\n".join(write.sentences(30, 6)))
    tokenizer = WordPiece.load(root / "tokenizer")
    for kind, source in (("books", root / "books"), ("passages", marco(root / "msmarco") / "corpus.tsv")):
        save_blocks(kind, source, tokenizer, root / f"{kind}_blocks", 22)
    paths = [str(root / f"{kind}_blocks") for kind in ("books", "passages")]
    return overrides | {"data.init_args.paths": paths, "data.init_args.held_out": 2, "data.init_args.length": 24}


def ranking(*files: str, name: str = "export", **changed: Any) -> Callable[[Path], dict[str, Any]]:
    """The collection, with the teacher's scores where `files` says so; groups of three."""

    def write_files(root: Path) -> dict[str, Any]:
        folder = marco(root / "msmarco")
        given: dict[str, Any] = {"path": folder, "negatives": folder / "train_negs.tsv", "group_size": 3} | changed
        given |= {"teacher": [str(folder / "train_scores.txt")]} if "teacher" in files else {}
        return start(root, name) | {f"data.init_args.{key}": value for key, value in given.items()}

    return write_files


FIXTURES = {
    "paper_distill.yaml": ranking("teacher"),
    "paper_reranker.yaml": ranking(name="scores", length=60),
    "paper_documents.yaml": ranking(passage_length=140),
    "paper_beir.yaml": ranking(),
    "paper_finetune.yaml": ranking(),
    "paper_hard.yaml": ranking(),
    "paper_retromae_finetune.yaml": ranking(),
    "paper_*.yaml": blocks,
}


def tiny() -> tuple[dict[str, Any], torch.Tensor]:
    """A module as a config describes it, and a batch for the encoder that is exported from it."""
    arguments = {"size": "tiny", "vocab_size": 64, "dim": None, "top_k": 8, "optim": {"lr": 1e-3}}
    batch = torch.tensor([[2, 9, 30, 41, 5, 3], [2, 40, 7, 3, 0, 0], [2, 8, 3, 0, 0, 0]])
    return {"class_path": "papers.dupmae.module.Retrieval", "init_args": arguments}, batch

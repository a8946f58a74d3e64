"""Tiny files in the formats MosaicBERT reads, for tests and for a first try: C4 in the hub's shards, GLUE's tasks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.formats import tiny as write
from papers.mosaicbert.model import Classifier, MaskedLM, mosaicbert_tiny

VOCAB = 160
PUBLIC_CLASS = False  # the released model is code beside its weights, which calls itself BertForMaskedLM


def c4(encoder: str) -> Callable[[Path], dict[str, Any]]:
    """Two shards of twelve documents, one to validate on."""

    def files(root: Path) -> dict[str, Any]:
        for number, (name, texts) in enumerate((("train", 12), ("train", 12), ("validation", 10))):
            rows = [{"text": text, "timestamp": "", "url": ""} for text in write.sentences(texts, 30, seed=number)]
            total = {"train": "01024", "validation": "00008"}[name]
            write.lines(root / "c4" / f"c4-{name}.{number % 2:05d}-of-{total}.json.gz", rows)
        return {
            "model.init_args.encoder": encoder,
            "model.init_args.vocab_size": VOCAB,
            "data.init_args.path": root / "c4",
            "data.init_args.cache": root / "rows",
            "data.init_args.tokenizer": write.word_piece(root / "tokenizer", VOCAB),
            "data.init_args.batch_size": 4,
        }

    return files


def glue(*columns: str, labels: tuple[float, ...] = (0, 1), mnli: bool = False, continues: bool = False) -> Any:
    """A task with twelve examples a split, starting from a pre-training or (continues) from a fine-tuned model."""

    def files(root: Path) -> dict[str, Any]:
        def split(seed: int) -> dict[str, list[Any]]:
            texts = {name: write.sentences(12, 6 + i, seed + i) for i, name in enumerate(columns)}
            return {**texts, "label": [labels[i % len(labels)] for i in range(12)]}

        names = ["validation_matched", "validation_mismatched"] if mnli else ["validation"]
        write.dataset(root / "task", **{name: split(2 * i) for i, name in enumerate(["train", *names])})
        torch.manual_seed(0)
        model = Classifier(mosaicbert_tiny(VOCAB), 3) if continues else MaskedLM(mosaicbert_tiny(VOCAB))
        torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, root / "start.ckpt")
        return {
            "model.init_args.encoder": "mosaicbert_tiny",
            "model.init_args.vocab_size": VOCAB,
            "model.init_args.checkpoint": root / "start.ckpt",
            "data.init_args.path": root / "task",
            "data.init_args.tokenizer": write.word_piece(root / "tokenizer", VOCAB),
            "data.init_args.batch_size": 4,
            "trainer.val_check_interval": 1,
        }

    return files


PAIR = ("sentence1", "sentence2")
FIXTURES = {
    "paper_bert_base.yaml": c4("bert_tiny"),
    "paper_glue_mnli.yaml": glue("premise", "hypothesis", labels=(0, 1, 2), mnli=True),
    "paper_glue_qqp.yaml": glue("question1", "question2"),
    "paper_glue_qnli.yaml": glue("question", "sentence"),
    "paper_glue_stsb.yaml": glue(*PAIR, labels=(0.0, 1.5, 4.0), continues=True),
    "paper_glue_[rm]*.yaml": glue(*PAIR, continues=True),
    "paper_glue_*.yaml": glue("sentence"),
    "paper_*.yaml": c4("mosaicbert_tiny"),
}


def tiny() -> tuple[dict[str, Any], torch.Tensor]:
    """A module as a config describes it, and a batch for the encoder that is exported from it."""
    arguments = {"encoder": "mosaicbert_tiny", "vocab_size": 64, "optim": {"lr": 1e-3}}
    batch = torch.tensor([[2, 9, 30, 41, 5, 3], [2, 40, 7, 3, 0, 0], [2, 8, 3, 0, 0, 0]])
    return {"class_path": "papers.mosaicbert.module.Pretraining", "init_args": arguments}, batch

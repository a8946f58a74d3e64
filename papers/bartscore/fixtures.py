"""Tiny files in the formats BARTScore reads, for tests and for a first try: pairs to tune on, and judged sets as they
were released."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from common.formats import tiny as write
from papers.bart import interop
from papers.bart.model import bart_tiny
from papers.bartscore import generated
from papers.bartscore.judged import README

SIZES = {"vocab_size": 300, "max_positions": 64}
TINY = {"class_path": "papers.bart.model.bart_tiny", "init_args": SIZES}


def released() -> Iterator[tuple[str, dict[Any, Any]]]:
    """(folder, content of its data.pkl) of the sets of all three tasks."""
    some = generated.judged(4)
    for name in ("BAGEL", "SFHOT", "SFRES"):
        yield name, {
            row.document: {
                "src": row.source, "sys_summ": row.hypothesis, "ref_summs": list(row.references), "scores": row.scores,
            } for row in some
        }  # fmt: skip
    human = dict.fromkeys(("litepyramid_recall", "coherence", "consistency", "fluency", "relevance"), 3.0)
    systems = {
        f"s{i}": {"sys_summ": row.hypothesis, "scores": {k: v + i for k, v in human.items()} | {"informativeness": i}}
        for i, row in enumerate(some)
    }
    for name, reference in (("REALSumm", "ref_summ"), ("SummEval", "ref_summs"), ("Newsroom", "ref_summ")):
        texts: Any = list(some[0].references) if reference == "ref_summs" else some[0].references[0]
        yield name, {d: {"src": some[1].hypothesis, reference: texts, "sys_summs": systems} for d in "ab"}
    for name in ("QAGS_CNN", "QAGS_XSUM"):
        yield (
            name,
            {row.document: _summaries(row.references[0], {0: (row.hypothesis, i / 3)}) for i, row in enumerate(some)},
        )
    yield (
        "Rank19",
        {
            row.document: _summaries(
                row.references[0],
                {side: (row.references[i + 1], 1 - i) for i, side in enumerate(("correct", "incorrect"))},
            )
            for row in some
        },
    )
    for name in ("kk-en", "gu-en", "lt-en"):
        yield name, {
            i: {
                "src": "x", "ref": row.references[0],
                "better": {"sys": row.references[1], "scores": {}}, "worse": {"sys": row.hypothesis, "scores": {}},
            } for i, row in enumerate(some)
        }  # fmt: skip


def _summaries(source: str, made: dict[Any, tuple[str, float]]) -> dict[str, Any]:
    judged = {system: {"sys_summ": text, "scores": {"fact": score}} for system, (text, score) in made.items()}
    return {"src": source, "ref_summ": source, "sys_summs": judged}


def scorer(*sets: str, tunes: bool = False, tuned: bool = False) -> Callable[[Path], dict[str, Any]]:
    """A tiny checkpoint with its tokenizer, the released sets, ParaBank2's lines (tunes) and tuned weights (tuned)."""

    def writer(root: Path) -> dict[str, Any]:
        pairs = generated.pairs(12)
        texts = [text for pair in pairs for text in pair]
        texts += [text for row in README for text in (row.hypothesis, *row.references)]
        hub = write.byte_bpe(root / "hub", texts=texts)
        torch.manual_seed(0)
        model = bart_tiny(**SIZES)
        interop.save(model, hub)
        for name, content in released():
            (root / "released" / name).mkdir(parents=True)
            (root / "released" / name / "data.pkl").write_bytes(pickle.dumps(content))
        changes: dict[str, Any] = {
            "model.init_args.model": TINY,
            "model.init_args.checkpoint": hub,
            "data.init_args.tokenizer": hub,
            "data.init_args.max_length": 64,
            "data.init_args.released": root / "released",
        }
        if tunes:
            rows = [{"text": text, "summary": summary} for text, summary in pairs]
            for key, name in (("train", "parabank2.json"), ("valid", "eval.json")):
                changes[f"data.init_args.{key}"] = write.lines(root / name, rows)
            changes["data.init_args.batch_size"] = 4
        if tuned:
            torch.save(
                {"state_dict": {f"scorer.bart.{k}": v for k, v in model.state_dict().items()}}, root / "last.ckpt"
            )
            changes["model.init_args.weights"] = root / "last.ckpt"
        if sets:
            changes["data.init_args.sets"] = list(sets)
        return changes

    return writer


FIXTURES = {
    "paper_para_prompt.yaml": scorer("bagel", "kk_en", tuned=True),
    "paper_cnn_prompt.yaml": scorer("rank19"),
    "paper_para.yaml": scorer(tunes=True),
    "paper_*.yaml": scorer(),
}


def tiny() -> tuple[dict[str, Any], torch.Tensor]:
    """A module as a config describes it, and a batch for the encoder that is exported from it."""
    spec = {"class_path": "papers.bartscore.module.Tuning", "init_args": {"model": TINY, "optim": {"lr": 1e-3}}}
    return spec, torch.tensor([[0, 7, 9, 8, 2], [0, 30, 2, 1, 1], [0, 5, 6, 2, 1]])

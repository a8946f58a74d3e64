"""The claims about time: two sides in one process on the same batches of real sentences, taking turns.

A step is a forward and a backward pass, without dropout, optimizer and data loading. The sentences are SST-2's, padded
to the longest of their batch. What else the machine does falls on both sides, so ratios mean more than seconds.
"""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import sources
from common.formats import corpora
from common.formats.tables import read_table
from common.formats.text_corpus import TextBlocks, document_blocks
from common.formats.wordpiece import WordPiece
from common.training.loaders import seeded
from common.training.run import Run
from papers.mosaicbert.attention import Layout, attention_bias
from papers.mosaicbert.data import Batch, Masking
from papers.mosaicbert.model import MaskedLM, MosaicBert, mosaicbert_base

Step = Callable[[Batch], Tensor]  # batch -> scalar to differentiate


def sst2_batches(count: int, size: int, seed: int, max_length: int = 128) -> list[Batch]:
    """Batches of random SST-2 training sentences, 30 % of their words masked.

    The WordPiece is trained on WikiText-2; 8,192 pieces cut the sentences about as finely as BERT's 30,522 do.
    """
    table = read_table(sources.locate("sst2")["sst2-train.parquet"], ["text"])
    tokenizer = WordPiece.train(corpora.sentences("wikitext2")[0], 8192, rarest=5)
    chosen = np.random.default_rng(seed).choice(len(table["text"]), (count, size), replace=False)
    masking = Masking(tokenizer, 0.3)
    batches = [document_blocks([table["text"][i] for i in row], tokenizer) for row in chosen]
    with seeded(seed):
        return [masking(list(TextBlocks(blocks, tokenizer, max_length))) for blocks in batches]


def paired_seconds(sides: dict[str, tuple[nn.Module, Step]], batches: Sequence[Batch]) -> dict[str, float]:
    """Summed seconds of every side's forward and backward passes; the first batch warms up and is not counted."""
    seconds = dict.fromkeys(sides, 0.0)
    for turn, batch in enumerate(batches):
        for name, (module, step) in list(sides.items())[:: 1 if turn % 2 else -1]:
            module.zero_grad(set_to_none=True)
            begin = perf_counter()
            step(batch).backward()
            seconds[name] += (perf_counter() - begin) * (turn > 0)
    return seconds


def fill(batches: Sequence[Batch]) -> float:
    """Share of real tokens in the padded batches that are timed."""
    return sum(int(b[1].sum()) for b in batches[1:]) / sum(b[1].numel() for b in batches[1:])


def unpadding(run: Run) -> dict[str, float]:
    """Four layers of the base width, with and without padding in the computation, at equal weights.

    speedup: padded over unpadded seconds; inverse_fill: padded over real tokens; difference: the largest one between
    the states of real tokens.
    """
    smoke = run.scale == "smoke"
    size: dict[str, Any] = (
        {"dim": 32, "mlp_dim": 64, "num_heads": 4} if smoke else {"dim": 768, "mlp_dim": 3072, "num_heads": 12}
    )
    batches = sst2_batches(count=2 if smoke else 5, size=16, seed=run.seed)
    torch.manual_seed(run.seed)
    model = MosaicBert(vocab_size=8192, depth=1 if smoke else 4, dropout=0.0, **size)

    def states(batch: Batch, computed: Tensor) -> Tensor:
        tokens, valid, _ = batch
        layout = Layout(computed)
        return layout.padded(model.states(tokens, layout, attention_bias(model.slopes, valid)))[valid]

    def unpadded(batch: Batch) -> Tensor:
        return states(batch, batch[1])

    def padded(batch: Batch) -> Tensor:
        return states(batch, torch.ones_like(batch[1]))

    seconds = paired_seconds(
        {
            "padded": (model, lambda batch: padded(batch).square().mean()),
            "unpadded": (model, lambda batch: unpadded(batch).square().mean()),
        },
        batches,
    )
    with torch.no_grad():
        difference = (padded(batches[0]) - unpadded(batches[0])).abs().max().item()
    return {
        "speedup": seconds["padded"] / seconds["unpadded"],
        "inverse_fill": 1 / fill(batches),
        "difference": difference,
    }


def against_transformers(run: Run) -> dict[str, float]:
    """A masked-word step of MosaicBERT-Base against one of transformers' BertForMaskedLM of the same depth and widths.

    speedup: their seconds over ours. Theirs computes padding and the logits of every token; ours has half as many
    feed-forward parameters again, for the gate.
    """
    from transformers import BertConfig, BertForMaskedLM

    smoke = run.scale == "smoke"
    batches = sst2_batches(count=2 if smoke else 4, size=8, seed=run.seed)
    torch.manual_seed(run.seed)
    config: Any = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if smoke:
        config |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
        ours = MaskedLM(MosaicBert(vocab_size=30528, dim=32, depth=1, num_heads=4, mlp_dim=64, dropout=0.0))
    else:
        ours = MaskedLM(mosaicbert_base(dropout=0.0))
    theirs: Any = BertForMaskedLM(BertConfig(**config))

    def their_loss(batch: Batch) -> Tensor:
        tokens, valid, labels = batch
        return theirs(input_ids=tokens, attention_mask=valid.long(), labels=labels).loss

    sides: dict[str, tuple[nn.Module, Step]] = {
        "theirs": (theirs.train(), their_loss),
        "ours": (ours.train(), lambda batch: ours.loss(*batch)),
    }
    seconds = paired_seconds(sides, batches)
    return {
        "speedup": seconds["theirs"] / seconds["ours"],
        "inverse_fill": 1 / fill(batches),
        "seconds_ours": seconds["ours"] / (len(batches) - 1),
    }

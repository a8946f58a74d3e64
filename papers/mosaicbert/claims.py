"""The claims at a small scale. Each function is one unit: (arm, seed) -> metrics.

Text is WikiText-2: its test text trains, its validation text is held out. All arms of a claim share tokenizer, data
order, optimizer, schedule and learning rate.
"""

from dataclasses import dataclass
from functools import cache

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.fast.flops import multiply_adds
from common.formats import corpora
from common.formats.text_corpus import FixedBatches, TextBlocks, document_blocks
from common.formats.wordpiece import WordPiece
from common.masking.words import MaskWords
from common.training.loaders import seeded
from common.training.recipe import Optim
from common.training.run import Run, sizes, train_on
from papers.mosaicbert.data import EVALUATION_RATIO, EVALUATION_SEED, Masking
from papers.mosaicbert.model import MaskedLM
from papers.mosaicbert.module import Pretraining

OVERLAP = "sentences that occur in both texts of WikiText-2"


@dataclass(frozen=True)
class Plan:
    """Optimizer steps of the baseline, and sizes. `windows`: held-out windows of the extrapolation claim."""

    steps: int
    window_steps: int
    batch_size: int
    held_out: int
    windows: int
    vocab_size: int = 2048
    max_length: int = 48
    lr: float = 3e-3


PLANS = {
    "smoke": Plan(steps=4, window_steps=3, batch_size=8, held_out=40, windows=8, vocab_size=1024),
    "cpu": Plan(steps=600, window_steps=600, batch_size=32, held_out=4000, windows=400),
    "gpu": Plan(steps=5000, window_steps=3000, batch_size=128, held_out=4000, windows=400, lr=1e-3),
}

# encoder and share of masked words in training
ARMS = {
    "bert": ("bert_tiny", 0.15),
    "mosaicbert": ("mosaicbert_tiny", 0.3),
    "equal_steps": ("mosaicbert_tiny_matched", 0.3),
}


@dataclass(frozen=True)
class Text:
    """Rows of sentences for training and held out, and their tokenizer."""

    train: TextBlocks
    held_out: TextBlocks
    tokenizer: WordPiece


@cache
def wikitext(plan: Plan) -> Text:
    """WikiText-2's sentences under a WordPiece trained on the training part."""
    train, held_out = corpora.sentences("wikitext2")
    tokenizer = WordPiece.train(train, plan.vocab_size, rarest=5)
    blocks = (document_blocks(part, tokenizer) for part in (train, held_out[: plan.held_out]))
    rows, held_out_rows = (TextBlocks(part, tokenizer, plan.max_length) for part in blocks)
    return Text(rows, held_out_rows, tokenizer)


# ----------------------------------------------------------------------------------------------------- masked words


def equal_compute(run: Run) -> dict[str, float]:
    """Held-out loss (nats) and accuracy (%) at 15 % masking after training.

    bert: padded, 15 % masking, `steps` steps. mosaicbert: the paper's block with the feed-forward kept, 30 % masking,
    as many steps as cost the same multiply-adds. equal_steps: feed-forward at two thirds, as many steps as bert.
    """
    plan = sizes(run, **PLANS)
    text = wikitext(plan)
    encoder, ratio = ARMS[run.arm]
    costs = {arm: step_cost(arm, plan, text) for arm in {"bert", run.arm}}
    steps = round(plan.steps * costs["bert"] / costs[run.arm]) if run.arm == "mosaicbert" else plan.steps
    run.split("test", text.held_out, overlap=OVERLAP)
    model = pretrain(run, encoder, text.train, Masking(text.tokenizer, ratio), steps, plan)
    batches = FixedBatches(text.held_out, 100, Masking(text.tokenizer, EVALUATION_RATIO), EVALUATION_SEED)
    loss, accuracy = held_out(model, batches)
    return {
        "mlm_loss": loss,
        "mlm_accuracy": accuracy,
        "steps": float(steps),
        "tmac": 3 * steps * costs[run.arm] / 1e12,
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }


def step_cost(arm: str, plan: Plan, text: Text) -> float:
    """Mean multiply-adds of the forward pass over eight training batches, masked as the arm masks them."""
    encoder, ratio = ARMS[arm]
    with torch.random.fork_rng(devices=[]):
        model = Pretraining(Optim(plan.lr), encoder, plan.vocab_size).model.eval()
    batches = FixedBatches(text.train, plan.batch_size, Masking(text.tokenizer, ratio), EVALUATION_SEED)
    return float(np.mean([multiply_adds(model.loss, *batches[i]) for i in range(min(8, len(batches)))]))


def pretrain(run: Run, encoder: str, rows: TextBlocks, masking: Masking, steps: int, plan: Plan) -> MaskedLM:
    """A masked language model trained for `steps` with the paper's optimizer and schedule, in eval mode."""
    run.settings(encoder=encoder, masked=masking.ratio)
    run.split("train", rows)
    optim = Optim(
        plan.lr, weight_decay=1e-5, decoupled=True, decay_all=True, betas=(0.9, 0.98), eps=1e-6,
        schedule="linear", warmup=max(1, round(0.06 * steps)), total=steps, floor=0.02,
    )  # fmt: skip
    L.seed_everything(run.seed, verbose=False)
    module = Pretraining(optim, encoder, plan.vocab_size)
    train_on(run, module, rows, steps=steps, batch_size=plan.batch_size, collate=masking, name="pretraining")
    return module.model


@torch.no_grad()
def held_out(model: MaskedLM, batches: FixedBatches) -> tuple[float, float]:
    """Mean cross entropy (nats) and accuracy (%) over all labelled tokens."""
    loss, hits, count = 0.0, 0, 0
    for i in range(len(batches)):
        logits, labels = model.labelled(*batches[i])
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        hits += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return loss / count, 100 * hits / count


# ---------------------------------------------------------------------------------------------------- extrapolation

CONTENT, TIMES = 30, 4  # pieces of a training window (32 tokens with [CLS] and [SEP]), and how many a long window has


def extrapolation(run: Run) -> dict[str, float]:
    """Train on windows of 32 tokens, test on windows four times as long, with ALiBi ("alibi") or positions ("learned").

    The same held-out words, masked in the same way, are predicted from the whole long window (122 tokens) and from its
    four quarters (32 tokens each); loss_increase is the difference. Both arms mask 30 % in training; the table of
    positions has 128 rows, of which training reaches 32.
    """
    plan = sizes(run, **PLANS)
    text = wikitext(plan)
    encoder = {"alibi": "mosaicbert_tiny_matched", "learned": "bert_tiny"}[run.arm]
    train = TextBlocks(windows(text.train, CONTENT).tolist(), text.tokenizer, CONTENT + 2)
    long = run.split("test", torch.from_numpy(windows(text.held_out, CONTENT * TIMES)[: plan.windows]))
    model = pretrain(run, encoder, train, Masking(text.tokenizer, 0.3), plan.window_steps, plan)
    whole, cut = (window_loss(model, text.tokenizer, long, parts) for parts in (1, TIMES))
    return {"loss_increase": whole - cut, "loss_whole": whole, "loss_cut": cut}


def windows(rows: TextBlocks, length: int) -> np.ndarray:
    """The pieces of all sentences, special tokens left out, one after the other in windows: (W, length) int64."""
    pieces = torch.cat([rows[i][1:-1] for i in range(len(rows))]).numpy()
    return pieces[: len(pieces) // length * length].reshape(-1, length)


@torch.no_grad()
def window_loss(model: MaskedLM, tokenizer: WordPiece, content: Tensor, parts: int) -> float:
    """Mean loss (nats) at 15 % of the pieces of windows (W, n), each cut into `parts`; always the same pieces."""
    with seeded(EVALUATION_SEED):
        inputs, labels = MaskWords(tokenizer, EVALUATION_RATIO)(content)
    inputs, labels = (F.pad(x.reshape(parts * len(x), -1), (1, 1), value=-100) for x in (inputs, labels))
    inputs[:, 0], inputs[:, -1] = tokenizer.cls, tokenizer.sep
    loss, count = 0.0, 0
    for x, y in zip(inputs.split(100), labels.split(100)):
        logits, wanted = model.labelled(x, torch.ones_like(x, dtype=torch.bool), y)
        loss += F.cross_entropy(logits, wanted, reduction="sum").item()
        count += len(wanted)
    return loss / count

"""The arms of both claims: a tiny BART pre-trained under one noise function each, then put to use.

All arms share data, model, optimizer, steps and, for one seed, the initial weights and the order of the blocks. Text is
WikiText-2 (its test text for training, its validation text held out) and SST-2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from common import sources
from common.formats.corpora import documents
from common.formats.labelled_text import Examples
from common.formats.tables import read_table
from common.formats.tokenizers import ByteBPE, train_byte_bpe
from common.training.recipe import Optim
from common.training.run import Run, hand_over, sizes, train_on
from papers.bart.data import Blocks, Denoised, Pair, collate_pairs, noise_vocabulary, pad
from papers.bart.generate import Decoding, generate
from papers.bart.model import BART, BOS, EOS, PAD, bart_tiny
from papers.bart.module import Denoising, SequenceClassification, Summarisation
from papers.bart.noise import Noise, Tokens, Vocabulary
from papers.bart.tasks import collate_labelled, labelled

NOISES = {
    "infilling": Noise(spans="infilling", ratio=0.3, poisson_lambda=3.0, permute_ratio=0.0),
    "masking": Noise(spans="masking", ratio=0.3, permute_ratio=0.0),
    "rotation": Noise(spans="none", permute_ratio=0.0, rotate_ratio=1.0),
}  # and the arm "none": no pre-training

OVERLAP = "short blocks that occur in both texts of WikiText-2"
M = TypeVar("M", bound=L.LightningModule)
MAX_SENTENCE = 40  # tokens of an SST-2 sentence (the median); longer ones are cut


@dataclass(frozen=True)
class Recipe:
    """How long everything is trained and on how many examples it is measured."""

    pretraining_steps: int = 400
    continuation_steps: int = 60
    sentiment_steps: int = 150
    held_out_blocks: int = 600
    spans: int = 60  # of every length
    vocab_size: int = 1500
    block_length: int = 24
    batch_size: int = 48


RECIPES = {
    "smoke": Recipe(
        pretraining_steps=4, continuation_steps=2, sentiment_steps=2, held_out_blocks=8, spans=2, vocab_size=600
    ),
    "cpu": Recipe(),
    "gpu": Recipe(pretraining_steps=2000, continuation_steps=200, sentiment_steps=500, batch_size=128),
}


@dataclass(frozen=True)
class Text:
    """WikiText-2 in blocks, its tokenizer, and what the noise must know of it."""

    train: Blocks
    held_out: Blocks
    tokenizer: ByteBPE
    vocabulary: Vocabulary


@cache
def wikitext(recipe: Recipe) -> Text:
    """Blocks of WikiText-2 under a BPE trained on the training part."""
    train, held_out = documents("wikitext2")
    tokenizer = train_byte_bpe([" ".join(document) for document in train], recipe.vocab_size)
    made = [Blocks.of(part, tokenizer, recipe.block_length) for part in (train, held_out)]
    return Text(made[0], made[1], tokenizer, noise_vocabulary(tokenizer))


def noise_function_decides(run: Run) -> dict[str, float]:
    """Pre-train with the arm's noise, then fine-tune twice from there: sentiment and the continuation of a text."""
    recipe = sizes(run, **RECIPES)
    text = wikitext(recipe)
    start = pretrain(run, recipe, text)
    return {
        "continuation_perplexity": continuation(run, recipe, text, start),
        "sst2_accuracy": sentiment(run, recipe, text, start),
    }


def one_mask_teaches_length(run: Run) -> dict[str, float]:
    """Pre-train with the arm's noise, then let the model fill a single mask for a span of 0 to 5 words."""
    recipe = sizes(run, **RECIPES)
    text = wikitext(recipe)
    bart = pretrain(run, recipe, text)
    assert bart is not None
    return fill_spans(bart, cut_spans(text, recipe.spans, range(6)), text.vocabulary)


def pretrain(run: Run, recipe: Recipe, text: Text) -> BART | None:
    """A BART pre-trained with the noise of run.arm, or None for the arm "none"."""
    run.settings(noise=run.arm)
    run.split("train", text.train)
    run.split("test", text.held_out, overlap=OVERLAP)
    if run.arm == "none":
        return None
    L.seed_everything(run.seed, verbose=False)
    module = Denoising(_tiny(recipe), _optim(recipe.pretraining_steps, 4e-3, 0.98))
    data = Denoised(text.train, text.vocabulary, NOISES[run.arm])
    return _train(module, data, run, recipe, "pretraining", recipe.pretraining_steps).model


def continuation(run: Run, recipe: Recipe, text: Text, start: BART | None) -> float:
    """Perplexity (per BPE piece) of the second half of held-out blocks given the first, after fine-tuning on halves."""
    L.seed_everything(run.seed, verbose=False)
    module = Summarisation(_tiny(recipe), _optim(recipe.continuation_steps, 1e-3, 0.999), label_smoothing=0.0)
    _start_from(module.model, start)
    train = [halves(text.train[i]) for i in range(len(text.train))]
    _train(module, train, run, recipe, "continuation", recipe.continuation_steps)
    held_out = [halves(text.held_out[i]) for i in range(recipe.held_out_blocks)]
    with torch.no_grad():
        losses = [
            (module.model.loss(source, target), target.ne(PAD).sum())
            for source, target in DataLoader(held_out, 100, collate_fn=collate_pairs)  # type: ignore[arg-type]
        ]
    return float(np.exp(sum(loss * n for loss, n in losses) / sum(n for _, n in losses)))


def halves(block: Tokens) -> Pair:
    """A block `<s> ... </s>` cut in the middle: (`<s>` first half `</s>`, `<s>` second half `</s>`)."""
    middle = len(block) // 2
    return np.append(block[:middle], EOS), np.insert(block[middle:], 0, BOS)


def sentiment(run: Run, recipe: Recipe, text: Text, start: BART | None) -> float:
    """SST-2 test accuracy (%) of the head on the decoder's last state after fine-tuning."""
    files = sources.locate("sst2")
    tables = [read_table(files[f"sst2-{split}.parquet"], ["text", "label"]) for split in ("train", "test")]
    train, test = (
        labelled(text.tokenizer, Examples([[" " + t for t in table["text"]]], table["label"]), MAX_SENTENCE)
        for table in tables
    )
    run.split("train:sst2", train)
    run.split("test:sst2", test, overlap="sentences that SST-2 has in both splits")
    L.seed_everything(run.seed, verbose=False)
    module = SequenceClassification(_tiny(recipe), _optim(recipe.sentiment_steps, 1e-3, 0.98))
    _start_from(module.model.bart, start)
    _train(module, train, run, recipe, "sentiment", recipe.sentiment_steps, collate_labelled)
    hits = total = 0
    with torch.no_grad():
        for ids, labels in DataLoader(test, 100, collate_fn=collate_labelled):
            hits += int(module.model(ids).argmax(dim=-1).eq(labels).sum())
            total += len(labels)
            if run.scale == "smoke":
                break
    return 100 * hits / total


@dataclass(frozen=True)
class Cut:
    """A held-out block with `words` words replaced by one mask."""

    source: Tokens
    target: Tokens
    words: int


def cut_spans(text: Text, count: int, lengths: Sequence[int], context: int = 3) -> list[Cut]:
    """`count` cuts of every length, each from a block of its own, at least `context` words away from both ends."""
    rng = np.random.default_rng(0)  # the same cuts for every arm and seed
    cuts: list[Cut] = []
    for i in range(len(text.held_out)):
        if len(cuts) == count * len(lengths):
            break
        block, k = text.held_out[i], lengths[len(cuts) % len(lengths)]
        starts = np.flatnonzero(text.vocabulary.word_start[block])
        last = len(starts) - context - k
        if last > context:
            first = int(rng.integers(context, last))
            left, right = starts[first], starts[first + k]
            source = np.concatenate([block[:left], [text.vocabulary.mask], block[right:]])
            cuts.append(Cut(source, block, k))
    return cuts


def fill_spans(bart: BART, cuts: Sequence[Cut], vocabulary: Vocabulary) -> dict[str, float]:
    """Greedy decoding of every cut.

    With `written` = words of the output - words of the context: length_error is mean | written - cut | in words;
    length_slope is how much `written` grows with every word cut (regression; 1 is perfect, 0 ignores the gap);
    span_exact_match is how many (%) of the texts come back exactly.
    """
    longest = int(bart.config["max_positions"])
    source = pad([cut.source for cut in cuts])
    tokens = torch.cat([generate(bart, part, Decoding(max_length=longest))[0] for part in source.split(120)])
    outputs = [row[row != PAD] for row in tokens.numpy()]
    gone = np.array([cut.words for cut in cuts])
    words = vocabulary.word_start
    written = np.array([words[out].sum() - words[cut.source].sum() for out, cut in zip(outputs, cuts)])
    return {
        "length_error": float(np.abs(written - gone).mean()),
        "length_slope": float(np.polyfit(gone, written, 1)[0]),
        "span_exact_match": 100 * float(np.mean([np.array_equal(out, cut.target) for out, cut in zip(outputs, cuts)])),
    }


def _tiny(recipe: Recipe) -> BART:
    return bart_tiny(recipe.vocab_size, max_positions=48, dropout=0.0)


def _optim(steps: int, lr: float, beta2: float) -> Optim:
    warmup = max(1, steps // 10)
    return Optim(lr, weight_decay=0.01, betas=(0.9, beta2), schedule="linear", warmup=warmup, total=steps)


def _start_from(model: BART, start: BART | None) -> None:
    if start is not None:
        hand_over(start, model)


def _train(module: M, data: Any, run: Run, recipe: Recipe, name: str, steps: int, collate: Any = collate_pairs) -> M:
    """Trains with gradients clipped at 1, on examples in an order that only the seed decides; then in eval mode."""
    options: Any = {"collate": collate, "gradient_clip_val": 1.0}
    return train_on(run, module, data, steps=steps, batch_size=recipe.batch_size, name=name, **options)

"""The arms of the three claims on the judged data-to-text sets (BAGEL, SFHOT, SFRES), at smoke scale on generated ones.

No arm ever sees a human score. A scorer is a tiny BART trained from nothing on references of other meanings than those
it judges: half of the meanings at a time. All arms share texts, tokenizer, sizes, steps, order and initial weights.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import lightning as L
import numpy as np

from common.formats.tokenizers import ByteBPE, train_byte_bpe
from common.training.recipe import Optim
from common.training.run import Run, hand_over, sizes, train_on
from papers.bart.data import Blocks, Denoised, collate_pairs, noise_vocabulary, wrap
from papers.bart.model import bart_tiny
from papers.bart.noise import Noise
from papers.bart.tasks import Pairs
from papers.bartscore import generated, ngram
from papers.bartscore.judged import SETS, Judged, read
from papers.bartscore.meta import agreement
from papers.bartscore.module import Tuning
from papers.bartscore.references import (
    Groups,
    Meaning,
    delexicalised,
    folds_of,
    group,
    meaning_of,
    one_fact_apart,
    rewritings,
)
from papers.bartscore.scorer import Score, TextScorer, Values, judge

DATA_TO_TEXT = ("bagel", "sfhot", "sfres")
NOISE = Noise(spans="infilling", ratio=0.3, poisson_lambda=3.0, permute_ratio=0.0)
MAX_LENGTH = 64


@dataclass(frozen=True)
class Recipe:
    """Steps of both phases of training, each with its own peak learning rate and a linear decay."""

    sets: tuple[str, ...] = DATA_TO_TEXT
    folds: int = 2
    denoising_steps: int = 150
    second_steps: int = 150
    denoising_lr: float = 4e-3
    second_lr: float = 2e-3
    vocab_size: int = 800
    batch_size: int = 32


RECIPES = {
    "smoke": Recipe(sets=("generated",), denoising_steps=3, second_steps=3, vocab_size=300, batch_size=16),
    "cpu": Recipe(),
    "gpu": Recipe(denoising_steps=2000, second_steps=2000, batch_size=128),
}


@dataclass(frozen=True)
class Texts:
    """Judged rows by set, references by meaning, the fold in which every meaning is judged, and a tokenizer of the
    references."""

    rows: dict[str, list[Judged]]
    groups: Groups
    folds: dict[Meaning, int]
    tokenizer: ByteBPE

    def judged(self, fold: int) -> list[str]:
        """References of the meanings that are judged in a fold."""
        return [text for meaning, some in self.groups.items() if self.folds[meaning] == fold for text in some]

    def training(self, fold: int) -> Groups:
        """Texts of the meanings of the other folds, without those that some meaning of this fold has as well."""
        here = set(self.judged(fold))
        others = {meaning: texts for meaning, texts in self.groups.items() if self.folds[meaning] != fold}
        return {meaning: [text for text in texts if text not in here] for meaning, texts in others.items()}


@cache
def load_texts(recipe: Recipe) -> Texts:
    """The sets of a recipe."""
    rows = {
        name: [delexicalised(row) for row in (generated.judged(60) if name == "generated" else read(name))]
        for name in recipe.sets
    }
    groups: Groups = {}
    for name, judged in rows.items():
        groups |= group(name, judged)
    every = [text for texts in groups.values() for text in texts]
    return Texts(rows, groups, folds_of(groups, recipe.folds), train_byte_bpe(every, recipe.vocab_size))


class Blind:
    """The targets of some pairs with nothing to read before them: what a model learns here is a language model."""

    def __init__(self, pairs: Any, tokenizer: ByteBPE) -> None:
        self.pairs, self.nothing = pairs, wrap(tokenizer, [""], 2)[0]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        return self.nothing, self.pairs[index][1]


def train_scorer(run: Run, recipe: Recipe, texts: Texts, fold: int) -> Score:
    """The scorer of run.arm that judges a fold.

    Both phases take the same steps in all arms: "tuned" undoes noise, then rewrites; "denoised" undoes noise in both;
    "language_model" learns the targets of "tuned" without reading anything; "untrained" keeps its initial weights.
    """
    groups, tokenizer = texts.training(fold), texts.tokenizer
    run.settings(scorer=run.arm)
    run.split(f"train:fold{fold}", [text for some in groups.values() for text in some])
    run.split(f"test:fold{fold}", texts.judged(fold))
    rows = wrap(tokenizer, [text for some in groups.values() for text in some], MAX_LENGTH)
    blocks = Blocks(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))
    noisy: Any = Denoised(blocks, noise_vocabulary(tokenizer), NOISE)
    again: Any = Pairs(rewritings(groups), tokenizer, MAX_LENGTH, MAX_LENGTH)
    first, second = {
        "tuned": (noisy, again),
        "denoised": (noisy, noisy),
        "language_model": (Blind(noisy, tokenizer), Blind(again, tokenizer)),
        "untrained": (None, None),
    }[run.arm]
    L.seed_everything(run.seed, verbose=False)
    module = _module(recipe, recipe.denoising_lr, recipe.denoising_steps)
    if first is not None:
        start = _fit(module, first, run, recipe, f"first-{fold}", recipe.denoising_steps)
        module = _module(recipe, recipe.second_lr, recipe.second_steps)
        hand_over(start, module)
        module = _fit(module, second, run, recipe, f"second-{fold}", recipe.second_steps)
    score = TextScorer(module.scorer, tokenizer, MAX_LENGTH, batch_size=64)
    if run.arm == "language_model":
        return lambda sources, targets: score([""] * len(sources), targets)
    return score


def _module(recipe: Recipe, lr: float, steps: int) -> Tuning:
    optim = Optim(lr, schedule="linear", warmup=max(1, steps // 10), total=steps)
    return Tuning(bart_tiny(recipe.vocab_size, MAX_LENGTH, dropout=0.0), optim)


def _fit(module: Tuning, data: Any, run: Run, recipe: Recipe, name: str, steps: int) -> Tuning:
    options: Any = {"collate": collate_pairs, "gradient_clip_val": 1.0}
    return train_on(run, module, data, steps=steps, batch_size=recipe.batch_size, name=name, **options)


def agreement_with_people(run: Run) -> dict[str, float]:
    """Spearman correlations of BARTScore's f (arm "rouge1": of ROUGE-1 F) with three judgements on every set.

    `spearman` is the mean of all of them; the others are means over sets or judgements, and of precision and recall.
    """
    recipe = sizes(run, **RECIPES)
    texts = load_texts(recipe)
    run.settings(scorer=run.arm)
    scored = rouge_scores(texts) if run.arm == "rouge1" else out_of_fold(run, recipe, texts)
    found: dict[str, list[float]] = {}
    for name, quantities in scored.items():
        for quantity in ("f", "precision", "recall"):
            for what, value in agreement(SETS[name], texts.rows[name], quantities[quantity]).items():
                judgement, statistic = what.split("/")
                if statistic == "spearman" and quantity == "f":
                    for key in ("spearman", f"spearman_{name}", f"spearman_{judgement}"):
                        found.setdefault(key, []).append(value)
                elif statistic == "spearman":
                    found.setdefault(f"spearman_of_{quantity}", []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def out_of_fold(run: Run, recipe: Recipe, texts: Texts) -> dict[str, dict[str, Values]]:
    """{set: {quantity: (rows,)}}, every row judged by a scorer that never trained on its meaning."""
    scored: dict[str, dict[str, Values]] = {name: {} for name in texts.rows}
    for fold in range(recipe.folds):
        score = train_scorer(run, recipe, texts, fold)
        for name, rows in texts.rows.items():
            here = [i for i, row in enumerate(rows) if texts.folds[meaning_of(name, row.source)] == fold]
            for quantity, values in judge(score, [rows[i] for i in here], SETS[name]).items():
                scored[name].setdefault(quantity, np.empty(len(rows)))[here] = values
    return scored


def rouge_scores(texts: Texts) -> dict[str, dict[str, Values]]:
    """ROUGE-1, the largest over the references."""
    scored = {}
    for name, rows in texts.rows.items():
        found = [ngram.best([ngram.rouge(row.hypothesis, r)["rouge1"] for r in set(row.references)]) for row in rows]
        scored[name] = dict(zip(("precision", "recall", "f"), np.array(found).T))
    return scored


def missing_from_made_up(run: Run) -> dict[str, float]:
    """Texts of two meanings of which one has one fact more. `direction` is the share (%) of such pairs of meanings in
    which BARTScore(more -> fewer) > BARTScore(fewer -> more), over up to two texts of each.

    As judgements: a text that leaves a fact out loses recall against precision, one that adds a fact loses precision.
    """
    recipe = sizes(run, **RECIPES)
    texts = load_texts(recipe)
    right: dict[str, list[float]] = {}
    for fold in range(recipe.folds):
        here = {meaning: some for meaning, some in texts.groups.items() if texts.folds[meaning] == fold}
        couples = [
            (more.set, long, short)
            for more, fewer in one_fact_apart(here)
            for long in here[more][:2]
            for short in here[fewer][:2]
        ]
        if not couples:
            continue
        names, long, short = zip(*couples)
        score = train_scorer(run, recipe, texts, fold)
        for name, hit in zip(names, score(long, short) > score(short, long)):
            right.setdefault("direction", []).append(hit)
            right.setdefault(f"direction_{name}", []).append(hit)
    return {name: 100 * float(np.mean(hits)) for name, hits in right.items()}

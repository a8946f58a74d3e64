"""The claims: the contrastive objective against predicting words at equal compute (Fig. 2), and prompt ensembling.

All arms have the same image tower, data, batch size and optimizer. What an arm saves by having no text tower it gets
back as further steps, so that all arms have the same number of multiply-adds in the forward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from common.eval.ranking import retrieval
from common.eval.zero_shot import classify
from common.fast.flops import multiply_adds
from common.training.run import Run, fit
from common.worlds import shapes
from papers.clip.baselines import BagOfWordsModule, Rule
from papers.clip.data import EmojiData, ShapesData, SmallData, normalise
from papers.clip.model import clip_small, small_image_tower
from papers.clip.module import CLIPModule, clip_optim
from papers.clip.zero_shot import zero_shot_classifier

CONTRASTIVE_STEPS = {"smoke": 4, "cpu": 1500}
LEARNING_RATE = 3e-3
BATCH = {"smoke": 16, "cpu": 64}
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}

# scores(images uint8, class names, templates) -> (N, C)
Scorer = Callable[[Tensor, Sequence[str], Sequence[str]], Tensor]


def objectives_on_shapes(run: Run) -> dict[str, float]:
    """Zero-shot on single objects of unseen combinations: among these (the claim), among all; of seen combinations; and
    image-to-text retrieval over captions of unseen combinations."""
    data = _shapes(run)
    score, metrics = _train(run, data, _seen_objects(data))
    metrics["zero_shot_top1"] = _top1(score(data.test_images, data.class_names, data.templates), data.test_labels)
    metrics["seen_top1"] = _top1(*_labelled(score, data, _seen_objects(data)))
    everything = data.class_names + [shapes.describe(c) for c in data.seen]
    metrics["all_top1"] = _top1(score(data.test_images, everything, data.templates), data.test_labels)
    images, captions = data.captioned(min(500, data.test_size), seed=3)
    recalls = retrieval(score(images, captions, ["{}"]))
    metrics["image_to_text_recall_at_1"] = recalls["image_to_text_recall@1"]
    metrics["text_to_image_recall_at_1"] = recalls["text_to_image_recall@1"]
    return metrics


def objectives_on_emoji(run: Run) -> dict[str, float]:
    """Zero-shot on the drawings of vendors not trained on, among all their concepts; and on concepts never seen."""
    data = EmojiData(batch_size=BATCH[run.scale], seed=run.seed)
    data.setup("fit")
    score, metrics = _train(run, data, data.known())
    scores = score(data.test_images, data.class_names, data.templates)
    metrics["zero_shot_top1"] = _top1(scores, data.test_labels)
    hits = scores.topk(5).indices == data.test_labels[:, None]
    metrics["zero_shot_top5"] = 100 * hits.any(dim=1).double().mean().item()
    unseen = sorted(data.unseen_names)
    columns = torch.tensor([data.class_names.index(name) for name in unseen])
    scores = score(data.unseen_images, unseen, data.templates)
    metrics["unseen_concepts_top1"] = 100 * (columns[scores.argmax(dim=1)] == data.unseen_labels).double().mean().item()
    return metrics


def prompts_on_shapes(run: Run) -> dict[str, float]:
    """One trained model: all five prompts averaged, against the default one ("a picture of a {}") and against the
    mean of the five used singly.
    """
    data = _shapes(run)
    score, metrics = _train(run, data, _seen_objects(data))
    images, labels = data.single_objects(data.unseen, 3 * data.test_size, seed=1)
    single = [_top1(score(images, data.class_names, [template]), labels) for template in data.templates]
    metrics["zero_shot_top1"] = _top1(score(images, data.class_names, data.templates), labels)
    metrics["default_prompt_top1"] = single[data.templates.index("a picture of a {}")]
    metrics["mean_of_prompts_top1"] = sum(single) / len(single)
    return metrics


Labelled = tuple[Tensor, Tensor, list[str]]  # images, labels, class names


def _shapes(run: Run) -> ShapesData:
    sizes = {"size": 128, "test_size": 38} if run.scale == "smoke" else {}
    data = ShapesData(batch_size=BATCH[run.scale], seed=run.seed, **sizes)
    data.setup("fit")
    return data


def _seen_objects(data: ShapesData) -> Labelled:
    images, labels = data.single_objects(data.seen, data.test_size, seed=2)
    return images, labels, [shapes.describe(c) for c in data.seen]


def _labelled(score: Scorer, data: SmallData, known: Labelled) -> tuple[Tensor, Tensor]:
    images, labels, names = known
    return score(images, names, data.templates), labels


def _train(run: Run, data: SmallData, known: Labelled) -> tuple[Scorer, dict[str, float]]:
    """Train run.arm; returns its scores and what it cost. `known` has no test data: the baseline picks its rule on
    it.
    """
    L.seed_everything(run.seed, verbose=False)
    steps = CONTRASTIVE_STEPS[run.scale]
    batch = data.train.__getitems__(list(range(128)))
    clip = clip_small(len(data.tokenizer), data.context_length)
    pair_cost = multiply_adds(clip, batch["image"], batch["tokens"]) / 128
    if run.arm == "contrastive":
        module = CLIPModule(clip, optim=clip_optim(LEARNING_RATE, steps // 10))
        fit(module, data, run=run, max_steps=steps, **QUIET)
        cost = {"steps": float(steps), "multiply_adds_g": steps * data.batch_size * pair_cost / 1e9}
        return _contrastive_scorer(module, data), cost
    L.seed_everything(run.seed, verbose=False)
    bag = BagOfWordsModule(small_image_tower(), len(data.vocabulary), optim=clip_optim(LEARNING_RATE, steps // 10))
    image_cost = multiply_adds(bag.log_probabilities, batch["image"]) / 128
    steps = round(steps * pair_cost / image_cost)
    bag.optim = clip_optim(LEARNING_RATE, steps // 10)
    fit(bag, data, run=run, max_steps=steps, **QUIET)
    cost = {"steps": float(steps), "multiply_adds_g": steps * data.batch_size * image_cost / 1e9}
    rules: tuple[Rule, ...] = ("sum", "mean", "lift")
    scorers = {rule: _bag_scorer(bag, data, rule) for rule in rules}
    accuracy = {rule: _top1(*_labelled(scorer, data, known)) for rule, scorer in scorers.items()}
    best = max(rules, key=lambda rule: accuracy[rule])
    return scorers[best], cost | {f"known_top1_{rule}": value for rule, value in accuracy.items()}


@torch.no_grad()
def _batched(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([function(normalise(part)) for part in images.split(500)])


def _contrastive_scorer(module: CLIPModule, data: SmallData) -> Scorer:
    def score(images: Tensor, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        weights = zero_shot_classifier(module.model, data.tokenizer, names, templates)
        return _batched(lambda part: classify(module.model.image(part), weights), images)

    return score


def _bag_scorer(module: BagOfWordsModule, data: SmallData, rule: Rule) -> Scorer:
    """The words of the bare class name; the words of the templates would be the same for all classes."""
    prior = data.train.words.float().mean(dim=0)

    def score(images: Tensor, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        prompts = data.vocabulary.bag(names)
        return _batched(lambda part: module.scores(part, prompts, rule, prior), images)

    return score


def _top1(scores: Tensor, labels: Tensor) -> float:
    """Percent of rows whose best column is the label."""
    return 100 * (scores.argmax(dim=1) == labels).double().mean().item()

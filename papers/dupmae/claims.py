"""The arms of the claims: tiny encoders pre-trained on Cranfield's abstracts with one, two or all three losses.

The arms of a claim share data, vocabulary, model, optimizer and, for one seed, the initial weights. They spend the same
time on one core: the cheaper the losses, the more steps (`Recipe.steps`). Queries and judgements are used for
evaluation alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import lightning as L
import torch

from common.data.wordpiece import WordPiece
from common.training.loader import train_loader
from common.training.run import Run, fit
from papers.dupmae.blocks import article_blocks
from papers.dupmae.bm25 import BM25
from papers.dupmae.collection import Collection, cranfield
from papers.dupmae.data import Cloze, Encoding, MaskedText, pad
from papers.dupmae.model import DupMAE
from papers.dupmae.module import Method, Pretraining, Retrieval, word_recall
from papers.dupmae.retriever import Representation, Retriever
from papers.dupmae.search import Index, Ranking, ranking_metrics


@dataclass(frozen=True)
class Recipe:
    """Sizes of a scale. `steps` are those of pre-training, chosen so that every method takes the same time."""

    steps: dict[str, int] = field(default_factory=lambda: {"mlm": 400, "retromae": 240, "dupmae": 200})
    tuning_steps: int = 60
    vocab_size: int = 1024
    length: int = 64
    batch_size: int = 32
    lr: float = 3e-3
    tuning_lr: float = 1e-3
    bag_weight: float = 1.0
    dim: int = 64
    top_k: int = 64
    passage_length: int = 128
    documents: int = 1400


RECIPES = {
    "smoke": Recipe(
        steps=dict.fromkeys(("mlm", "retromae", "dupmae"), 3),
        tuning_steps=2,
        vocab_size=300,
        batch_size=8,
        documents=60,
    ),
    "cpu": Recipe(),
    "gpu": Recipe(steps={"mlm": 8000, "retromae": 4800, "dupmae": 4000}, tuning_steps=1000, batch_size=128),
}


@dataclass(frozen=True)
class Text:
    """Cranfield under a vocabulary trained on its abstracts."""

    collection: Collection
    tokenizer: WordPiece

    def texts(self, held_out: bool | None = None) -> list[str]:
        """Abstracts that are not empty: all of them, every tenth (held out), or the others."""
        texts = [passage.text for passage in self.collection.corpus.values() if passage.text]
        return texts if held_out is None else [t for i, t in enumerate(texts) if (i % 10 == 0) == held_out]


@cache
def load(recipe_documents: int, vocab_size: int) -> Text:
    """The first `recipe_documents` abstracts (all of them but in a smoke run), and all queries."""
    whole = cranfield()
    corpus = dict(list(whole.corpus.items())[:recipe_documents])
    judged = {
        q: kept for q, g in whole.judged.items() if any((kept := {d: r for d, r in g.items() if d in corpus}).values())
    }
    found = Collection(corpus, whole.queries, judged)
    return Text(found, WordPiece.train([p.text for p in corpus.values()], vocab_size))


def duplex_pretraining(run: Run) -> dict[str, float]:
    """Claim 1: pre-train with the arm's losses, fine-tune without labels, retrieve.

    ndcg: nDCG@10 (%) of the joint score over 225 queries; ndcg_cls, ndcg_words: of its parts alone; recall: recall@100
    (%) of the joint score. Arm `bm25` is BM25 on the same texts, whole.
    """
    recipe = RECIPES[run.scale]
    text = load(recipe.documents, recipe.vocab_size)
    if run.arm == "bm25":
        return bm25(text.collection)
    pretrained = pretrain(run, recipe, text, run.arm, text.texts())
    return retrieval(fine_tune(run, recipe, text, pretrained), recipe, text)


def words_kept(run: Run) -> dict[str, float]:
    """Claim 2: how many words of an unseen abstract its ordinary tokens name after pre-training.

    word_recall: share (%) of a text's n distinct words among the n largest entries of mu, mean over held-out abstracts.
    """
    recipe = RECIPES[run.scale]
    text = load(recipe.documents, recipe.vocab_size)
    model = pretrain(run, recipe, text, run.arm, text.texts(held_out=False))
    collate = MaskedText(text.tokenizer, recipe.passage_length, 0.3, 0.5, fixed=True)
    ids = text.tokenizer.encode_batch(text.texts(held_out=True))
    return {"word_recall": 100 * word_recall(model.eval(), collate(ids)).item()}


def pretrain(run: Run, recipe: Recipe, text: Text, method: str, texts: Sequence[str]) -> DupMAE:
    """An encoder pre-trained with a method on blocks of the texts."""
    blocks = list(article_blocks(texts, text.tokenizer, recipe.length - 2))
    L.seed_everything(run.seed, verbose=False)
    steps = recipe.steps[method]
    module = Pretraining(
        "tiny",
        cast(Method, method),
        recipe.vocab_size,
        dropout=0.0,
        bag_weight=recipe.bag_weight,
        lr=recipe.lr,
        total_steps=steps,
    )
    return _train(
        run, module, "pretraining", blocks, MaskedText(text.tokenizer, recipe.length, 0.3, 0.5), steps, recipe
    ).model


def fine_tune(run: Run, recipe: Recipe, text: Text, pretrained: DupMAE) -> Retriever:
    """A retriever from a pre-trained encoder, by the inverse cloze task on the abstracts."""
    L.seed_everything(run.seed, verbose=False)
    module = Retrieval(
        "tiny",
        recipe.vocab_size,
        dim=recipe.dim,
        top_k=recipe.top_k,
        dropout=0.0,
        lr=recipe.tuning_lr,
        warmup=0.1,
        total_steps=recipe.tuning_steps,
    )
    module.model.mlm.load_state_dict(pretrained.mlm.state_dict())
    encoding = Encoding(text.tokenizer, query_length=32, passage_length=recipe.length)
    return _train(run, module, "tuning", Cloze(text.texts()), encoding.groups, recipe.tuning_steps, recipe).model


@torch.no_grad()
def retrieval(model: Retriever, recipe: Recipe, text: Text) -> dict[str, float]:
    """nDCG@10 and recall@100 (%) of the joint score, nDCG@10 of its parts."""
    corpus, queries, judged = text.collection
    encoding = Encoding(text.tokenizer, query_length=48, passage_length=recipe.passage_length)
    names = list(corpus)
    parts = [model(pad([encoding.passage(corpus[n]) for n in names[i : i + 64]])) for i in range(0, len(names), 64)]
    documents = Representation(torch.cat([p.dense for p in parts]), torch.cat([p.lexical for p in parts]))
    asked = model(pad([encoding.query(queries[q]) for q in judged]))
    found = {}
    for part, (dense, words) in {"": (1, 1), "_cls": (1, 0), "_words": (0, 1)}.items():
        index = Index(recipe.vocab_size, recipe.top_k)
        index.add(names, Representation(dense * documents.dense, words * documents.lexical))
        values, rows = index.search(asked, depth=100)
        ranking: Ranking = {
            q: [(names[i], v) for i, v in zip(best, value)]
            for q, best, value in zip(judged, rows.tolist(), values.tolist())
        }
        metrics = ranking_metrics(ranking, judged, recall_at=(100,))
        found[f"ndcg{part}"] = 100 * metrics["ndcg@10"]
        if not part:
            found["recall"] = 100 * metrics["recall@100"]
    return found


def bm25(collection: Collection) -> dict[str, float]:
    """The lexical baseline on whole abstracts."""
    names = list(collection.corpus)
    scores = BM25([collection.corpus[n].text for n in names]).scores(
        [collection.queries[q].text for q in collection.judged]
    )
    ranking: Ranking = {
        q: [(names[i], float(row[i])) for i in (-row).argsort(kind="stable")[:100]]
        for q, row in zip(collection.judged, scores)
    }
    metrics = ranking_metrics(ranking, collection.judged, recall_at=(100,))
    return {"ndcg": 100 * metrics["ndcg@10"], "recall": 100 * metrics["recall@100"]}


def _train(run: Run, module: Any, name: str, data: Any, collate: Any, steps: int, recipe: Recipe) -> Any:
    """Trains with gradients clipped at 1, on examples in an order that only the seed decides; then in eval mode."""
    return fit(
        module,
        lambda trainer: train_loader(
            data, recipe.batch_size, seed=run.seed, collate_fn=collate, trainer=trainer, num_batches=steps
        ),
        run=run,
        name=name,
        max_steps=steps,
        gradient_clip_val=1.0,
    )

"""The arms of the claims: tiny encoders pre-trained on Cranfield's abstracts with one, two or all three losses.

The arms of a claim share data, vocabulary, model, optimizer (but for its rate) and, for one seed, the initial weights.
They spend the same time on one core: the cheaper the losses, the more steps (`Recipe.steps`). Queries and judgements
are used for evaluation alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from common.formats.wordpiece import PAD, WordPiece
from common.training.loaders import train_loader
from common.training.run import Run, fit
from papers.dupmae.blocks import article_blocks
from papers.dupmae.bm25 import BM25
from papers.dupmae.collection import Collection, cranfield
from papers.dupmae.data import Cloze, Encoding, MaskedText, pad
from papers.dupmae.model import Batch, DupMAE
from papers.dupmae.module import Method, Pretraining, Retrieval, word_recall
from papers.dupmae.retriever import Representation, Retriever
from papers.dupmae.search import Index, Ranking, ranking_metrics

MEASURES = {"ndcg": "ndcg@10", "mrr": "mrr@10", "recall": "recall@100"}


@dataclass(frozen=True)
class Recipe:
    """Sizes of a scale. `steps` are those of pre-training, chosen so that every method takes the same time; `lr` is its
    rate, for every method the better of 2e-3 and 3e-3. Texts are cut to `length` tokens in every stage, as no longer
    position would be trained.
    """

    steps: dict[str, int] = field(default_factory=lambda: {"mlm": 400, "retromae": 240, "dupmae": 200})
    tuning_steps: int = 60
    vocab_size: int = 1024
    length: int = 64
    batch_size: int = 32
    lr: dict[str, float] = field(default_factory=lambda: {"mlm": 3e-3, "retromae": 2e-3, "dupmae": 2e-3})
    tuning_lrs: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    bag_weight: float = 1.0
    dim: int = 64
    top_k: int = 64
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
    """Claims 1 and 2: pre-train with the arm's losses, fine-tune without labels at every rate, retrieve.

    Returned are the measures at the rate, `tuning_lr`, with the best nDCG on the queries themselves: every trained arm
    has this choice, as scores of raw logits differ in size from arm to arm, and a rate that is too high ruins any.
    ndcg, mrr, recall: nDCG@10, MRR@10 and recall@100 (%) of the joint score over 225 queries; with `_cls` or `_words`
    behind the name, of that part alone. Arm `bm25` is BM25 on the same texts, whole, the same in every seed.
    """
    recipe = RECIPES[run.scale]
    text = load(recipe.documents, recipe.vocab_size)
    if run.arm == "bm25":
        return bm25(text.collection)
    pretrained = pretrain(run, recipe, text, run.arm, text.texts())
    tried = []
    for lr in recipe.tuning_lrs:
        retriever = fine_tune(run, recipe, text, pretrained, lr)
        tried.append(retrieval(retriever, recipe, text) | {"tuning_lr": lr})
    return max(tried, key=lambda metrics: metrics["ndcg"])


def words_kept(run: Run) -> dict[str, float]:
    """Claim 3: how many words of an unseen abstract its ordinary tokens name after pre-training.

    word_recall: share (%) of a text's n distinct words among the n largest entries of mu, mean over held-out abstracts.
    """
    model, batch = held_out(run)
    return {"word_recall": 100 * word_recall(model, batch).item()}


def decoder_reads_cls(run: Run) -> dict[str, float]:
    """Claim 4: the decoder is too weak to rebuild a text without its sentence embedding.

    reconstruction: mean over the tokens of held-out abstracts of -log p(token), nats, masks as in training; accuracy:
    share (%) of the tokens that the decoder names first. With `_other` behind: given [CLS] of another abstract.
    """
    model, batch = held_out(run)
    with torch.no_grad():
        cls = model.mlm.bert(batch.inputs, batch.tokens.ne(PAD))[:, 0]
    other = rebuilt(model, cls.roll(1, dims=0), batch)
    return rebuilt(model, cls, batch) | {f"{name}_other": value for name, value in other.items()}


@torch.no_grad()
def rebuilt(model: DupMAE, cls: Tensor, batch: Batch) -> dict[str, float]:
    """Loss and accuracy of the decoder on the text of a batch, given sentence embeddings cls (B, D)."""
    logits = model.mlm.logits(model.decode(cls, batch.tokens, batch.allowed)[batch.text])
    wanted = batch.tokens[batch.text]
    right = (logits.argmax(dim=-1) == wanted).double().mean()
    return {"reconstruction": F.cross_entropy(logits, wanted).item(), "accuracy": 100 * right.item()}


def held_out(run: Run) -> tuple[DupMAE, Batch]:
    """The arm's encoder after pre-training on nine abstracts of ten, and the tenth ones, cut as in training."""
    recipe = RECIPES[run.scale]
    text = load(recipe.documents, recipe.vocab_size)
    model = pretrain(run, recipe, text, run.arm, text.texts(held_out=False))
    collate = MaskedText(text.tokenizer, recipe.length, 0.3, 0.5, fixed=True)
    return model.eval(), collate(text.tokenizer.encode_batch(text.texts(held_out=True)))


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
        lr=recipe.lr[method],
        total_steps=steps,
    )
    return _train(
        run, module, "pretraining", blocks, MaskedText(text.tokenizer, recipe.length, 0.3, 0.5), steps, recipe
    ).model


def fine_tune(run: Run, recipe: Recipe, text: Text, pretrained: DupMAE, lr: float) -> Retriever:
    """A retriever from a pre-trained encoder, by the inverse cloze task on the abstracts."""
    L.seed_everything(run.seed, verbose=False)
    module = Retrieval(
        "tiny",
        recipe.vocab_size,
        dim=recipe.dim,
        top_k=recipe.top_k,
        dropout=0.0,
        lr=lr,
        warmup=0.1,
        total_steps=recipe.tuning_steps,
    )
    module.model.mlm.load_state_dict(pretrained.mlm.state_dict())
    encoding = Encoding(text.tokenizer, query_length=32, passage_length=recipe.length)
    name = f"tuning-{lr:g}"
    return _train(run, module, name, Cloze(text.texts()), encoding.groups, recipe.tuning_steps, recipe).model


@torch.no_grad()
def retrieval(model: Retriever, recipe: Recipe, text: Text) -> dict[str, float]:
    """The measures (%) of the joint score, and with `_cls` and `_words` behind the name those of its parts."""
    corpus, queries, judged = text.collection
    encoding = Encoding(text.tokenizer, query_length=48, passage_length=recipe.length)
    names = list(corpus)
    parts = [model(pad([encoding.passage(corpus[n]) for n in names[i : i + 64]])) for i in range(0, len(names), 64)]
    documents = Representation(torch.cat([p.dense for p in parts]), torch.cat([p.lexical for p in parts]))
    asked = model(pad([encoding.query(queries[q]) for q in judged]))
    found: dict[str, float] = {}
    for part, (dense, words) in {"": (1, 1), "_cls": (1, 0), "_words": (0, 1)}.items():
        index = Index(recipe.vocab_size, recipe.top_k)
        index.add(names, Representation(dense * documents.dense, words * documents.lexical))
        values, rows = index.search(asked, depth=100)
        ranking: Ranking = {
            q: [(names[i], v) for i, v in zip(best, value)]
            for q, best, value in zip(judged, rows.tolist(), values.tolist())
        }
        found |= {f"{name}{part}": value for name, value in percent(ranking, text.collection).items()}
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
    return percent(ranking, collection)


def percent(ranking: Ranking, collection: Collection) -> dict[str, float]:
    """nDCG@10, MRR@10 and recall@100 of a ranking of the judged queries, in percent."""
    metrics = ranking_metrics(ranking, collection.judged, recall_at=(100,))
    return {name: 100 * metrics[key] for name, key in MEASURES.items()}


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

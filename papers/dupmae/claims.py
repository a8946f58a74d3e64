"""The arms of the claims: tiny encoders pre-trained on Cranfield's abstracts with one, two or all three losses.

The arms of a claim share data, vocabulary, model, optimizer (but for its rate) and, for one seed, the initial weights.
They spend the same time on one core: the cheaper the losses, the more steps (`Plan.steps`). Queries and judgements
are used for evaluation alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import cast

import lightning as L
import torch
import torch.nn.functional as F
from bm25s import BM25
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor

from common.eval.ranking import ranking_metrics
from common.eval.ranking_data import Encoding
from common.formats.collection import Collection, Ranking, cranfield
from common.formats.text_corpus import TextBlocks, pad, sentence_blocks
from common.formats.wordpiece import PAD, WordPiece
from common.training.loaders import seeded
from common.training.recipe import Optim
from common.training.run import Run, hand_over, sizes, train_on
from papers.dupmae.data import Cloze, MaskedText
from papers.dupmae.model import Batch, DupMAE
from papers.dupmae.module import Method, Pretraining, Retrieval, word_recall
from papers.dupmae.retriever import Index, Representation, Retriever

MEASURES = {"ndcg": "ndcg@10", "mrr": "mrr@10", "recall": "recall@100"}


@dataclass(frozen=True)
class Plan:
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


PLANS = {
    "smoke": Plan(
        steps=dict.fromkeys(("mlm", "retromae", "dupmae"), 3),
        tuning_steps=2,
        vocab_size=300,
        batch_size=8,
        documents=60,
    ),
    "cpu": Plan(),
    "gpu": Plan(steps={"mlm": 8000, "retromae": 4800, "dupmae": 4000}, tuning_steps=1000, batch_size=128),
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
def load(documents: int, vocab_size: int) -> Text:
    """The first `documents` abstracts (all of them but in a smoke run), and all queries."""
    whole = cranfield()
    corpus = dict(list(whole.corpus.items())[:documents])
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
    plan = sizes(run, **PLANS)
    text = load(plan.documents, plan.vocab_size)
    run.split("test", [text.collection.queries[query].text for query in text.collection.judged])
    if run.arm == "bm25":
        return bm25(text.collection)
    pretrained = pretrain(run, plan, text, text.texts())
    tried = []
    for number, lr in enumerate(plan.tuning_lrs):
        retriever = fine_tune(run, plan, text, pretrained, lr, f"tuning-{number}")
        tried.append(retrieval(retriever, plan, text) | {"tuning_lr": lr})
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
    plan = sizes(run, **PLANS)
    text = load(plan.documents, plan.vocab_size)
    unseen = run.split("test", text.texts(held_out=True))
    run.split("train", text.texts(held_out=False))
    model = pretrain(run, plan, text, text.texts(held_out=False))
    rows = list(TextBlocks(text.tokenizer.encode_batch(unseen), text.tokenizer, plan.length))
    with seeded(0, sum(int(row.sum()) for row in rows)):
        return model.eval(), MaskedText(text.tokenizer)(rows)


def pretrain(run: Run, plan: Plan, text: Text, texts: Sequence[str]) -> DupMAE:
    """An encoder pre-trained with the arm's method on blocks of the texts."""
    blocks = list(sentence_blocks(texts, text.tokenizer, plan.length - 2))
    steps = plan.steps[run.arm]
    run.settings(method=run.arm)
    L.seed_everything(run.seed, verbose=False)
    optim = Optim(plan.lr[run.arm], weight_decay=0.01, schedule="linear", warmup=0.1, total=steps)
    method = cast(Method, run.arm)
    module = Pretraining(optim, "tiny", method, plan.vocab_size, bag_weight=plan.bag_weight, dropout=0.0)
    return train_on(
        run, module, TextBlocks(blocks, text.tokenizer, plan.length), steps=steps, batch_size=plan.batch_size,
        collate=MaskedText(text.tokenizer), name="pretraining", gradient_clip_val=1.0,
    ).model  # fmt: skip


def fine_tune(run: Run, plan: Plan, text: Text, pretrained: DupMAE, lr: float, name: str) -> Retriever:
    """A retriever from a pre-trained encoder, by the inverse cloze task on the abstracts."""
    L.seed_everything(run.seed, verbose=False)
    optim = Optim(lr, schedule="linear", warmup=0.1, total=plan.tuning_steps)
    module = Retrieval(optim, "tiny", plan.vocab_size, dim=plan.dim, top_k=plan.top_k, dropout=0.0)
    hand_over(pretrained.mlm, module.model.mlm)
    encoding = Encoding(text.tokenizer, query_length=32, passage_length=plan.length)
    return train_on(
        run, module, Cloze(text.texts()), steps=plan.tuning_steps, batch_size=plan.batch_size,
        collate=encoding.groups, name=name, gradient_clip_val=1.0,
    ).model  # fmt: skip


@torch.no_grad()
def retrieval(model: Retriever, plan: Plan, text: Text) -> dict[str, float]:
    """The measures (%) of the joint score, and with `_cls` and `_words` behind the name those of its parts."""
    corpus, queries, judged, _ = text.collection
    encoding = Encoding(text.tokenizer, query_length=48, passage_length=plan.length)
    names = list(corpus)
    parts = [model(pad([encoding.passage(corpus[n]) for n in names[i : i + 64]])) for i in range(0, len(names), 64)]
    documents = Representation(torch.cat([p.dense for p in parts]), torch.cat([p.lexical for p in parts]))
    asked = model(pad([encoding.query(queries[q]) for q in judged]))
    found: dict[str, float] = {}
    for part, (dense, words) in {"": (1, 1), "_cls": (1, 0), "_words": (0, 1)}.items():
        index = Index(plan.vocab_size, plan.top_k)
        index.add(names, Representation(dense * documents.dense, words * documents.lexical))
        values, rows = index.search(asked, depth=100)
        ranking: Ranking = {
            q: [(names[i], v) for i, v in zip(best, value)]
            for q, best, value in zip(judged, rows.tolist(), values.tolist())
        }
        found |= {f"{name}{part}": value for name, value in percent(ranking, text.collection).items()}
    return found


def bm25(collection: Collection) -> dict[str, float]:
    """The lexical baseline on whole abstracts: k1 and b as in Anserini's MS MARCO baseline, its (Lucene's) formula."""
    names = list(collection.corpus)
    index = BM25(k1=0.9, b=0.4, method="lucene", dtype="float64")
    index.index([terms(collection.corpus[name].text) for name in names], show_progress=False)
    scores = [index.get_scores(terms(collection.queries[query].text)) for query in collection.judged]
    ranking: Ranking = {
        q: [(names[i], float(row[i])) for i in (-row).argsort(kind="stable")[:100]]
        for q, row in zip(collection.judged, scores)
    }
    return percent(ranking, collection)


def terms(text: str) -> list[str]:
    """Lower-cased words and numbers without stop words; a plural s goes."""
    words = [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in ENGLISH_STOP_WORDS]
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words]


def percent(ranking: Ranking, collection: Collection) -> dict[str, float]:
    """nDCG@10, MRR@10 and recall@100 of a ranking of the judged queries, in percent."""
    metrics = ranking_metrics(ranking, collection.judged, recall_at=(100,), shared_ids=collection.shared_ids)
    return {name: 100 * metrics[key] for name, key in MEASURES.items()}

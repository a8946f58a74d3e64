"""DupMAE's stages of training, one after the other, and the teacher of the last."""

import lightning as L
import numpy as np
import pytest
import torch

from common.eval.ranking_data import RankingData, TrainingGroups
from common.formats import collection
from common.formats.collection import mine_negatives, read_collection
from common.training.recipe import Optim
from papers.dupmae import fixtures
from papers.dupmae.data import Corpus
from papers.dupmae.interop import load_retriever
from papers.dupmae.module import Pretraining, Retrieval
from papers.dupmae.reranker import Candidates, Reranking
from tests import tiny

TINY = {"optim": Optim(1e-3, schedule="linear", total=6), "size": "tiny", "vocab_size": fixtures.VOCAB}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("dupmae")
    fixtures.blocks(root)
    return root


def ranking(folder, **kwargs) -> RankingData:
    arguments = {"path": str(folder / "msmarco"), "tokenizer": str(folder / "tokenizer"), "batch_size": 3}
    return RankingData(**(arguments | {"group_size": 3, "passage_length": 24, "eval_batch_size": 16} | kwargs))


def test_stages_follow_one_another_from_pretraining_to_distillation(folder, tmp_path):
    """Pre-train, fine-tune, rank, mine, teach, distil: each stage starts from what the one before left."""
    L.seed_everything(0, verbose=False)
    start = tmp_path / "pretrained"
    blocks = [str(folder / f"{kind}_blocks") for kind in ("books", "passages")]
    corpus = Corpus(blocks, tokenizer=str(folder / "tokenizer"), length=24, batch_size=4, held_out=4)
    tiny.quiet(2, limit_val_batches=1).fit(Pretraining(**TINY, export=str(start)), corpus)
    stage = Retrieval(**TINY, dim=16, top_k=8, start=str(start), export=str(tmp_path / "stage1"))
    trainer = tiny.quiet(4)
    trainer.fit(stage, ranking(folder))
    assert 0 <= trainer.callback_metrics["val/mrr@10"] <= 1

    again = Retrieval(
        **TINY, dim=16, top_k=8, start=str(tmp_path / "stage1"), ranking=str(tmp_path / "ranking"), depth=9
    )
    whole = load_retriever(tmp_path / "stage1", top_k=8)
    reported = tiny.quiet(1).test(again, ranking(folder, split="train"), verbose=False)
    metrics = {name: value for loader in reported for name, value in loader.items()}
    found = collection.read_ranking(tmp_path / "ranking")
    data_module = ranking(folder, split="train")
    data_module.setup()
    passages, queries = (list(loader) for loader in data_module.val_dataloader())
    with torch.no_grad():
        documents = whole(torch.nn.utils.rnn.pad_sequence([r for b in passages for r in b.tokens], batch_first=True))
        scores = whole.score(whole(queries[0].tokens), documents)
    names = [name for b in passages for name in b.ids]
    for query, row in zip(queries[0].ids, scores):
        assert [name for name, _ in found[query]] == [names[i] for i in row.topk(9).indices]
    judged = data_module.collection.judged
    first = [
        [p for p, _ in found[q]].index(next(iter(judged[q]))) + 1 if next(iter(judged[q])) in dict(found[q]) else 0
        for q in judged
    ]
    assert metrics["test/mrr@10"] == pytest.approx(np.mean([1 / f if f else 0 for f in first]), abs=1e-6)

    collection.write_negatives(tmp_path / "negatives", mine_negatives(found, judged))
    teacher = Reranking(**TINY, scores=str(tmp_path / "scores.txt"))
    pairs = Candidates(
        path=str(folder / "msmarco"), tokenizer=str(folder / "tokenizer"), split="train", group_size=3, batch_size=2,
        negatives=str(tmp_path / "negatives"), ranking=str(tmp_path / "ranking"), depth=9, length=40,
    )  # fmt: skip
    tiny.quiet(1).fit(teacher, pairs)
    tiny.quiet(1).test(teacher, pairs, verbose=False)
    scored = collection.read_scores(tmp_path / "scores.txt")
    assert all({p for p, _ in found[q][:9]} | set(judged[q]) == set(scored[q]) for q in judged)
    student = Retrieval(**TINY, dim=16, top_k=8, start=str(tmp_path / "stage1"), contrastive_weight=1e-4)
    distilled = ranking(
        folder, negatives=str(tmp_path / "negatives"), teacher=[str(tmp_path / "scores.txt")], group_size=9
    )
    trainer = tiny.quiet(1, limit_val_batches=0)
    trainer.fit(student, distilled)
    logged = trainer.callback_metrics
    assert logged["train/loss"] < 0.1 * logged["train/contrastive"]


def test_the_teachers_loss_is_the_positive_against_its_group(folder):
    marco = read_collection(folder / "msmarco", "train")
    groups = TrainingGroups(marco, {}, None, group_size=3)
    pairs = Candidates(path=str(folder / "msmarco"), tokenizer=str(folder / "tokenizer"), length=40)
    pairs.setup()
    batch = pairs.collate([groups[0], groups[1]])
    module = Reranking(**TINY, dropout=0.0).eval()
    scores = module.model(batch.tokens, batch.segments)
    expected = -torch.stack([scores[:3].log_softmax(0)[0], scores[3:].log_softmax(0)[0]]).mean()
    torch.testing.assert_close(module.loss(batch), expected)
    other = module.model(batch.tokens, torch.zeros_like(batch.segments))
    assert not torch.allclose(other, scores)

"""DupMAE's data in the forms in which it lies on disk, and its training runs."""

import json
import random
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml

from common.errors import EncoreError
from common.formats.wordpiece import WordPiece
from papers.dupmae import blocks, collection, data
from papers.dupmae.collection import Passage, mine_negatives, read_collection
from papers.dupmae.data import Cloze, Corpus, Encoding, InverseCloze, MaskedText, Ranking, TrainingGroups
from papers.dupmae.interop import load_retriever
from papers.dupmae.module import Pretraining, Retrieval
from papers.dupmae.reranker import Candidates, PairEncoding, Reranking
from tests.helpers import assert_resumes_exactly, requires_mirror

CONFIGS = Path("papers/dupmae/configs")
WORDS = "the wing lift drag flow of a body in supersonic laminar heat transfer shock layer boundary plate"


def sentence(rng: random.Random, length: int = 8) -> str:
    return " ".join(rng.choices(WORDS.split(), k=length)) + "."


def text(rng: random.Random) -> str:
    return " ".join(sentence(rng) for _ in range(3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A vocabulary, and MS MARCO, BEIR, Wikipedia and BooksCorpus in small, as their files are."""
    import datasets

    root, rng = tmp_path_factory.mktemp("dupmae"), random.Random(0)
    WordPiece.train([text(rng) for _ in range(60)], 120).save(root / "vocabulary")
    marco = root / "msmarco"
    marco.mkdir()
    titles = [f"{rng.choice(WORDS.split())} {i}" if i % 3 else "-" for i in range(40)]
    passages = [text(rng) for _ in range(40)]
    rows = [f"{i}\t{t}\t{p}" for i, (t, p) in enumerate(zip(titles, passages))]
    (marco / "corpus.tsv").write_text("\n".join(rows) + "\n")
    for split, count, first in (("train", 12, 0), ("dev", 4, 100)):
        queries = [f"{first + i}\t{sentence(rng, 4)}\n" for i in range(count)]
        (marco / f"{split}.query.txt").write_text("".join(queries))
        judged = [f"{first + i}\t0\t{i}\t1\n" for i in range(count)]
        (marco / f"qrels.{split}.tsv").write_text("".join(judged))
    (marco / "train_negs.tsv").write_text("".join(f"{q}\t{','.join(map(str, range(20, 36)))}\n" for q in range(12)))
    pairs = [(q, p) for q in range(12) for p in (q, *range(20, 36))]
    (marco / "train_scores.txt").write_text("".join(f"{q}\t{p}\t[{rng.gauss(0, 3):.3f}]\n" for q, p in pairs))
    beir = root / "beir"
    (beir / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "title": "", "text": text(rng), "metadata": {}} for i in range(10)]
    (beir / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    asked = [{"_id": f"q{i}", "text": sentence(rng, 3)} for i in range(3)]
    (beir / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td3\t2\nq0\td4\t0\nq2\td9\t1\n")
    articles = {"title": ["A", "B"], "text": [" ".join(text(rng) for _ in range(6)), text(rng)]}
    datasets.Dataset.from_dict(articles).save_to_disk(root / "wikipedia")
    (root / "books").mkdir()
    (root / "books" / "part.txt").write_text("\n".join(sentence(rng, 6).lower() for _ in range(30)))
    tokenizer = WordPiece.load(root / "vocabulary")
    for kind, source in (
        ("wikipedia", root / "wikipedia"),
        ("books", root / "books"),
        ("passages", marco / "corpus.tsv"),
    ):
        blocks.save_blocks(kind, source, tokenizer, root / f"{kind}_blocks", 22)
    return root


@pytest.fixture(autouse=True)
def _no_shared_cache(monkeypatch, tmp_path_factory):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


@pytest.fixture(scope="module")
def tokenizer(folder) -> WordPiece:
    return WordPiece.load(folder / "vocabulary")


# ------------------------------------------------------------------------------------------------ pre-training blocks


def test_blocks_end_with_the_sentence_that_fills_them_and_never_span_two_articles(folder, tokenizer):
    assert list(blocks.join([[1, 2], [3, 4], [5], [6, 7, 8, 9], [10]], 3)) == [[1, 2, 3, 4], [5, 6, 7, 8, 9], [10]]
    assert blocks.sentences('One. Two! "Three?" Four') == ["One.", "Two!", '"Three?', "Four"]
    saved = data.SavedBlocks(folder / "wikipedia_blocks")
    articles = blocks.load_from_disk(folder / "wikipedia")["text"]
    encoded = tokenizer.encode_batch(articles)
    assert [i for block in saved for i in block] == [i for ids in encoded for i in ids]
    ends = np.cumsum([len(block) for block in saved])
    assert len(encoded[0]) in ends
    assert all(len(block) >= 22 for block in list(saved)[:3])
    books = data.SavedBlocks(folder / "books_blocks")
    assert all(len(books[i]) >= 22 for i in range(len(books) - 1))
    passages = data.SavedBlocks(folder / "passages_blocks")
    corpus = collection.TextFile(folder / "msmarco" / "corpus.tsv")
    first = tokenizer.encode_batch([corpus["0"].text])[0]  # its title "-" is too short to count
    assert passages[0] == first[: len(passages[0])]
    second = tokenizer.encode_batch([f"{corpus['1'].title} {corpus['1'].text}"])[0]
    assert second[:22] in [passages[i][:22] for i in range(len(passages))]


def test_a_batch_is_cut_wrapped_and_masked_and_validation_masks_never_change(tokenizer):
    ids = tokenizer.encode_batch(["the wing " * 12, "laminar flow."])
    torch.manual_seed(0)
    batch = MaskedText(tokenizer, 16, 0.3, 0.5)(ids)
    assert batch.tokens.shape == (2, 16)
    assert batch.tokens[0].tolist() == [tokenizer.cls, *ids[0][:14], tokenizer.sep]
    length = len(ids[1]) + 2
    assert batch.tokens[1, :length].tolist() == [tokenizer.cls, *ids[1], tokenizer.sep]
    assert batch.text[1].tolist() == [False] + [True] * (length - 2) + [False] * (17 - length)
    assert batch.labels.ne(-100).sum(1).tolist()[0] in (4, 5)
    assert batch.allowed.shape == (2, 16, 16)
    fixed = MaskedText(tokenizer, 16, 0.3, 0.5, fixed=True)
    one, other = fixed(ids), fixed(ids)
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.allowed, other.allowed)


def corpus(folder, **kwargs) -> Corpus:
    paths = [str(folder / "wikipedia_blocks"), str(folder / "passages_blocks")]
    arguments = {"tokenizer": str(folder / "vocabulary"), "length": 24, "batch_size": 4, "held_out": 4}
    return Corpus(**({"paths": paths} | arguments | kwargs))


def test_a_corpus_holds_blocks_out_and_says_what_is_wrong_with_its_folders(folder, tmp_path):
    made = corpus(folder)
    made.setup()
    assert len(made.valid) == 4
    total = sum(len(data.SavedBlocks(folder / f"{kind}_blocks")) for kind in ("wikipedia", "passages"))
    assert len(made.train) == total - 4
    assert not set(made.train.indices) & set(made.valid.indices)
    with pytest.raises(EncoreError, match="need the tokenizer that made them"):
        Corpus(paths=["x"])
    with pytest.raises(EncoreError, match="no column 'token_ids'; it has title, text"):
        corpus(folder, paths=[str(folder / "wikipedia")]).setup()
    with pytest.raises(EncoreError, match="not a data set saved by"):
        corpus(folder, paths=[str(tmp_path)]).setup()
    with pytest.raises(EncoreError, match="cannot be held out"):
        corpus(folder, held_out=10_000).setup()


def test_the_command_for_blocks_reports_bad_input_in_one_line(folder, tmp_path, capsys):
    (tmp_path / "empty.tsv").write_text("")
    given = ["--tokenizer", str(folder / "vocabulary"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        blocks.main(["passages", "--input", str(tmp_path / "nothing.tsv"), *given])
    assert "nothing.tsv: cannot be read" in capsys.readouterr().err
    blocks.main(["books", "--input", str(folder / "books"), *given])
    assert capsys.readouterr().out.endswith("blocks\n")


# -------------------------------------------------------------------------------------------------------- collections


def test_passages_are_read_where_they_lie_in_all_their_forms(folder, tmp_path):
    corpus = collection.TextFile(folder / "msmarco" / "corpus.tsv")
    line = (folder / "msmarco" / "corpus.tsv").read_text().splitlines()[7].split("\t")
    assert corpus["7"] == Passage(line[1], line[2])
    assert len(corpus) == 40
    documents = tmp_path / "corpus.tsv"
    documents.write_text("D1\thttp://x\tTitle\tBody é of it\r\nD2\thttp://y\t\tMore\n", encoding="utf-8")
    assert dict(collection.TextFile(documents)) == {"D1": Passage("Title", "Body é of it"), "D2": Passage("", "More")}
    assert collection.TextFile(folder / "beir" / "corpus.jsonl")["d9"].text.endswith(".")
    (tmp_path / "repository.json").write_text('{"id": "3", "title": "t", "text": "x"}\n')
    assert dict(collection.TextFile(tmp_path / "repository.json")) == {"3": Passage("t", "x")}
    for content, message in (
        ("1\ta\n1\tb\n", "'1' is there twice"),
        ("1\ta\nonly\n", r":2: not a passage"),
        ("", "is empty"),
    ):
        documents.write_text(content)
        with pytest.raises(EncoreError, match=message):
            collection.TextFile(documents)
    (tmp_path / "broken.jsonl").write_text('{"_id": "1", "text": "a"}\n{"_id": "2", "te')
    with pytest.raises(EncoreError, match=r"broken\.jsonl:2: not a passage"):
        collection.TextFile(tmp_path / "broken.jsonl")


def test_judgements_negatives_scores_and_rankings_are_read_in_their_forms(folder, tmp_path):
    assert collection.read_judgements(folder / "beir/qrels/test.tsv") == {"q0": {"d3": 2, "d4": 0}, "q2": {"d9": 1}}
    file = tmp_path / "file"
    file.write_text("19 Q0 D7 3\n19 Q0 D8 0\n")
    assert collection.read_judgements(file) == {"19": {"D7": 3, "D8": 0}}
    file.write_text("1\t9\n1\t8\n")
    assert collection.read_judgements(file) == {"1": {"9": 1, "8": 1}}
    file.write_text("1\t5,6\n2\t7\n1\t8\n")
    assert collection.read_negatives(file) == {"1": ["5", "6", "8"], "2": ["7"]}
    file.write_text("1 5 [2.5]\n1 6 -1e-1\n")
    assert collection.read_scores(file) == {"1": {"5": 2.5, "6": -0.1}}
    ranking = {"1": [("5", 2.0), ("6", 1.0)], "2": [("7", 0.5)]}
    collection.write_ranking(file, ranking)
    assert file.read_text().splitlines()[1] == "1\t6\t2\t1.0"
    assert collection.read_ranking(file) == ranking
    with pytest.raises(EncoreError, match="expected 2 columns, found 4; is the file cut off"):
        collection.read_negatives(file)
    file.write_text("1 0 5 yes\n")
    with pytest.raises(EncoreError, match="the relevance 'yes' of query 1 is not a whole number"):
        collection.read_judgements(file)
    file.write_text("1 5 high\n")
    with pytest.raises(EncoreError, match="the score 'high' of query 1 is not a number"):
        collection.read_scores(file)


def test_hard_negatives_are_what_ranks_high_without_being_relevant(tmp_path):
    ranking = {"1": [("a", 3.0), ("b", 2.0), ("c", 1.0)], "2": [("d", 1.0)]}
    mined = mine_negatives(ranking, {"1": {"b": 1, "c": 0}, "2": {"d": 1}})
    assert mined == {"1": ["a", "c"], "2": []}
    collection.write_negatives(tmp_path / "negatives", mined)
    assert collection.read_negatives(tmp_path / "negatives") == {"1": ["a", "c"]}


def test_a_collection_names_the_file_that_is_missing_or_does_not_fit(folder, tmp_path):
    beir = read_collection(folder / "beir", "test")
    assert list(beir.judged) == ["q0", "q2"]
    with pytest.raises(EncoreError, match=r"has none of qrels\.dev\.tsv, qrels/dev\.tsv"):
        read_collection(folder / "beir", "dev")
    (tmp_path / "corpus.tsv").write_text("1\ta\n")
    (tmp_path / "dev.query.txt").write_text("1\tq\n")
    (tmp_path / "qrels.dev.tsv").write_text("77\t0\t1\t1\n")
    with pytest.raises(EncoreError, match="no judgement of split 'dev' belongs to one of its queries"):
        read_collection(tmp_path, "dev")


# -------------------------------------------------------------------------------------------------- training examples


def test_a_passage_is_title_separator_text_and_is_cut_at_the_end(tokenizer):
    encoding = Encoding(tokenizer, query_length=6, passage_length=8)
    wing, drag = (tokenizer.encode_batch([word])[0] for word in ("wing", "drag"))
    row = encoding.passage(Passage("wing", "drag"))
    assert row.tolist() == [tokenizer.cls, *wing, tokenizer.sep, *drag, tokenizer.sep]
    assert encoding.passage(Passage("", "drag")).tolist() == [tokenizer.cls, *drag, tokenizer.sep]
    assert Encoding(tokenizer, use_title=False).passage(Passage("wing", "drag")).tolist()[1:-1] == drag
    long = encoding.passage(Passage("wing", "drag " * 30))
    assert len(long) == 8
    assert long[-1] == tokenizer.sep
    assert len(encoding.query(Passage("", "wing " * 9))) == 6
    assert len(encoding.passage(Passage("", ""))) == 2
    with pytest.raises(EncoreError, match="the query ' ' has no words"):
        encoding.query(Passage("", " "))


def test_a_group_holds_a_positive_and_sampled_negatives_filled_up_at_random(folder):
    marco = read_collection(folder / "msmarco", "train")
    by_text = {passage: name for name, passage in marco.corpus.items()}
    listed = [str(i) for i in range(20, 36)]
    groups = TrainingGroups(marco, dict.fromkeys(marco.judged, listed), None, group_size=4, sample_from=6)
    torch.manual_seed(0)
    drawn = [[by_text[p] for p in groups[3][1]] for _ in range(60)]
    assert all(row[0] == "3" and len(set(row)) == 4 for row in drawn)
    assert {name for row in drawn for name in row[1:]} == set(listed[:6])
    short = TrainingGroups(marco, {"3": ["20", "21"]}, None, group_size=6)
    rows = [[by_text[p] for p in short[3][1]] for _ in range(60)]
    assert all(row[:3] == ["3", "20", "21"] and len(set(row)) == 6 for row in rows)
    assert len({name for row in rows for name in row[3:]}) > 30
    with pytest.raises(EncoreError, match="40 passages are too few for groups of 60"):
        TrainingGroups(marco, {}, None, group_size=60)
    lost = TrainingGroups(marco, {"3": ["999"]}, None, group_size=2)
    with pytest.raises(EncoreError, match="query 3 names the passage '999', which the corpus lacks"):
        lost[3]


def test_teacher_scores_stay_with_their_passages(folder, tokenizer):
    marco = read_collection(folder / "msmarco", "train")
    known = collection.read_scores(folder / "msmarco" / "train_scores.txt")
    by_text = {passage: name for name, passage in marco.corpus.items()}
    negatives = collection.read_negatives(folder / "msmarco" / "train_negs.tsv")
    groups = TrainingGroups(marco, negatives, known, group_size=5)
    for index in (0, 7):
        _, passages, scores = groups[index]
        assert scores == [known[str(index)][by_text[p]] for p in passages]
    batch = Encoding(tokenizer).groups([groups[0], groups[1]])
    assert batch.teacher.shape == (2, 5)
    assert len(batch.passages) == 10
    with pytest.raises(EncoreError, match="the teacher has no score for query 0"):
        TrainingGroups(marco, {}, known, group_size=20)[0]


def test_the_cloze_query_is_a_sentence_that_the_passage_mostly_lacks():
    texts = ["One a. Two b. Three c.", "single."]
    cloze = Cloze(texts, keep=0.2)
    assert len(cloze) == 1
    torch.manual_seed(0)
    items = [cloze[0] for _ in range(200)]
    kept = [query.text in passages[0].text for query, passages, _ in items]
    assert 0.1 < np.mean(kept) < 0.3
    assert {query.text for query, _, _ in items} == {"One a.", "Two b.", "Three c."}
    assert all(
        p[0].text in ("One a. Two b. Three c.", "Two b. Three c.", "One a. Three c.", "One a. Two b.")
        for _, p, _ in items
    )
    with pytest.raises(EncoreError, match="no text has two sentences"):
        Cloze(["single."])


def test_pairs_cut_the_passage_alone_and_mark_it_as_the_second_segment(tokenizer):
    query, passage = Passage("", "wing lift"), Passage("drag", "flow " * 20)
    tokens, segments = PairEncoding(tokenizer, 12).pair(query, passage)
    asked, title, body = tokenizer.encode_batch(["wing lift", "drag", "flow " * 20])
    whole = [tokenizer.cls, *asked, tokenizer.sep, *title, tokenizer.sep, *body]
    assert tokens.tolist() == [*whole[:11], tokenizer.sep]
    assert segments.tolist() == [0] * (len(asked) + 2) + [1] * (10 - len(asked))


# ----------------------------------------------------------------------------------------------------------- training

TINY = {"size": "tiny", "vocab_size": 120, "total_steps": 6}


def ranking(folder, **kwargs) -> Ranking:
    arguments = {"path": str(folder / "msmarco"), "tokenizer": str(folder / "vocabulary"), "batch_size": 3}
    return Ranking(**(arguments | {"group_size": 3, "passage_length": 24, "eval_batch_size": 16} | kwargs))


def quiet_trainer(steps: int, **kwargs) -> L.Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", max_steps=steps, max_epochs=-1, num_sanity_val_steps=0, **(off | kwargs))


@pytest.mark.parametrize("method", ["dupmae", "retromae"])
def test_pretraining_resumes_bit_for_bit(folder, tmp_path, method):
    assert_resumes_exactly(
        lambda: Pretraining(**TINY, method=method, dropout=0.1), lambda: corpus(folder), tmp_path, steps=4
    )


def test_fine_tuning_resumes_bit_for_bit(folder, tmp_path):
    negatives = str(folder / "msmarco" / "train_negs.tsv")
    assert_resumes_exactly(
        lambda: Retrieval(**TINY, dim=16, top_k=8, lr=1e-3),
        lambda: ranking(folder, negatives=negatives),
        tmp_path,
        steps=4,
        limit_val_batches=0,
    )


def test_stages_follow_one_another_from_pretraining_to_distillation(folder, tmp_path):
    """Pre-train, fine-tune, rank, mine, teach, distil: each stage starts from what the one before left."""
    L.seed_everything(0, verbose=False)
    start = tmp_path / "pretrained"
    quiet_trainer(2, limit_val_batches=1).fit(Pretraining(**TINY, export=str(start)), corpus(folder))
    stage = Retrieval(**TINY, dim=16, top_k=8, start=str(start), export=str(tmp_path / "stage1"), lr=1e-3)
    trainer = quiet_trainer(4)
    trainer.fit(stage, ranking(folder))
    assert 0 <= trainer.callback_metrics["val/mrr@10"] <= 1

    again = Retrieval(
        **TINY, dim=16, top_k=8, start=str(tmp_path / "stage1"), ranking=str(tmp_path / "ranking"), depth=9
    )
    whole = load_retriever(tmp_path / "stage1", top_k=8)
    reported = quiet_trainer(1).test(again, ranking(folder, split="train"), verbose=False)
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
        path=str(folder / "msmarco"), tokenizer=str(folder / "vocabulary"), split="train", group_size=3, batch_size=2,
        negatives=str(tmp_path / "negatives"), ranking=str(tmp_path / "ranking"), depth=9, length=40,
    )  # fmt: skip
    quiet_trainer(1).fit(teacher, pairs)
    quiet_trainer(1).test(teacher, pairs, verbose=False)
    scored = collection.read_scores(tmp_path / "scores.txt")
    assert all({p for p, _ in found[q][:9]} | set(judged[q]) == set(scored[q]) for q in judged)
    student = Retrieval(**TINY, dim=16, top_k=8, start=str(tmp_path / "stage1"), contrastive_weight=1e-4)
    distilled = ranking(
        folder, negatives=str(tmp_path / "negatives"), teacher=[str(tmp_path / "scores.txt")], group_size=9
    )
    trainer = quiet_trainer(1, limit_val_batches=0)
    trainer.fit(student, distilled)
    logged = trainer.callback_metrics
    assert logged["train/loss"] < 0.1 * logged["train/contrastive"]


def test_the_teachers_loss_is_the_positive_against_its_group(folder, tokenizer):
    marco = read_collection(folder / "msmarco", "train")
    groups = TrainingGroups(marco, {}, None, group_size=3)
    batch = PairEncoding(tokenizer, 40).groups([groups[0], groups[1]])
    module = Reranking(**TINY, dropout=0.0).eval()
    module.log = lambda *_, **__: None
    scores = module.model(batch.tokens, batch.segments)
    expected = -torch.stack([scores[:3].log_softmax(0)[0], scores[3:].log_softmax(0)[0]]).mean()
    torch.testing.assert_close(module.training_step(batch, 0), expected)
    other = module.model(batch.tokens, torch.zeros_like(batch.segments))
    assert not torch.allclose(other, scores)


def run_config(name: str, overrides: dict, tmp_path: Path) -> L.Trainer:
    from common.training.cli import run

    arguments = ["fit", "--config", str(CONFIGS / name), "--trainer.default_root_dir", str(tmp_path)]
    return run([*arguments, *(f"--{key}={value}" for key, value in overrides.items())]).trainer


def test_smoke_config_lowers_the_loss(tmp_path):
    run_config("smoke.yaml", {}, tmp_path)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("train/loss")
    losses = [float(row[column]) for row in rows[1:] if row[column]]
    assert len(losses) >= 20
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 1.0


ON_ONE_CPU = {
    "model.init_args.size": "tiny", "model.init_args.vocab_size": 120, "trainer.max_steps": 1,
    "trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.strategy": "auto", "trainer.precision": "bf16-mixed",
    "data.init_args.num_workers": 0, "data.init_args.batch_size": 2,
}  # fmt: skip


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("paper*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_takes_a_step_on_tiny_files_in_the_real_form(file, folder, tmp_path):
    """The model and its starting weights are tiny, everything else is as the recipe says."""
    config = yaml.safe_load(file.read_text())
    overrides = ON_ONE_CPU | {"data.init_args.tokenizer": folder / "vocabulary", "trainer.limit_val_batches": 0}
    start = tmp_path / "start"
    quiet_trainer(1, limit_val_batches=0).fit(Pretraining(**TINY, export=str(start)), corpus(folder))
    overrides["model.init_args.start"] = start
    if "export" in config["model"]["init_args"]:
        overrides["model.init_args.export"] = tmp_path / "out"
    kind = config["data"]["class_path"].rpartition(".")[2]
    if kind == "Corpus":
        overrides["data.init_args.paths"] = json.dumps([str(folder / "books_blocks"), str(folder / "passages_blocks")])
        overrides["data.init_args.held_out"] = 2
        overrides["data.init_args.length"] = 24
    else:
        marco = folder / "msmarco"
        overrides |= {"data.init_args.path": marco, "data.init_args.group_size": 3}
        overrides["data.init_args.negatives"] = marco / "train_negs.tsv"
        if "passage_length" in config["data"]["init_args"]:
            overrides["data.init_args.passage_length"] = min(140, config["data"]["init_args"]["passage_length"])
        if "teacher" in config["data"]["init_args"]:
            overrides["data.init_args.teacher"] = json.dumps([str(marco / "train_scores.txt")])
    if kind == "Candidates":
        overrides |= {"trainer.accumulate_grad_batches": 1, "data.init_args.length": 150}
    assert run_config(file.name, overrides, tmp_path).global_step == 1
    if "export" in config["model"]["init_args"]:
        assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_config_opens_with_what_it_is_and_the_command(file):
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert f"configs/{file.name}" in lines[1]


@requires_mirror("cranfield")
def test_cranfield_has_its_published_size_and_binary_judgements():
    found = collection.cranfield()
    assert (len(found.corpus), len(found.queries), len(found.judged)) == (1400, 225, 225)
    grades = [grade for row in found.judged.values() for grade in row.values()]
    assert set(grades) == {0, 1}
    assert sum(grades) == 1612
    assert sum(not passage.text for passage in found.corpus.values()) == 2
    module = InverseCloze(vocab_size=500)
    module.setup()
    query, passages, _ = module.training_groups()[0]
    assert query.text
    assert passages[0].text

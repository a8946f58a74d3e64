"""BARTScore's meta-evaluation: hand cases of every protocol, the n-gram baselines, and numbers on the real sets."""

import pickle
import random

import numpy as np
import pytest

from common.errors import EncoreError
from common.training.run import Run
from papers.bartscore import judged, measurements, ngram
from papers.bartscore.judged import SETS, Judged, prepare, protocol_of, read, read_released
from papers.bartscore.meta import (
    Comparison,
    agreement,
    by_document,
    compare_by_document,
    compare_rows,
    constant,
    darr_tau,
    kendall,
    pairwise_accuracy,
    pearson,
    spearman,
    subset_test,
)
from papers.bartscore.text import detokenize
from tests.helpers import requires_mirror


def test_ties_count_as_discordant_in_translation_and_as_wrong_in_ranking():
    better, worse = np.array([2.0, 3, 4, 1, 1]), np.array([1.0, 2, 3, 1, 2])  # 3 better, 1 tie, 1 worse
    assert darr_tau(better, worse) == pytest.approx(0.2)
    assert pairwise_accuracy(better, worse) == pytest.approx(0.6)


def test_correlation_is_taken_inside_documents_and_skips_constant_ones():
    documents = ["a"] * 3 + ["b"] * 3 + ["c"] * 3 + ["d"] * 3
    human = np.array([1.0, 2, 3, 1, 2, 3, 5, 5, 5, 1, 2, 3])
    metric = np.array([1.0, 2, 3, 30, 20, 25, 1, 2, 3, 7, 7, 7])
    assert by_document(spearman, human, metric, documents) == pytest.approx((1.0 - 0.5) / 2)
    assert by_document(kendall, human, metric, documents) == pytest.approx((1.0 - 1 / 3) / 2)
    assert spearman(human, metric) != pytest.approx(0.25)
    with pytest.raises(EncoreError, match="nothing to correlate"):
        by_document(spearman, np.ones(4), np.arange(4.0), list("aabb"))
    assert constant([2, 2])
    assert not constant([2, 3])
    assert pearson(np.array([0.0, 1, 2]), np.array([0.0, 1, 4])) == pytest.approx(0.9608, abs=1e-4)


def test_subsets_are_the_official_ones_and_only_more_than_950_wins_decide():
    documents, seen = [f"d{i}" for i in range(10)], []

    def compare(some):
        seen.append(list(some))
        return float(len(seen) <= 951), 0.5

    assert subset_test(documents, compare) == Comparison(951, 49, 1000)
    random.seed(666)
    names = list(documents)
    for found in seen[:3]:
        random.shuffle(names)
        assert found == names[:8]
    assert [Comparison(w, lost, 1000).verdict for w, lost in ((951, 49), (950, 50), (0, 951), (0, 0))] == [1, 0, -1, 0]


def test_a_better_metric_is_significantly_better_and_equal_ones_are_not():
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(30), 6)
    human = rng.normal(size=180)
    good, bad = human + 0.3 * rng.normal(size=180), rng.normal(size=180)
    assert compare_by_document(human, good, bad, documents).verdict == 1
    assert compare_by_document(human, bad, good, documents).verdict == -1
    assert compare_by_document(human, good, good, documents) == Comparison(0, 0, 1000)
    assert compare_rows(pearson, (human, good), (human, bad)).verdict == 1
    pairs = [(human, human - 1 + noise * rng.normal(size=180)) for noise in (0.5, 3)]
    assert compare_rows(darr_tau, *pairs).verdict == 1


def test_a_document_where_one_metric_is_constant_counts_for_neither():
    documents = np.repeat(np.arange(5), 4)
    human = np.tile([1.0, 2, 3, 4], 5)
    first, second = human.copy(), np.tile([1.0, 2, 4, 3], 5)
    first[:4], second[:4] = [4, 3, 2, 1], 7.0  # the first is as wrong as can be where the second says nothing
    assert compare_by_document(human, first, second, documents) == Comparison(1000, 0, 1000)
    first[4:], second[4:] = 7.0, 7.0
    with pytest.raises(EncoreError, match="nothing to correlate"):
        compare_by_document(human, first, second, documents)


def rows_of(systems, documents=3, **scores):
    return [Judged(str(d), s, "src", ("r",), "h", scores) for d in range(documents) for s in systems]


def test_every_set_is_compared_by_its_own_protocol():
    rows = rows_of(["worse", "better"], documents=5)
    metric = np.array([1.0, 2, 2, 3, 3, 4, 1, 1, 2, 1])
    assert agreement(SETS["kk_en"], rows, metric) == {"tau": pytest.approx(0.2)}
    rank = [Judged(r.document, {"better": "correct", "worse": "incorrect"}[r.system], "", ("r",), "h") for r in rows]
    assert agreement(SETS["rank19"], rank, metric) == {"accuracy": pytest.approx(0.6)}
    scores = [{"litepyramid_recall": float(i)} for i in (1, 2, 3, 4)]
    pyramid = [Judged(d, s, "", ("r",), "h", score) for (d, s), score in zip(("ax", "ay", "bx", "by"), scores)]
    found = agreement(SETS["realsumm"], pyramid, np.array([1.0, 2, 4, 3]))
    assert found == {"litepyramid_recall/spearman": pytest.approx(0), "litepyramid_recall/kendall": pytest.approx(0)}
    facts = [Judged(r.document, r.system, "", ("r",), "h", {"fact": r.scores["litepyramid_recall"]}) for r in pyramid]
    assert agreement(SETS["qags_cnn"], facts, np.arange(4.0)) == {"fact/pearson": pytest.approx(1)}
    assert [SETS[name].aggregate for name in ("summeval", "bagel", "readme")] == ["mean", "max", "max"]
    assert agreement(SETS["readme"], read("readme"), np.array([-1.0, -2, -3]))["2/score"] == -3
    with pytest.raises(EncoreError, match="document 0, system s: nobody judged its 'fact'"):
        agreement(SETS["qags_cnn"], rows_of(["s"]), np.zeros(3))
    with pytest.raises(EncoreError, match="need a 'better' and a 'worse' text in every document"):
        agreement(SETS["kk_en"], rows[:-1], metric[:-1])
    with pytest.raises(EncoreError, match="no judged set 'bagle'"):
        protocol_of("bagle")


# -------------------------------------------------------------------------------------------------- detokenised texts


@pytest.mark.parametrize(
    ("tokenised", "written"),
    [
        ("I 'm here , he said .", "I'm here, he said."),
        ("the dogs ' owner ( a man ) paid $ 5 .", "the dogs' owner (a man) paid $5."),
        ('she said " no " and " yes " .', 'she said "no" and "yes".'),
        ("' quoted ' and done !", "'quoted' and done!"),
        ("well @-@ known &amp; 100 % sure", "well-known & 100% sure"),
        ("a  b   c ", "a b c"),
        ("<tag kept >", "<tag kept >"),
        ("日 本 text 中", "日本 text 中"),
        ("do n't", "do n't"),
        ("the Jones '", "the Jones'"),
        ("", ""),
    ],
)
def test_detokenisation_follows_the_moses_script(tokenised, written):
    assert detokenize(tokenised) == written


def test_all_texts_of_a_row_are_detokenised_and_its_scores_kept():
    row = Judged("0", "s", "a , b", ("c .", "d !"), "e ?", {"fact": 1.0})
    assert prepare(row) == Judged("0", "s", "a, b", ("c.", "d!"), "e?", {"fact": 1.0})


# --------------------------------------------------------------------------------------------------- released pickles


def save(folder, name, content):
    (folder / name).mkdir(parents=True)
    (folder / name / "data.pkl").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))


def test_released_files_of_the_three_tasks_are_read(tmp_path):
    made = {"sys_summ": "A b .", "scores": {"litepyramid_recall": np.float64(0.5)}}
    save(tmp_path, "REALSumm", {52: {"src": "A .", "ref_summ": "B .", "sys_summs": {"x.txt": made, 0: made}}})
    save(tmp_path, "SFRES", {0: {"src": "inform()", "sys_summ": "C .", "ref_summs": ["D .", "E ."],
                                 "scores": {"quality": 3.5}}})  # fmt: skip
    save(tmp_path, "de-en", {0: {"src": "Hallo .", "ref": "Hi .", "better": {"sys": "Hi .", "scores": {}},
                                 "worse": {"sys": "Ho .", "scores": {"bleu": "0.1"}}}})  # fmt: skip
    first, second = read("realsumm", tmp_path)
    assert first == Judged("52", "x.txt", "A.", ("B.",), "A b.", {"litepyramid_recall": 0.5})
    assert second.system == "0"
    assert read("sfres", tmp_path) == [Judged("0", "system", "inform()", ("D.", "E."), "C.", {"quality": 3.5})]
    better, worse = read("de_en", tmp_path)
    assert (better.system, worse.system, better.references) == ("better", "worse", ("Hi .",))  # not tokenised
    assert worse.hypothesis == "Ho ."
    with pytest.raises(EncoreError, match="no folder of bagel"):
        read("bagel", tmp_path)


class Hostile:
    def __reduce__(self):
        return print, ("unpickled!",)


def test_files_that_are_cut_hostile_or_of_another_layout_are_refused(tmp_path, capsys):
    good = pickle.dumps({0: {"src": "a", "sys_summ": "b", "ref_summs": ["c"], "scores": {}}})
    cases = {
        "cut": (good[:20], "not a readable data.pkl"),
        "hostile": (pickle.dumps({0: Hostile()}), "it asks for builtins.print"),
        "other": (pickle.dumps({0: {"text": "a"}}), "not laid out like the released sets"),
        "list": (pickle.dumps([1, 2]), "not laid out like the released sets"),
        "empty": (pickle.dumps({}), "holds no judged text"),
    }
    for name, (content, message) in cases.items():
        save(tmp_path, name, content)
        with pytest.raises(EncoreError, match=message) as error:
            read_released(tmp_path / name / "data.pkl")
        assert f"{name}/data.pkl" in str(error.value)
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------------------------------------------- n-gram baselines


def test_unigram_overlap_clips_counts_and_lowers_case():
    found = ngram.unigram("The the cat", "the cat sat down")
    assert found == pytest.approx((2 / 3, 2 / 4, 2 * (2 / 3) * 0.5 / (2 / 3 + 0.5)))
    assert ngram.unigram("x", "y") == (0, 0, 0)
    assert ngram.best([ngram.Overlap(0.5, 0.1, 0.2), ngram.Overlap(0.2, 0.4, 0.3)]) == (0.5, 0.4, 0.3)


def test_rouge_stems_words_and_splits_sentences_at_detached_full_stops():
    one = ngram.rouge("dogs sleep . cats eat .", "cats eat . dogs sleep .")
    assert one["rouge1"].f == 1.0
    assert one["rougeL"].f == 1.0  # sentence by sentence, so their order does not matter
    assert ngram.rouge("Walking", "walked")["rouge1"].f == 1.0


def test_sentence_bleu_equals_the_library_where_no_order_is_empty_and_smooths_where_one_is():
    from torchmetrics.functional.text import sacre_bleu_score

    reference = "The cat, it said, sat on the mat (again)."
    for hypothesis in ("The cat, it said, sat on a mat.", "The cat, it said: sat on the mat (again) and again."):
        expected = sacre_bleu_score([hypothesis], [[reference]], tokenize="13a").item()
        assert ngram.sentence_bleu(hypothesis, reference) == pytest.approx(expected, rel=1e-5)
    smoothed = ngram.sentence_bleu("a b x c d", "a b c d e")  # 4/5, 2/4, then half and a quarter of one n-gram
    assert smoothed == pytest.approx((4 / 5 * 2 / 4 * (0.5 / 3) * (0.25 / 2)) ** 0.25)
    assert ngram.sentence_bleu("a b c", "a b c") == 0.0
    nothing_shared = ngram.sentence_bleu("a b c d", "e f g h")  # as sacreBLEU 1.5; later ones say 0
    assert nothing_shared == pytest.approx((1 / (2 * 4) * 1 / (4 * 3) * 1 / (8 * 2) * 1 / 16) ** 0.25)


def test_chrf_averages_precision_and_recall_before_it_weighs_recall_twice():
    assert ngram.chrf("ab cd", "abc d") == 1.0  # spaces do not count
    precision = np.mean([2 / 2, 1 / 1])
    recall = np.mean([2 / 4, 1 / 3])
    assert ngram.chrf("ab", "abcd") == pytest.approx(5 * precision * recall / (4 * precision + recall))
    assert ngram.chrf("ab", "") == ngram.chrf("xy", "ab") == 0.0


def test_an_unknown_baseline_is_refused(tmp_path):
    with pytest.raises(EncoreError, match="unknown metric 'meteor'"):
        measurements.n_gram_baselines(Run("bartscore", "n-gram-baselines", "meteor", 0, "smoke", tmp_path))


# ------------------------------------------------------------------------------------------------------ the real sets


@requires_mirror("generation_eval")
def test_word_overlap_agrees_with_people_exactly_as_known_on_the_released_sets():
    found = measurements.unigrams(smoke=False)
    expected = {
        "realsumm_litepyramid_recall_spearman_recall": 0.5010,
        "bagel_informativeness_spearman_f": 0.2354,
        "bagel_naturalness_spearman_f": 0.1809,
        "bagel_quality_spearman_f": 0.1518,
        "sfhot_informativeness_spearman_f": 0.0673,
        "sfhot_naturalness_spearman_f": 0.1192,
        "sfhot_quality_spearman_f": 0.0373,
        "sfres_informativeness_spearman_f": 0.1150,
        "sfres_naturalness_spearman_f": 0.1719,
        "sfres_quality_spearman_f": 0.1084,
        "qags_cnn_fact_pearson_precision": 0.4231,
        "qags_xsum_fact_pearson_precision": 0.2832,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=6e-5)


@requires_mirror("generation_eval")
def test_rouge_comes_near_the_official_numbers_and_equals_them_on_rank19():
    sets = {name: judged.read_named(name) for name in ("rank19", "bagel")}
    kinds = ("rouge1", "rouge2", "rougeL")
    found = {
        name: [[ngram.rouge(row.hypothesis, r) for r in set(row.references)] for row in rows]
        for name, rows in sets.items()
    }
    accuracy = [
        agreement(SETS["rank19"], sets["rank19"], measurements.largest(of(found["rank19"], kind), "f"))["accuracy"]
        for kind in kinds
    ]
    assert accuracy == pytest.approx([0.568365, 0.630027, 0.587131], abs=1e-6)
    bagel = [
        agreement(SETS["bagel"], sets["bagel"], measurements.largest(of(found["bagel"], kind), "f"))[
            "informativeness/spearman"
        ]
        for kind in kinds
    ]
    assert bagel == pytest.approx([0.234338, 0.198585, 0.188592], abs=3e-3)


def of(several, kind):
    return [[scores[kind] for scores in one] for one in several]


@requires_mirror("generation_eval")
def test_the_released_sets_have_the_sizes_of_the_paper():
    rows = {
        name: judged.read_named(name)
        for name in ("realsumm", "summeval", "newsroom", "rank19", "qags_cnn", "qags_xsum")
    }
    documents = {name: len({row.document for row in some}) for name, some in rows.items()}
    systems = {name: len({row.system for row in some}) for name, some in rows.items()}
    assert documents == {
        "realsumm": 100,
        "summeval": 100,
        "newsroom": 60,
        "rank19": 373,
        "qags_cnn": 235,
        "qags_xsum": 239,
    }
    assert (systems["realsumm"], systems["summeval"], systems["newsroom"]) == (24, 16, 7)
    assert all(len(row.references) == 11 for row in rows["summeval"])
    assert all(row.references == (row.source,) for row in rows["qags_cnn"])

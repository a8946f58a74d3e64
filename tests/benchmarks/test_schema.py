import pytest

from benchmarks.paper import catalog, paths
from benchmarks.paper.load import load_paper
from common.errors import EncoreError


def error_of(tree):
    with pytest.raises(EncoreError) as caught:
        catalog.load_one("toy")
    return str(caught.value)


def line_of(tree, text):
    lines = (tree.root / "papers/toy/paper.yaml").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def test_a_valid_paper_knows_its_arms_and_sources(tree):
    claim = catalog.load_one("toy").claims[0]
    assert claim.all_arms == ["method", "baseline"]
    assert claim.sources == ["generated"]
    assert claim.metrics_of("method") == {"score"}


def test_sides_may_name_another_metric_or_a_number(tree):
    tree.edit("    baseline: baseline\n", "    baseline: {arm: method, metric: other}\n    arms: [third]\n")
    claim = catalog.load_one("toy").claims[0]
    assert claim.all_arms == ["method", "third"]
    assert claim.metrics_of("method") == {"score", "other"}
    tree.edit("    baseline: {arm: method, metric: other}\n", "    baseline: 50\n")
    assert catalog.load_one("toy").claims[0].side(50) == 50.0


@pytest.mark.parametrize(
    ("old", "new", "at", "says"),
    [
        ("venue: Nowhere\n", "venue: Nowhere\ncolour: red\n", "colour", "colour: unknown key"),
        ("    metric: score\n", "    metric: score\n    metrik: x\n", "metrik", "claims[0].metrik: unknown key"),
        (
            'value: 9, unit: "%", source: recalled',
            'value: 9, unit: "%"',
            "row-claim",
            "reported[1].source: is required",
        ),
        ("source: abstract", "source: rumour", "row-measured,", "reported[2].source: Input should be 'official-code'"),
        ("configs/paper.yaml", "configs/absent.yaml", "recipe:", "reported[3].recipe: there is no file"),
        ("claim: better}", "claim: bettr}", "row-claim", "reported[1].claim: there is no claim 'bettr'"),
        ("fact: two}", "fact: three}", "row-fact", "reported[0].fact: there is no fact 'three'"),
        ("baseline: baseline", "baseline: method", "id: better", "claims[0]: method and baseline are the same"),
        (
            "rows: {row-measured:",
            "rows: {row-other:",
            "rows:",
            "measurements[0].rows.row-other: there is no reported row",
        ),
        ("arm: method, metric: score}", "arm: other, metric: score}", "rows:", "'other' is not one of its arms"),
        ("seeds: [0, 1, 2]", "seeds: [0, 1, 1]", "seeds: [0, 1, 1]", "claims[0].seeds: a seed is named twice"),
        ('arxiv: "2001.00001"', "arxiv: 2001.00001", "arxiv", "write the number in quotes"),
        (
            "data: generated\n    entry",
            "data: cifar\n    entry",
            "data: cifar",
            "claims[0].data: there is no data source",
        ),
        ("slug: toy", "slug: other", "slug", "is 'other' but the folder is 'toy'"),
        (
            'papers.toy.claims:better"\n    arms',
            'papers.other.claims:b"\n    arms',
            "papers.other",
            "must lie in papers.toy",
        ),
        (
            "id: row-fact",
            "id: row-claim",
            "T1, dataset: d, metric: m, setting: s, value: 9",
            "'row-claim' is used twice",
        ),
    ],
)
def test_an_error_names_file_line_and_field(tree, old, new, at, says):
    tree.edit(old, new)
    message = error_of(tree)
    assert f"papers/toy/paper.yaml:{line_of(tree, at)}: " in message
    assert says in message


def test_broken_yaml_names_its_line(tree):
    tree.edit("choices: [", "choices: [[")
    assert error_of(tree).startswith("papers/toy/paper.yaml:")
    assert "not valid yaml" in error_of(tree)
    tree.write("papers/toy/paper.yaml", "- a list\n")
    assert "papers/toy/paper.yaml:1: must be a mapping" in error_of(tree)


def test_several_errors_are_all_shown(tree):
    tree.edit("fidelity: confirmed", "fidelity: perhaps")
    tree.edit("year: 2020", "year: soon")
    assert len(error_of(tree).splitlines()) == 2


def test_an_unknown_paper_is_answered_with_close_matches(tree):
    with pytest.raises(EncoreError, match=r"unknown paper: 'toi'\. Did you mean toy\? Choices: toy"):
        catalog.load_one("toi")


def test_the_papers_of_this_repository_are_valid():
    for file in sorted((paths.REPOSITORY / "papers").glob("*/paper.yaml")):
        assert load_paper(file).slug == file.parent.name

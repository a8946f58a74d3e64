"""`encore compare`: what differs between two commits' results, and nothing else."""

import json

import pytest

from tests.benchmarks.test_cli import put_record


def compared(tree, *revisions):
    done = tree.encore("compare", *revisions, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_claim_that_moved_is_shown_with_its_verdicts_and_the_cause(history):
    put_record(history, method=(9, 9.1, 9.2), code="one")
    first = history.commit("first")
    put_record(history, method=(4, 4.1, 4.2), code="other")
    second = history.commit("second")
    answer = compared(history, first, second)
    assert (answer["before"], answer["after"]) == (first[:12], second[:12])
    (change,) = answer["changes"]
    assert (change["kind"], change["id"], change["because"]) == ("claim", "better", ["code"])
    before, after = change["detail"]["before"], change["detail"]["after"]
    assert (before["verdict"], before["gap"], before["n"]) == ("reproduced", pytest.approx(4.1), 3)
    assert (after["verdict"], after["gap"]) == ("not reproduced", pytest.approx(-0.9))
    backwards = compared(history, second, first)["changes"][0]
    assert (backwards["before"], backwards["after"]) == (change["after"], change["before"])
    assert compared(history, first, first)["changes"] == []
    shown = history.encore("compare", first, second).stdout
    assert "reproduced" in shown
    assert "code" in shown


def test_an_old_verdict_follows_the_paper_yaml_of_its_commit(history):
    put_record(history, method=(9, 9.1, 9.2))
    first = history.commit("first")
    history.edit("higher_is_better: true", "higher_is_better: false")
    (change,) = compared(history, first)["changes"]
    assert change["detail"]["before"]["verdict"] == "reproduced"
    assert change["detail"]["after"]["verdict"] == "not reproduced"


def test_the_working_tree_is_the_default_and_new_results_facts_and_papers_count(history):
    first = history.commit("first")
    assert compared(history, first)["changes"] == []
    put_record(history)
    assert history.encore("facts").returncode == 0
    kinds = {(c["kind"], c["id"]): (c["before"], c["after"]) for c in compared(history, first)["changes"]}
    assert kinds[("fact", "two")] == ("-", "2")
    before, after = kinds[("claim", "better")]
    assert before == "missing"
    assert after.endswith("n = 3, reproduced")
    assert len(kinds) == 2
    history.git("mv", "papers/toy", "papers/toys")
    history.edit("slug: toy", "slug: toys", "papers/toys/paper.yaml")
    history.edit("papers.toy.", "papers.toys.", "papers/toys/paper.yaml")
    kinds = {(c["kind"], c["id"]): (c["before"], c["after"]) for c in compared(history, first)["changes"]}
    assert kinds[("paper", "toy")] == ("there", "absent")
    assert kinds[("paper", "toys")] == ("absent", "there")


def test_what_cannot_be_compared_is_said_in_one_line(history):
    history.edit("year: 2020", "year: soon")
    first = history.commit("another form")
    history.edit("year: soon", "year: 2020")
    assert compared(history, first)["unreadable"] == {first[:12]: ["toy"]}
    for revision in ("nonsense", "--help-me", "HEAD:papers"):
        failed = history.encore("compare", "--", revision)
        assert (failed.returncode, failed.stdout) == (2, "")
        assert failed.stderr == f"error: {revision!r} is no commit of this repository\n"


def test_without_git_it_says_so(tree):
    failed = tree.encore("compare", "HEAD")
    assert failed.returncode == 2
    assert failed.stderr.strip().endswith("is not a git repository")

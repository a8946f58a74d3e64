import re
from html.parser import HTMLParser

import pytest

from benchmarks import plots
from benchmarks.readme import update
from benchmarks.report import idea, write_report
from common.errors import EncoreError
from tests.benchmarks.test_cli import put_record

EMPTY = {"meta", "link", "img", "br", "hr", "input", "circle", "line", "polyline"}


class Balance(HTMLParser):
    """Collects tags and checks that every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(tree):
    put_record(tree)
    return write_report().read_text()


def test_the_page_needs_nothing_but_itself(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    for tag, attributes in parser.seen:
        assert tag not in ("script", "link", "img", "iframe")
        assert "src" not in attributes
        assert tag == "a" or "href" not in attributes
    assert "@import" not in page
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_the_page_shows_every_claim_row_source_choice_and_missing_part(page):
    assert 'id="toy-better"' in page
    assert "gap +4.1, 95 % interval [+3.85, +4.35], n = 3" in page
    assert "everything is made up" in page
    assert "a larger run" in page
    assert "Nothing much." in page
    assert "python -m papers.toy.train fit --config papers/toy/configs/paper.yaml" in page
    for row in ("row-fact", "row-claim", "row-measured", "row-recipe"):
        assert row in page
    for source in ("derived", "recalled", "abstract", "paper-text"):
        assert f"<td>{source}</td>" in page
    assert re.search(r'class="v supported">supported</span> <span class="dim">by claim better', page)


def test_every_plot_has_a_title_and_a_description(page):
    assert page.count("<svg") == page.count("<title id=") == page.count("<desc id=") == 3
    assert "method: 9, 9.1, 9.2; baseline: 5, 5, 5" in page
    assert "train/loss against step" in page


def test_text_from_the_yaml_is_escaped(tree):
    tree.edit("statement: the method is better", 'statement: "<script>alert(1)</script>"')
    put_record(tree)
    assert "<script>" not in write_report().read_text()


def test_a_claim_that_never_ran_is_on_the_page(tree):
    page = write_report().read_text()
    assert "not run yet" in page
    assert 'class="v missing">missing' in page


def test_dots_and_interval_lie_where_the_numbers_are():
    """A value twice as far from the axis start lies twice as far to the right."""
    drawn = plots.dots({"a": [0.0, 50.0, 100.0]}, "m", "d")
    x = [float(value) for value in re.findall(r'<circle class="c0" cx="([\d.]+)"', drawn)]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.11)
    drawn = plots.interval([1.0, 3.0], (0.5, 3.5), 0.0, "m", "d")
    low, high = map(float, re.search(r'class="interval" x1="([\d.]+)" x2="([\d.]+)"', drawn).groups())
    dots = [float(value) for value in re.findall(r'<circle class="c0" cx="([\d.]+)"', drawn)]
    zero = float(re.search(r'class="zero" x1="([\d.]+)"', drawn).group(1))
    assert zero < low < dots[0] < dots[1] < high


def test_ticks_are_round_and_inside():
    assert plots.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert plots.ticks(0.113, 0.187) == [0.12, 0.14, 0.16, 0.18]
    assert plots.ticks(-3.2, 41) == [0, 10, 20, 30, 40]


def test_idea_is_the_first_paragraph_of_that_section(tree):
    text = "# T\n\nintro\n\n## The idea\n\nOne **bold** *slanted*\n[link](x.md) line of 2 * 3.\n\nSecond.\n"
    tree.write("papers/toy/README.md", text)
    assert idea("toy") == "One bold slanted link line of 2 * 3."
    tree.write("papers/toy/README.md", "# T\n\nno such section\n")
    assert idea("toy") == ""


def test_readme_blocks_are_filled_and_checked(tree):
    put_record(tree)
    readme = tree.write("README.md", "# R\n<!-- encore:begin papers -->\n<!-- encore:end -->\ntail\n")
    room = tree.write("papers/toy/README.md", "# T\n<!-- encore:begin results -->\nold\n<!-- encore:end -->\n")
    assert update(check=True) == ["README.md", "papers/toy/README.md"]
    assert "old" in room.read_text()
    assert update() == ["README.md", "papers/toy/README.md"]
    assert update(check=True) == []
    assert "| [A toy](papers/toy/README.md) | 2020 | text | 0 of 1 | 1 reproduced | confirmed |" in readme.read_text()
    assert readme.read_text().endswith("<!-- encore:end -->\ntail\n")
    text = room.read_text()
    assert "old" not in text
    assert "| `better` | score | method 9.1 | baseline 5 | +4.1 | [+3.85, +4.35] | 3 | reproduced |" in text
    assert "| `row-recipe` | T2 | d, m, s | 50.5 % | paper-text | other - | recipe, `configs/paper.yaml` |" in text
    put_record(tree, method=(1, 1, 1))
    assert update(check=True) == ["README.md", "papers/toy/README.md"]
    tree.write("README.md", "<!-- encore:begin other -->\n<!-- encore:end -->\n")
    with pytest.raises(EncoreError, match="unknown block 'other'"):
        update()


def test_the_blocks_of_this_repository_are_up_to_date():
    assert update(check=True) == [], "run `encore readme`"

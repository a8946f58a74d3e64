import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.run.standing import Standing
from benchmarks.site import views
from benchmarks.site.readme import update
from benchmarks.site.report import write_report
from benchmarks.site.scatter import comparables
from common.errors import EncoreError
from tests.benchmarks.test_cli import put_record

EMPTY = {"meta", "link", "img", "br", "hr", "input"}
EVIL = "<script>alert(1)</script> \"quoted\" 'single'"


class Page(HTMLParser):
    """Collects tags and checks that every element is closed."""

    def __init__(self, file: Path):
        super().__init__()
        self.open, self.seen, self.text = [], [], file.read_text()
        self.feed(self.text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.seen if name == tag]


def pages(index: Path) -> dict[str, Page]:
    return {file.stem: Page(file) for file in (index, *index.parent.glob("papers/*.html"))}


@pytest.fixture
def site(tree):
    put_record(tree)
    return pages(write_report())


@pytest.fixture
def page(site):
    return site["toy"].text


def test_the_site_needs_nothing_but_itself(site, tree):
    folder = tree.root / "reports"
    for name, page in site.items():
        base = folder / ("papers" if name == "toy" else "")
        for tag, attributes in page.seen:
            assert tag not in ("iframe", "object", "embed", "style", "base")
            assert not any(attribute.startswith("on") for attribute in attributes)
            for link in filter(None, (attributes.get("src"), attributes.get("href"))):
                if tag != "a" or not link.startswith("https://"):
                    assert link.startswith(("data:", "#")) or (base / link.partition("#")[0]).is_file(), link
        assert "default-src 'none'" in page.text
    for asset in (folder / "assets").iterdir():
        assert not re.search(r"https?:|@import|url\(", asset.read_text()), asset
    assert "prefers-color-scheme: dark" in (folder / "assets/style.css").read_text()


def test_ids_are_unique_and_every_anchor_leads_to_one(site):
    for page in site.values():
        ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
        assert len(ids) == len(set(ids))
        labels = " ".join(a.get("aria-labelledby", "") for _, a in page.seen).split()
        anchors = [a["href"][1:] for _, a in page.seen if a.get("href", "").startswith("#")]
        assert set(labels) | set(anchors) <= set(ids)
        assert set(re.findall(r"url\(#([^)]+)\)", page.text)) <= set(ids)


def test_the_page_shows_every_claim_row_source_choice_and_missing_part(page):
    assert 'id="claim-better"' in page
    assert "gap +4.1, 95 % interval [+3.85, +4.35], n = 3" in page
    assert "everything is made up" in page
    assert "a larger run" in page
    assert "Nothing much." in page
    assert "python -m papers.toy.train fit --config papers/toy/configs/paper.yaml" in page
    assert "encore reproduce toy --claim better" in page
    for row in ("row-fact", "row-claim", "row-measured", "row-recipe"):
        assert row in page
    for source in ("derived", "recalled", "abstract", "paper-text"):
        assert f'<span class="note">{source}</span>' in page
    assert re.search(r'class="v supported">supported</span><span class="note">by claim better', page)


def test_rows_on_the_site_say_what_standing_says(site, tree):
    from benchmarks.paper.catalog import load_one

    rows = re.findall(r'<tr><th scope="row">(row-\w+)<.*?class="v [\w-]+">([\w ]+)<', site["toy"].text, re.S)
    assert rows == [(row.reported.id, row.verdict) for row in Standing(load_one("toy")).rows]


def test_compute_is_summed_over_units_and_arms_with_its_origin(page):
    assert "6 s of unit time (method 3 s, baseline 3 s)" in page
    assert "x, 2 cores, 1 a unit: 6 units" in page
    assert "<code>abc</code>; code <code>" in page


def test_every_figure_is_an_image_with_a_title_and_a_description(site):
    drawings = [(page, a) for page in site.values() for a in page.all("svg")]
    assert len(drawings) == 2
    for page, attributes in drawings:
        assert attributes["role"] == "img"
        for name in attributes["aria-labelledby"].split():
            assert re.search(rf'id="{name}">[^<]{{10,}}<', page.text), name
    text = site["toy"].text
    assert "method: 9, 9.1, 9.2; baseline: 5, 5, 5" in text
    assert "train/loss against step" in text
    assert "Learning curves, one line a seed. method ends at 1, 1, 1; baseline ends at 1, 1, 1." in text


def test_a_measured_row_and_a_fact_are_points_of_the_scatter(tree):
    from benchmarks.paper.catalog import load_one

    tree.encore("facts")  # a process of its own, for it imports the toy's papers
    put_record(tree)
    source = tree.root / "benchmarks/results/toy/better.json"
    text = source.read_text().replace('"claim": "better"', '"claim": "values"')
    (source.parent / "values.json").write_text(text)
    points = comparables([Standing(load_one("toy"))])
    assert [(p.what, p.group, p.reported, p.ours) for p in points] == [
        ("two", "facts", 2, 2),
        ("row-measured", "percent", 11, pytest.approx(9.1)),
    ]
    index = write_report().read_text()
    assert index.count('role="img"') == 2
    assert "<title>toy row-measured: reported 11, ours 9.1 (%)</title>" in index


def test_equal_results_give_equal_figures_and_the_second_report_draws_none(tree, monkeypatch):
    put_record(tree)
    first = write_report().parent / "papers/toy.html"
    before = re.findall(r"<svg.*?</svg>", first.read_text(), re.S)
    cache = next((tree.root / "runs/.cache").glob("figures-*.json"))
    cached = cache.read_bytes()
    cache.unlink()
    write_report()
    assert re.findall(r"<svg.*?</svg>", first.read_text(), re.S) == before
    assert cache.read_bytes() == cached
    monkeypatch.setattr("benchmarks.site.figures.curves", None)
    write_report()
    assert re.findall(r"<svg.*?</svg>", first.read_text(), re.S) == before
    put_record(tree, method=(1, 2, 3))
    write_report()
    assert "method: 1, 2, 3; baseline: 5, 5, 5" in first.read_text(), "other results, other figures"


@pytest.mark.parametrize(
    "change",
    [
        ("title: A toy", f"title: {json.dumps(EVIL)}"),
        ("statement: the method is better", f"statement: {json.dumps(EVIL)}"),
        ('choices: ["everything is made up"]', f"choices: [{json.dumps(EVIL)}]"),
        ("venue: Nowhere", f"venue: {json.dumps(EVIL)}"),
        ("modality: [text]", f"modality: [{json.dumps(EVIL)}]"),
        ("arxiv: ", f"code: {json.dumps(EVIL)}\narxiv: "),
        (
            "{id: row-claim, table: T1, dataset: d",
            f"{{id: row-claim, table: {json.dumps(EVIL)}, dataset: {json.dumps(EVIL)}",
        ),
    ],
)
def test_text_from_the_yaml_is_escaped(tree, change):
    tree.edit(*change)
    put_record(tree)
    for page in pages(write_report()).values():
        assert [a for a in page.all("script") if "src" not in a] == []
        assert "<script>alert" not in page.text
        assert len(page.all("script")) == 1
    assert "&lt;script&gt;alert(1)" in page.text


def test_the_readme_is_shown_without_its_html_and_with_safe_links(tree):
    tree.write(
        "papers/toy/README.md",
        "# T\n\nintro\n\n## The idea\n\nOne **bold** <script>alert(1)</script> [bad](javascript:alert(1)) "
        "[file](model.py) [web](https://a.example/x) [self](../toy/README.md)\n\n"
        "## Notes on code\n\n### Deeper\n\n| a | b |\n|---|---|\n| 1 | <b>2</b> |\n\n![a picture](https://a.example/p.png)\n\n"
        "## Results\n\n<!-- encore:begin results -->\ngenerated\n<!-- encore:end -->\n",
    )
    put_record(tree)
    page = pages(write_report())["toy"]
    text = page.text
    assert "<strong>bold</strong> &lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert 'href="https://a.example/x"' in text
    assert '<a href="toy.html">self</a>' in text
    assert not [a for a in page.all("a") if "javascript" in a["href"] or "model.py" in a["href"]]
    assert "file <a" in text.replace("\n", " ")
    assert "<h4>Deeper</h4>" in text
    assert '<th scope="col">a</th>' in text
    assert "&lt;b&gt;2&lt;/b&gt;" in text
    assert "a picture" in text
    assert page.all("img") == []
    assert "generated</p>" not in text
    assert "<h3>Results</h3>" not in text


def test_a_claim_that_never_ran_is_on_the_page(tree):
    page = pages(write_report())["toy"].text
    assert "Not run yet." in page
    assert 'class="v missing">missing' in page


def test_pages_of_papers_that_are_gone_go_and_other_files_stay(tree):
    put_record(tree)
    folder = write_report(tree.root / "site").parent
    page = (folder / "papers/toy.html").read_text()
    (folder / "papers/gone.html").write_text(page)
    (folder / "papers/mine.html").write_text("<p>notes of somebody</p>")
    write_report(folder)
    assert sorted(file.name for file in (folder / "papers").iterdir()) == ["mine.html", "toy.html"]
    with pytest.raises(EncoreError, match="give the folder of the site"):
        write_report(tree.root / "page.html")


def git(tree, *arguments, **environment):
    command = ["git", "-C", str(tree.root), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_past_gaps_come_from_git_oldest_first_and_without_repeats(tree):
    from benchmarks.history.history import History
    from benchmarks.paper.catalog import load_one

    git(tree, "init", "-q")
    for values, code in (((4, 5, 6), "old"), ((4, 5, 6), "moved"), ((9, 9.1, 9.2), "new")):
        put_record(tree, method=values, code=code)
        git(tree, "add", ".")
        git(tree, "commit", "-qm", code, "--date", "2020-01-02T00:00:00")
    (tree.root / "benchmarks/results/toy/better.json").write_text("{broken")
    git(tree, "commit", "-qam", "damaged")
    first, second = History([load_one("toy")]).of("toy", "better")
    assert (first.code, first.n, first.verdict, first.gap) == ("old", 3, "inconclusive", pytest.approx(0))
    assert (second.code, second.verdict, second.gap) == ("new", "reproduced", pytest.approx(4.1))
    assert second.interval[0] < 4.1 < second.interval[1]
    put_record(tree)
    page = pages(write_report())["toy"].text
    assert "Past gaps: 2 committed results" in page
    assert f"<code>{first.commit}</code>" in page


def test_without_git_the_site_says_so_and_goes_on(tree, monkeypatch):
    put_record(tree)
    monkeypatch.setenv("PATH", "/nonexistent")
    page = pages(write_report())["toy"].text
    assert "Past gaps are read from git" in page
    assert "gap +4.1" in page


def sized(tree):
    tree.edit(
        "  - {id: two,",
        '  - {id: big, build: "papers.toy.model:net", quantity: parameters, reported: 7, source: derived}\n'
        '  - {id: p, build: "papers.toy.model:net", part: head, quantity: parameters, reported: 3, source: derived}\n'
        '  - {id: seen, build: "papers.toy.model:count", args: {name: net, ratio: 0.5}, '
        "quantity: tokens, reported: 4, source: derived}\n"
        "  - {id: two,",
    )


def test_sizes_are_grouped_by_what_builds_them(tree):
    from benchmarks.paper.catalog import load_one

    sized(tree)
    standing = Standing(load_one("toy"))
    ((constructor, lines),) = views.sizes(standing.paper.facts, standing.facts, ["parameters", "tokens"])
    assert constructor == "net"
    assert [(line.what, [cell and cell.reported for cell in line.cells]) for line in lines] == [
        ("whole", [7, None]),
        ("head", [3, None]),
        ("count, ratio 0.5", [None, 4]),
    ]


def test_edges_that_close_a_circle_are_left_out_of_the_graph(tree):
    from benchmarks.paper.catalog import load_all

    text = (tree.root / "papers/toy/paper.yaml").read_text()
    head = text.split("facts:")[0]
    for slug, base in (("a", "b"), ("b", "toy"), ("toy", "a")):
        tree.write(
            f"papers/{slug}/paper.yaml", head.replace("slug: toy", f"slug: {slug}") + f"builds_on: [{base}, gone]\n"
        )
    edges = views.builds_on([Standing(paper) for paper in load_all().values()])
    assert edges == [("a", "b"), ("b", "toy")]
    index = write_report().read_text()
    assert "a builds on b; b builds on toy." in index
    assert "builds on gone" in (tree.root / "reports/papers/a.html").read_text()


def test_readme_blocks_are_filled_and_checked(tree):
    put_record(tree)
    readme = tree.write("README.md", "# R\n<!-- encore:begin papers -->\n<!-- encore:end -->\ntail\n")
    room = tree.write("papers/toy/README.md", "# T\n<!-- encore:begin results -->\nold\n<!-- encore:end -->\n")
    assert update(check=True) == ["README.md", "papers/toy/README.md"]
    assert "old" in room.read_text()
    assert update() == ["README.md", "papers/toy/README.md"]
    assert update(check=True) == []
    assert (
        "| [A toy](papers/toy/README.md) | 2020 | text | 0 of 1 | none | 1 reproduced | confirmed |"
        in readme.read_text()
    )
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


@pytest.mark.parametrize("name", ["index.html", "papers/toy.html", "assets/style.css"])
def test_a_page_of_somebody_else_is_not_written_over(tree, tmp_path, name):
    other = tmp_path / "site" / name
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    with pytest.raises(EncoreError, match=f"{other.name}: was not written by a report"):
        write_report(tmp_path / "site")
    assert [path for path in (tmp_path / "site").rglob("*") if path.is_file()] == [other]
    other.unlink()
    write_report(tmp_path / "site")
    write_report(tmp_path / "site")

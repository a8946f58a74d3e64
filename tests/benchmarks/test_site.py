"""The report in a real browser: three papers, one of them with hostile text, and the pages of this repository."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.paper import fingerprint
from benchmarks.site.report import write_report
from common.gallery import png
from tests.benchmarks.conftest import plant
from tests.benchmarks.test_cli import put_record
from tests.benchmarks.test_report_speed import SPEED, put_speed

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (make setup)")
expect = playwright.expect
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")

QUIET = ("quic", "background-networking", "component-update", "sync", "gpu")
EVIL = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>\'"'
README = f"""# T

## Idea

{EVIL} [bad](javascript:window.pwned=1) [worse](data:text/html,<script>window.pwned=1</script>)

## Implementation notes

{"longword" * 40}

| a | b | c |
|---|---|---|
| `{"x" * 90}` | {"y" * 90} | {EVIL} |
"""
PIXELS = png(np.linspace(0, 1, 64).reshape(8, 8))
ITEMS = [
    {"kind": "drawing", "points": [[0, 0], [1, 0], [0, 1]], "paths": {"exact": [0, 1, 2], EVIL: [0, 2]}},
    {"kind": "pictures", "pictures": [{"label": f"a square {EVIL}", "png": PIXELS, "lines": ["square 90 %"]}] * 9},
    {"kind": "sentences", "columns": ["before", "after"], "rows": [["w" * 80, EVIL]]},
    {"kind": "spectrogram", "png": PIXELS, "tokens": [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]]},
]


def grow(root):
    """toy with hostile text, a result and a gallery; late, which builds on it; other, of 2021, bare; speed."""
    plant(root)
    file = root / "papers/toy/paper.yaml"
    text = file.read_text()
    head = text.split("facts:")[0]
    file.write_text(text.replace("title: A toy", f"title: {json.dumps(EVIL + 'Ü' + 'long' * 40)}"))
    (root / "papers/toy/README.md").write_text(README)
    for slug, old, new in (
        ("late", "year: 2020", "year: 2021\nbuilds_on: [toy]"),
        ("other", "[text]", "[image, text]"),
    ):
        (root / f"papers/{slug}").mkdir()
        content = head.replace("slug: toy", f"slug: {slug}").replace("A toy", f"Paper {slug}").replace(old, new)
        (root / f"papers/{slug}/paper.yaml").write_text(content)
    put_record(SimpleNamespace(root=root))
    items = [{"title": f"Item {i} {EVIL}", "caption": f"What it shows {EVIL}", **item} for i, item in enumerate(ITEMS)]
    kept = {"code": "old", "seconds": 3, "provenance": {"commit": EVIL}, "trained": EVIL, "items": items}
    (root / "benchmarks/results/toy/gallery.json").write_text(json.dumps(kept))
    evil = {**SPEED["rows"][1], "pair": EVIL, "peer": "peer" * 20, "what": EVIL, "commit": EVIL}
    ratios = {EVIL: {**SPEED["ratios"]["dual masking"], "what": EVIL}}
    put_speed(root, {**SPEED, "rows": [*SPEED["rows"], evil], "ratios": ratios})


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root = tmp_path_factory.mktemp("site") / "tree"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENCORE_ROOT", str(root))
        fingerprint.forget()
        grow(root)
        folder = write_report().parent
    fingerprint.forget()
    return folder.as_uri()


@pytest.fixture(scope="module")
def browser():
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """visit(address, **context): the page; in the end no visit may have logged an error or asked for a network."""
    contexts, complaints = [], []

    def open_page(address, **options):
        contexts.append(browser.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else complaints.append(r.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def shown(page):
    return page.locator("#papers > li:visible h3").all_inner_texts()


def test_search_and_filters_narrow_the_list_and_say_how_many_are_left(site, visit):
    page = visit(f"{site}/index.html")
    count = page.locator("#count")
    assert count.inner_text() == "3 papers"
    assert (count.get_attribute("role"), count.get_attribute("aria-live")) == ("status", "polite")
    page.get_by_label("Modality").select_option("image")
    assert shown(page) == ["Paper other"]
    assert count.inner_text() == "1 of 3 papers"
    page.get_by_label("Modality").select_option("text")
    page.get_by_label("Year").select_option("2021")
    assert shown(page) == ["Paper late"]
    page.get_by_role("button", name="Clear").click()
    expect(count).to_have_text("3 papers")  # a form is cleared after the click has been handled
    page.get_by_role("combobox", name="Claim").select_option("reproduced")
    assert len(shown(page)) == 1
    page.get_by_role("combobox", name="Claim").select_option("")
    page.get_by_label("Search").fill("LATE páper")
    assert shown(page) == ["Paper late"]
    page.get_by_label("Search").fill("ulong")
    assert len(shown(page)) == 1, "an accent makes no difference"
    page.get_by_label("Search").fill("better method")
    assert len(shown(page)) == 1, "claims are searched by what they state"
    page.get_by_label("Search").fill("nothing at all")
    assert count.inner_text() == "0 of 3 papers"


def test_a_view_is_in_the_address_and_comes_back_from_it(site, visit):
    page = visit(f"{site}/index.html")
    page.get_by_label("Modality").select_option("text")
    page.get_by_label("Search").fill("paper & late")
    address = page.evaluate("location.href")  # page.url is told later
    assert address.endswith("#q=paper+%26+late&modality=text")
    again = visit(address)
    assert again.get_by_label("Search").input_value() == "paper & late"
    again.evaluate("location.hash = 'modality=image'")
    expect(again.locator("#count")).to_have_text("1 of 3 papers")
    again.evaluate("location.hash = 'modality=smell&year=%00'")
    expect(again.locator("#count")).to_have_text("3 papers")


def test_without_script_every_paper_is_shown_and_no_dead_control(site, visit):
    page = visit(f"{site}/index.html", java_script_enabled=False)
    assert len(shown(page)) == 3
    assert not page.locator("#filter").is_visible()


def test_everything_is_reached_by_keyboard(site, visit):
    page = visit(f"{site}/index.html")
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to content"
    assert page.locator(":focus").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    page.keyboard.type("other")
    assert shown(page) == ["Paper other"]
    assert page.locator(":focus").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    for _ in range(5):
        page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Paper other"
    page.keyboard.press("Enter")
    page.wait_for_url("**/papers/other.html")
    assert page.locator("h1").inner_text() == "Paper other"


STRUCTURE = """() => {
  const all = (s) => [...document.querySelectorAll(s)];
  const levels = all("h1, h2, h3, h4, h5, h6").filter((e) => e.checkVisibility()).map((e) => +e.tagName[1]);
  return {
    skips: levels.filter((level, i) => i && level > levels[i - 1] + 1).length, h1: all("h1").length,
    main: all("main").length, header: all("body > header").length, footer: all("body > footer").length,
    nameless: all("svg[role=img], nav, [role=region], form, section[aria-labelledby]").filter((e) => !(
      e.getAttribute("aria-label") ||
      (e.getAttribute("aria-labelledby") || "").split(" ").some((id) => document.getElementById(id)?.textContent.trim())
    )).length,
    pictures: all("img").filter((e) => !e.alt.trim() || !e.naturalWidth).length,
    drawings: all("svg:not([role=img])").length,
    tables: all("table").filter((e) => !e.caption && !e.closest(".prose") || e.querySelector("th:not([scope])")).length,
    boxes: all(".scroll").filter((e) => e.tabIndex !== 0 || e.getAttribute("role") !== "region").length,
    controls: all("input, select").filter((e) => !e.labels.length).length,
  };
}"""


def test_pages_have_landmarks_headings_in_order_and_text_alternatives(site, visit):
    expected = dict.fromkeys(("skips", "nameless", "pictures", "drawings", "tables", "boxes", "controls"), 0)
    expected |= dict.fromkeys(("h1", "main", "header", "footer"), 1)
    for name in ("index", "speed", "papers/toy", "papers/other"):
        page = visit(f"{site}/{name}.html")
        page.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")
        assert page.evaluate(STRUCTURE) == expected, name
    toy = visit(f"{site}/papers/toy.html")
    assert toy.locator("svg[role=img]").count() == 5
    assert toy.get_by_role("img", name="better: score of every seed").count() == 1


def test_hostile_text_stays_text(site, visit):
    for name in ("index", "speed", "papers/toy", "papers/late"):
        page = visit(f"{site}/{name}.html")
        assert page.evaluate("window.pwned") is None
        assert page.locator("script").count() == 1
        links = page.locator("a").evaluate_all("links => links.map((a) => a.protocol)")
        assert set(links) <= {"file:", "https:"}
    page = visit(f"{site}/papers/toy.html")
    assert EVIL in page.locator("h1").inner_text()
    assert EVIL in page.locator("#idea").inner_text().replace("“", '"')
    assert page.locator(".pictures img").count() == 9
    assert "Made by older code" in page.locator("#gallery").inner_text()


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = (c) => c.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3]) return c; }
    return [255, 255, 255, 255];
  };
  const weak = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue;
    if (e.matches("title, desc")) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(rgb(e.closest("svg") ? style.fill : style.color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) weak.push(`${e.tagName} ${e.className} ${e.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return weak;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(site, visit, scheme):
    backgrounds = set()
    for name in ("index", "speed", "papers/toy"):
        page = visit(f"{site}/{name}.html", color_scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")
        assert page.evaluate(CONTRAST) == []
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert backgrounds == {"rgb(252, 252, 250)" if scheme == "light" else "rgb(20, 24, 27)"}


def too_wide(page):
    page.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_nothing_scrolls_sideways_on_a_phone_but_wide_tables_in_their_boxes(site, visit):
    for name in ("index", "speed", "papers/toy", "papers/late"):
        page = visit(f"{site}/{name}.html", viewport={"width": 375, "height": 700})
        assert too_wide(page) == 0, name
    boxes = visit(f"{site}/papers/toy.html", viewport={"width": 375, "height": 700}).locator("#numbers .scroll")
    assert boxes.evaluate("e => e.scrollWidth > e.clientWidth")


def test_the_page_of_speed_is_reached_by_keyboard_and_says_where_one_is(site, visit):
    page = visit(f"{site}/papers/other.html", viewport={"width": 375, "height": 700})
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Speed"
    page.keyboard.press("Enter")
    page.wait_for_url("**/speed.html")
    assert page.locator("[aria-current=page]").all_inner_texts() == ["Speed"]
    boxes = page.locator("#rows .scroll")
    assert boxes.evaluate("e => e.scrollWidth > e.clientWidth")
    assert EVIL in page.locator("#claims").inner_text()


def test_the_pages_of_this_repository_load_cleanly_and_fit_a_phone(tmp_path, visit):
    index = write_report(tmp_path)
    largest = sorted((tmp_path / "papers").iterdir(), key=lambda file: -file.stat().st_size)[:2]
    for file in (index, *tmp_path.glob("speed.html"), *largest):
        assert too_wide(visit(file.as_uri(), viewport={"width": 375, "height": 700})) == 0, file.name

"""The page of speed: there with its figures when they are kept, and one error when their file is damaged."""

import copy
import json
import re

import pytest

from benchmarks.site.report import write_report
from common.errors import EncoreError
from tests.benchmarks.test_report import EVIL, pages

FILE = "benchmarks/speed/results.json"
ORIGIN = {
    "threads": 2,
    "commit": "abc123",
    "versions": {"python": "3.12.1", "torch": "2.9.0"},
    "machine": {"cpu": "A CPU", "cores": 4, "threads": 2},
    "started": "2026-01-02T03:04:05+00:00",
}


def timing(ours, ratio):
    return {"ours": ours, "theirs": ours * ratio, "ratio": ratio, "low": 0.9 * ratio, "high": 1.25 * ratio}


def row(pair, size="base", compiled=False, ratio=2.0, device="cpu", precision="float32"):
    times = {"training": timing(0.05, ratio), "inference": timing(0.01, 1.5)}
    memory = {} if compiled else {"memory": {"ours": 100 * 2**20, "theirs": 200 * 2**20}, "memory_ratio": 0.5}
    share = {"share_of_matmul_rate": None if compiled else 0.625, "matmul_rate": 1e11}
    head = {"pair": pair, "size": size, "peer": "transformers 5.1", "what": f"What {pair} is."}
    head |= {"device": device, "precision": precision, "compiled": compiled}
    return {**head, **times, **memory, **share, **ORIGIN}


SPEED = {
    "rows": [row("clip", compiled=True, ratio=9.0), row("clip"), row("other", "small", ratio=8.0)],
    "ratios": {"dual masking": {**timing(0.2, 1.4), "what": "Half of the cubes.", **ORIGIN}},
    "growth": {
        "what": "An encoder.",
        "tokens": {"x": [64, 128, 256], "seconds": [0.01, 0.02, 0.05], "exponent": 1.16},
        "width": {"x": [64, 128], "seconds": [0.01, 0.03], "exponent": 1.58},
        **ORIGIN,
    },
}


def put_speed(root, content=SPEED):
    file = root / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def changed(*path_and_value):
    """SPEED with the value at a path replaced; ... removes it."""
    *path, last, value = path_and_value
    content = copy.deepcopy(SPEED)
    inner = content
    for part in path:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return content


@pytest.fixture
def page(tree):
    put_speed(tree.root)
    return write_report().with_name("speed.html").read_text()


def plain(text):
    """The text of a page without tags, white space as one blank."""
    return " ".join(re.sub(r"<svg.*?</svg>|<[^>]*>", " ", text, flags=re.S).split())


def test_without_figures_there_is_no_page_and_no_link(tree):
    index = write_report()
    assert not index.with_name("speed.html").exists()
    for name, page in pages(index).items():
        assert "speed" not in page.text, name


def test_the_page_is_linked_from_every_page_and_goes_when_its_figures_go(tree):
    put_speed(tree.root)
    index = write_report()
    links = {name: [a["href"] for a in page.all("a")] for name, page in pages(index).items()}
    assert links["index"].count("speed.html") == 2, "above, and in the overview"
    assert "../speed.html" in links["toy"]
    assert "(CPU, float32) a training step is 4.00 times as fast, inference 1.50 times" in plain(index.read_text())
    (tree.root / FILE).unlink()
    write_report()
    assert not index.with_name("speed.html").exists()


def test_rows_show_times_ratios_memory_and_share_with_those_under_compile_last(page):
    text = plain(page)
    base = "clip base transformers 5.1 50.0 100.0 2.00 1.80 to 2.50 1.50 1.35 to 1.88 0.50 100 of 200 MiB 62 %"
    assert base in text
    assert "other small transformers 5.1 50.0 400.0 8.00 7.20 to 10.00" in text
    assert "clip base transformers 5.1 50.0 450.0 9.00 8.10 to 11.25 1.50 1.35 to 1.88 - -" in text
    parts = (" CPU, float32 clip base", "other small", " CPU, float32, compiled clip base")
    assert sorted(parts, key=text.index) == list(parts)
    assert "What clip is." in text


def test_the_means_are_geometric_and_over_rows_that_are_not_compiled(page):
    means = "training step 4.00 times as fast inference 1.50 times as fast training memory 0.50 times theirs"
    assert f"{means} CPU, float32: geometric means over the rows that are not compiled (2)." in plain(page)
    assert plain(page).count("geometric means") == 1


def test_rows_of_a_gpu_stand_apart_and_tell_mfu_and_card(tree):
    fast = row("clip", device="cuda", precision="bfloat16", ratio=3.0)
    fast |= {"mfu": 0.412, "machine": {**ORIGIN["machine"], "gpu": "A GPU"}}
    slow = {**row("other"), "machine": fast["machine"]}
    put_speed(tree.root, changed("rows", [fast, *SPEED["rows"], slow]))
    text = plain(write_report().with_name("speed.html").read_text())
    assert "GPU, bfloat16 clip base transformers 5.1 50.0 150.0 3.00 2.70 to 3.75" in text
    assert "62 % MFU 41.2 %" in text
    assert "training step 3.00 times as fast" in text
    assert "training step 3.17 times as fast" in text, "the cube root of 2 x 8 x 2"
    assert "figures every row (GPU, bfloat16) on A GPU, 2 of 4 cores" in text
    assert "every row (CPU, float32); dual masking; growth on A CPU" in text, "a row of the CPU used no card"


def test_claims_growth_and_origin_are_on_the_page(page):
    text = plain(page)
    assert "dual masking Half of the cubes. 200.0 280.0 1.40 1.26 to 1.75" in text
    assert "Growth of a step An encoder." in text
    assert "on A CPU, 2 of 4 cores versions python 3.12.1, torch 2.9.0 commit abc123 , measured 2026-01-02" in text
    assert "figures clip" not in text, "all came from one place"


def test_figures_of_several_commits_say_which_came_from_which(tree):
    put_speed(tree.root, changed("rows", 2, "commit", "def456"))
    text = plain(write_report().with_name("speed.html").read_text())
    assert "figures every row (CPU, float32, compiled); clip base (CPU, float32); dual masking; growth on A CPU" in text
    assert "figures other small (CPU, float32) on A CPU" in text
    assert text.index("abc123") < text.index("def456")


def test_every_figure_has_a_title_and_its_numbers_in_words(page):
    assert page.count('role="img"') == 4
    for name in re.findall(r'aria-labelledby="([^"]*)"', page):
        for part in name.split():
            assert re.search(rf'id="{part}">[^<]{{10,}}<', page), part
    assert "A training step grows as tokens to the power 1.16</title>" in page
    assert "64: 10 ms, 128: 20 ms, 256: 50 ms." in page
    assert "clip base: training 2.00 (1.80 to 2.50), inference 1.50 (1.35 to 1.88)" in page


def test_a_part_that_was_not_measured_is_left_out(tree):
    for part, gone in (("rows", "papers/"), ("ratios", "dual masking"), ("growth", "Growth of a step")):
        put_speed(tree.root, changed(part, ...))
        text = write_report().with_name("speed.html").read_text()
        assert gone not in text
        assert "Where it ran" in text


def test_a_pair_and_its_paper_link_to_each_other(tree):
    head = (tree.root / "papers/toy/paper.yaml").read_text().split("facts:")[0]
    tree.write("papers/clip/paper.yaml", head.replace("slug: toy", "slug: clip"))
    put_speed(tree.root)
    index = write_report()
    assert '<a href="papers/clip.html">clip</a> base' in index.with_name("speed.html").read_text()
    assert '<a href="../speed.html">against the public class</a>' in (index.parent / "papers/clip.html").read_text()
    assert "against the public class" not in (index.parent / "papers/toy.html").read_text()


def test_text_of_the_file_is_escaped(tree):
    content = copy.deepcopy(SPEED)
    content["rows"][0] |= {"pair": EVIL, "peer": EVIL, "what": EVIL, "commit": EVIL, "versions": {EVIL: EVIL}}
    content["rows"][0]["machine"] = {"cpu": EVIL, "cores": 2}
    content["ratios"][EVIL] = {**content["ratios"]["dual masking"], "what": EVIL}
    content["growth"]["what"] = EVIL
    put_speed(tree.root, content)
    page = write_report().with_name("speed.html").read_text()
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)") > 9


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not valid JSON: Expecting value"),
        (json.dumps(SPEED)[:400], "not valid JSON"),
        ("[" * 100_000, "not valid JSON: nested too deep"),
        ([], "must be an object with rows, ratios and growth"),
        ({}, "(file): rows, ratios and growth are all missing or empty"),
        (changed("rows", 1, "training", "ratio", ...), "rows[1].training.ratio: is required and not there"),
        (changed("rows", 0, "training", "low", 99.0), "rows[0].training: the ratio does not lie between low and high"),
        (changed("rows", 0, "inference", "theirs", "0.5"), "rows[0].inference.theirs: Input should be a valid number"),
        (changed("rows", 0, "inference", "theirs", float("nan")), "rows[0].inference.theirs: "),
        (changed("rows", 0, "training", "ours", 0), "rows[0].training.ours: Input should be greater than"),
        (changed("rows", 1, "memory", "ours", 10**400), "rows[1].memory.ours: "),
        (changed("rows", 1, "memory", ...), "rows[1]: memory and memory_ratio belong together"),
        (changed("rows", 0, "memory_ratio", 0.5), "rows[0]: memory and memory_ratio belong together"),
        (changed("rows", 0, "compiled", False), "rows[0]: memory and memory_ratio belong together"),
        (changed("rows", 0, "size", "huge"), "rows[0].size: Input should be 'base' or 'small'"),
        (changed("rows", 0, "peer", "a\nb"), "rows[0].peer: "),
        (changed("rows", 0, "started", "yesterday"), "rows[0].started: "),
        (changed("rows", [row("vit"), row("vit")]), "rows: vit base (CPU, float32) is there twice"),
        (changed("ratios", {"a\n" * 99: {}}), "ratios.'a\\na\\n"),
        (changed("growth", "width", "seconds", [0.1]), "growth.width: 2 values of x and 1 of seconds"),
        (changed("growth", "width", "x", [1, -2]), "growth.width.x[1]: Input should be greater than"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_damaged_file_is_one_error_that_names_file_and_field(tree, content, says):
    put_speed(tree.root, content)
    with pytest.raises(EncoreError) as refused:
        write_report()
    assert str(refused.value).startswith(f"{FILE}: {says}")
    assert len(str(refused.value).splitlines()) == 1
    assert not (tree.root / "reports").exists()


def test_on_the_command_line_it_is_one_line(tree):
    put_speed(tree.root, changed("growth", "tokens", ...))
    failed = tree.encore("report")
    assert failed.returncode == 2
    assert failed.stderr == f"error: {FILE}: growth.tokens: is required and not there\n"

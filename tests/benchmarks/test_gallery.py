import json

import pytest

from benchmarks.paper.catalog import load_one
from benchmarks.site import gallery
from benchmarks.site.report import write_report
from common.errors import EncoreError

TOY = """\
from common.gallery import Gallery, Sentences

WORDS = ["a", "b"]


def gallery(folder, seed=0):
    assert folder.is_dir()
    return Gallery(
        trained=f"nothing, with seed {seed}.",
        items=[Sentences(title="T", caption="c", columns=["x", "y"], rows=[WORDS])],
    )
"""
KEPT = "benchmarks/results/toy/gallery.json"


@pytest.fixture
def toy(tree, monkeypatch):
    """The toy with a gallery of the words a and b, run in a process of its own as `encore gallery` is."""
    from benchmarks.paper import paths

    tree.write("papers/toy/gallery.py", TOY)
    tree.write("common/gallery.py", (paths.REPOSITORY / "common/gallery.py").read_text())
    return tree


def test_a_gallery_is_kept_with_where_it_came_from_until_its_code_changes(toy):
    done = toy.encore("gallery", "toy")
    assert (done.returncode, done.stdout) == (0, f"{KEPT}\n"), done.stderr
    content = json.loads((toy.root / KEPT).read_text())
    assert {"commit", "versions", "machine", "started"} <= content["provenance"].keys()
    kept = gallery.read(load_one("toy"))
    assert kept.gallery.items[0].rows == [["a", "b"]]
    assert (kept.gallery.trained, kept.is_old) == ("nothing, with seed 0.", False)
    toy.edit('"""Numbers."""', '"""Numbers, unused here."""', "common/numbers.py")
    assert not gallery.read(load_one("toy")).is_old
    toy.edit('["a", "b"]', '["a", "c"]', "papers/toy/gallery.py")
    assert gallery.read(load_one("toy")).is_old
    (toy.root / "papers/toy/gallery.py").unlink()
    assert gallery.read(load_one("toy")).is_old


def test_a_gallery_changes_no_fingerprint_of_a_claim(toy):
    from benchmarks.run.units import identity

    before = identity(load_one("toy").claims[0])
    toy.edit('["a", "b"]', '["a", "c"]', "papers/toy/gallery.py")
    assert identity(load_one("toy").claims[0]) == before


ITEM = {"kind": "sentences", "title": "T", "caption": "c", "columns": ["x", "y"], "rows": [["a", "b"]]}
WHOLE = {"code": "0", "seconds": 1.5, "provenance": {"commit": "abc"}, "trained": "nothing.", "items": [ITEM]}


def put(tree, content):
    (tree.root / KEPT).parent.mkdir(parents=True, exist_ok=True)
    (tree.root / KEPT).write_text(content if isinstance(content, str) else json.dumps(content))
    return gallery.read(load_one("toy"))


@pytest.mark.parametrize(
    "damage",
    [
        {"items": [{**ITEM, "rows": [["a"]]}]},
        {"items": [{**ITEM, "kind": "film"}]},
        {
            "items": [
                {"kind": "pictures", "title": "T", "caption": "c", "pictures": [{"label": "l", "png": "PHN2Zz4="}]}
            ]
        },
        {"provenance": {}},
        {"trained": None},
    ],
)
def test_a_damaged_gallery_is_none(tree, damage):
    assert put(tree, WHOLE).origin == {"commit": "abc"}
    assert put(tree, {**WHOLE, **damage}) is None
    assert put(tree, json.dumps(WHOLE)[:-9]) is None


def test_the_report_goes_on_without_a_damaged_gallery(tree):
    put(tree, {**WHOLE, "provenance": {}})
    assert 'id="gallery"' not in write_report().with_name("papers").joinpath("toy.html").read_text()
    put(tree, WHOLE)
    page = write_report().with_name("papers").joinpath("toy.html").read_text()
    assert "Made by older code" in page
    assert "Made at commit <code>abc</code>" in page


def test_a_gallery_that_is_too_large_or_not_there_is_an_error(toy):
    toy.edit('["a", "b"]', '["a", "b" * 200_000]', "papers/toy/gallery.py")
    done = toy.encore("gallery", "toy")
    assert done.returncode == 2
    assert "are over 150,000: show fewer or smaller items" in done.stderr
    assert not (toy.root / KEPT).exists()
    (toy.root / "papers/toy/gallery.py").unlink()
    with pytest.raises(EncoreError, match=r"toy has no gallery: there is no papers/toy/gallery\.py"):
        gallery.make(load_one("toy"))
    assert toy.encore("gallery", "all").returncode == 0

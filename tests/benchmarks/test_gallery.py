import json

import pytest

from benchmarks import gallery
from benchmarks.catalog import load_one
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
    from benchmarks import paths

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
    from benchmarks.units import identity

    before = identity(load_one("toy").claims[0])
    toy.edit('["a", "b"]', '["a", "c"]', "papers/toy/gallery.py")
    assert identity(load_one("toy").claims[0]) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"rows": [["a", "b"]]', '"rows": [["a"]]'),
        lambda text: text.replace('"kind": "sentences"', '"kind": "film"'),
        lambda text: text.replace('"seconds"', '"minutes"'),
        lambda text: '{"items": []}',
    ],
)
def test_a_damaged_gallery_is_none_and_the_report_goes_on(toy, damage):
    toy.encore("gallery", "toy")
    file = toy.root / KEPT
    text = file.read_text()
    assert damage(text) != text
    file.write_text(damage(text))
    assert gallery.read(load_one("toy")) is None
    assert toy.encore("report").returncode == 0
    assert 'id="gallery"' not in (toy.root / "reports/papers/toy.html").read_text()


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

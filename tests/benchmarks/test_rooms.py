from benchmarks.paper import catalog, paths
from benchmarks.paper.rooms import wrong_arrows
from benchmarks.run.standing import Standing


def arrows():
    return wrong_arrows(catalog.load_all())


def second_paper(tree, builds_on="[]"):
    text = (tree.root / "papers/toy/paper.yaml").read_text()
    head = text.split("facts:")[0].replace("slug: toy", "slug: late")
    tree.write("papers/late/paper.yaml", f"{head}builds_on: {builds_on}\n")
    tree.write("papers/late/model.py", "def build():\n    from papers.toy.model import two\n\n    return two()\n")


def test_this_repository_keeps_its_arrows():
    assert arrows() == []


def test_an_import_that_builds_on_does_not_name_is_found(tree):
    second_paper(tree)
    assert arrows() == ["papers/late imports papers.toy but builds_on does not name it"]
    second_paper(tree, "[toy]")
    assert arrows() == []


def test_builds_on_without_an_import_is_found(tree):
    second_paper(tree, "[toy, nobody]")
    tree.write("papers/late/model.py", "")
    assert arrows() == [
        "papers/late/paper.yaml: builds_on names toy, but nothing is imported from it",
        "papers/late/paper.yaml: builds_on names 'nobody', which is not a paper here",
    ]


def test_a_circle_is_found(tree):
    second_paper(tree, "[toy]")
    tree.edit("fidelity: confirmed", "builds_on: [late]\nfidelity: confirmed")
    tree.edit("return 2", "from papers import late\n    return late", "papers/toy/model.py")
    assert arrows() == ["papers build on each other in a circle: late -> toy -> late"]


def test_common_must_not_import_a_paper_nor_a_paper_the_harness(tree):
    tree.write("common/wrong.py", "def f():\n    import papers.toy.model\n")
    tree.write("papers/toy/wrong.py", "from benchmarks.paper.schema import Paper\n")
    assert arrows() == [
        "common/wrong.py imports papers.toy.model: common knows no paper and no harness",
        "papers/toy/wrong.py imports benchmarks.paper.schema.Paper: a paper does not know the harness",
    ]


def test_the_harness_names_no_paper(tree):
    tree.write("benchmarks/speed/pairs.py", "def pair():\n    from papers.toy.model import two\n\n    return two\n")
    tree.write("benchmarks/run/fine.py", 'import importlib\n\nimportlib.import_module("papers.toy.model")\n')
    assert arrows() == ["benchmarks/speed/pairs.py imports papers.toy.model.two: the harness names no paper"]


def test_rooms_of_the_harness_import_each_other_in_one_direction(tree):
    tree.write("benchmarks/cli.py", "from benchmarks.site.report import write\nfrom benchmarks.run.table import show\n")
    tree.write("benchmarks/site/report.py", "from benchmarks.run.table import show\n")
    tree.write("benchmarks/run/table.py", "from benchmarks.run import plan\n")
    assert arrows() == []
    tree.write("benchmarks/run/reproduce.py", "def f():\n    from benchmarks.site.report import write\n")
    where = "benchmarks/run/reproduce.py, benchmarks/site/report.py"
    assert arrows() == [f"rooms of benchmarks import each other in a circle: run -> site -> run ({where})"]


def test_missing_names_untested_parts_and_shrinks_as_they_arrive(tree):
    before = Standing(catalog.load_one("toy")).missing
    assert {"module.py", "data.py", "train.py", "configs/smoke.yaml", "configs/cpu.yaml"} <= set(before)
    assert "tests/papers/toy/" in before
    tree.write("papers/toy/module.py", "")
    tree.write(
        "tests/papers/toy/test_more.py",
        "from papers.toy import (\n    model,\n)\nfrom papers.toy.claims import better\n",
    )
    tree.write("benchmarks/regress/toy.json", "{}")
    after = Standing(catalog.load_one("toy")).missing
    assert set(before) - set(after) == {"module.py", "tests/papers/toy/", "regress trajectory"}
    assert set(after) - set(before) == {"module.py is not tested"}


def test_a_complete_room_needs_a_paper_config(tree):
    (tree.root / "papers/toy/configs/paper.yaml").unlink()
    tree.edit("    recipe: configs/paper.yaml\n", "")
    assert "configs/paper*.yaml" in Standing(catalog.load_one("toy")).missing


def test_paths_of_the_repository_are_found_from_anywhere():
    assert (paths.REPOSITORY / "benchmarks" / "paper" / "paths.py").is_file()

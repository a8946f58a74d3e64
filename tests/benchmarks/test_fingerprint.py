import ast

import pytest

from benchmarks.paper import fingerprint, paths

ENTRY = "papers.toy.claims:better"


@pytest.fixture
def code(tree):
    """Hash of the toy claim's code now."""
    tree.write("common/layers/__init__.py", "from common.layers.block import Block, Other\nfrom .block import helper\n")
    tree.write("common/layers/block.py", BLOCK)
    tree.edit(
        "from common.numbers import LARGE\n",
        "from common.layers import Block\nfrom common.numbers import LARGE\n",
        CLAIMS,
    )
    tree.edit("    return {", "    Block().run()\n    return {", CLAIMS)

    def now():
        fingerprint.forget()
        return fingerprint.code(ENTRY)

    return now


CLAIMS = "papers/toy/claims.py"
BLOCK = '''\
import math

from common import numbers

WIDTH = 3


class Block:
    """A block."""

    def run(self):
        # says nothing
        return helper(numbers.LARGE)


class Other:
    size = 1


def helper(x):
    """Helps."""
    return x * WIDTH
'''


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("common/layers/block.py", "# says nothing", "# says something else"),
        ("common/layers/block.py", '"""Helps."""', '"""Helps a lot."""'),
        ("common/layers/block.py", "helper(numbers.LARGE)", "helper(\n            numbers.LARGE,\n        )"),
        ("common/layers/block.py", "size = 1", "size = 2"),
        ("common/layers/__init__.py", "import Block, Other", "import Block"),
        ("common/numbers.py", "UNUSED = 1", "UNUSED = 2"),
        ("papers/toy/model.py", "return 2", "return 3"),
    ],
)
def test_the_hash_ignores_comments_docstrings_formatting_and_unreached_code(tree, code, file, old, new):
    before = code()
    tree.edit(old, new, file)
    assert code() == before


def test_the_hash_does_not_count_the_catalogue_of_data_sources(tree, code):
    tree.write("common/__init__.py", "")
    tree.write("common/sources.py", "SOURCES = ['a']\n\n\ndef locate(name):\n    return SOURCES\n")
    tree.edit("import math\n", "import math\n\nfrom common import sources\n", "common/layers/block.py")
    tree.edit("return x * WIDTH", "return x * WIDTH * len(sources.locate('a'))", "common/layers/block.py")
    before = code()
    tree.edit("['a']", "['a', 'b']", "common/sources.py")
    assert code() == before


def test_the_hash_stays_when_a_function_moves_unchanged_to_another_module(tree, code):
    before = code()
    helper = BLOCK[BLOCK.index("def helper") :]
    tree.write("common/help.py", f"WIDTH = 3\n\n\n{helper}")
    tree.edit(f"\n\n{helper}", "", "common/layers/block.py")
    tree.edit("WIDTH = 3\n", "", "common/layers/block.py")
    tree.edit(
        "from common import numbers\n",
        "from common import numbers\nfrom common.help import helper\n",
        "common/layers/block.py",
    )
    tree.edit("from .block import helper\n", "from common.help import helper\n", "common/layers/__init__.py")
    assert code() == before
    tree.edit("x * WIDTH", "x + WIDTH", "common/help.py")
    assert code() != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("common/numbers.py", "LARGE = 10.0", "LARGE = 10.5"),
        ("common/layers/block.py", "WIDTH = 3", "WIDTH = 4"),
        ("common/layers/block.py", "return x * WIDTH", "return x / WIDTH"),
        ("common/layers/block.py", "WIDTH = 3\n", "WIDTH = 3\nmath.pi = 3\n"),
        ("papers/toy/claims.py", "5.0", "6.0"),
        ("common/layers/__init__.py", "common.layers.block import Block", "common.layers.spare import Block"),
    ],
)
def test_the_hash_changes_with_a_constant_or_statement_that_is_reached(tree, code, file, old, new):
    tree.write("common/layers/spare.py", BLOCK.replace("return helper", "return 2 * helper"))
    before = code()
    tree.edit(old, new, file)
    assert code() != before


def test_names_in_strings_and_imports_inside_functions_are_followed(tree, code):
    tree.write("papers/toy/module.py", "from papers.toy.model import two\n\n\ndef make():\n    return two()\n")
    tree.edit("    Block().run()\n", "    from .module import make\n\n    make()\n", CLAIMS)
    before = code()
    tree.edit("return 2", "return 3", "papers/toy/model.py")
    changed = code()
    assert changed != before
    tree.edit("    make()\n", '    run.load("papers.toy.model.two")\n', CLAIMS)
    by_string = code()
    tree.edit("return 3", "return 4", "papers/toy/model.py")
    assert code() != by_string


def test_a_config_named_by_the_code_is_part_of_it(tree, code):
    tree.edit("    Block().run()\n", '    open("configs/paper.yaml")\n', CLAIMS)
    before = code()
    tree.write("papers/toy/configs/paper.yaml", "lr: 2\n")
    assert code() != before


def test_a_package_import_leads_only_to_the_file_that_defines_the_name(tree, code):
    tree.edit("import Block, Other\n", "import Block\nfrom common.layers.far import Far\n", "common/layers/__init__.py")
    tree.write("common/layers/far.py", "class Far:\n    size = 1\n")
    before = code()
    tree.write("common/layers/far.py", "class Far:\n    size = 2\n")
    assert code() == before


def test_modules_used_whole_count_whole(tree, code):
    tree.edit(
        "    Block().run()\n", "    import common.numbers as all_numbers\n\n    print(vars(all_numbers))\n", CLAIMS
    )
    before = code()
    tree.edit("UNUSED = 1", "UNUSED = 2", "common/numbers.py")
    assert code() != before


def test_the_hash_does_not_depend_on_the_cache(tree, code):
    before = code()
    for file in (tree.root / "runs" / ".cache").iterdir():
        file.unlink()
    assert code() == before


def test_config_hash_covers_entry_and_data_but_not_the_statement(tree):
    from benchmarks.paper import catalog

    before = fingerprint.claim_config(catalog.load_one("toy").claims[0])
    tree.edit("statement: the method is better", "statement: it is better")
    assert fingerprint.claim_config(catalog.load_one("toy").claims[0]) == before
    tree.edit("data: generated\n    entry", "data: [generated, sst2]\n    entry")
    assert fingerprint.claim_config(catalog.load_one("toy").claims[0]) != before


def test_the_toy_run_has_the_fields_of_the_real_one():
    def fields(text):
        tree = next(n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == "Run")
        return [node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)]

    from tests.benchmarks.conftest import RUN

    assert fields(RUN) == fields((paths.REPOSITORY / "common" / "training" / "run.py").read_text())

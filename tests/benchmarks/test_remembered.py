"""What `list` and `show` remember: the same text without the slow imports, and never an old one."""

import json
import subprocess
import sys

from benchmarks.paper import paths

SLOW = ("pydantic", "rich", "yaml", "torch", "numpy", "jinja2", "matplotlib")


def imported(tree, *arguments):
    """Modules that one `encore` command imported."""
    code = f"import sys; sys.argv = ['encore', {', '.join(map(repr, arguments))}]\nfrom benchmarks.cli import main\n"
    code += "try: main()\nexcept SystemExit: print(); print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=paths.child_environment(), cwd=tree.root
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_a_second_list_and_show_import_nothing_slow(tree):
    for command in (("list",), ("list", "--json"), ("show", "toy"), ("show", "toy", "--json")):
        first, second = imported(tree, *command), imported(tree, *command)
        assert "pydantic" in first, "the first one reads the papers"
        assert not second & set(SLOW), command


def test_the_text_is_the_same_both_times_and_follows_every_file(tree):
    def titles():
        twice = [tree.encore("list", "--json").stdout for _ in range(2)]
        assert twice[0] == twice[1]
        return [paper["title"] for paper in json.loads(twice[0])]

    (before,) = titles()
    tree.edit(f"title: {before}", f"title: {before[::-1]}")
    assert titles() == [before[::-1]]
    shown = tree.encore("show", "toy").stdout
    assert tree.encore("show", "toy").stdout == shown
    missing = json.loads(tree.encore("list", "--json").stdout)[0]["missing"]
    assert "module.py" in missing
    tree.write("papers/toy/module.py", "")
    assert json.loads(tree.encore("list", "--json").stdout)[0]["missing"] == [m for m in missing if m != "module.py"]
    assert tree.encore("show", "toy").stdout != shown


def test_an_error_is_not_remembered_and_a_damaged_cache_costs_only_time(tree):
    good = tree.encore("list").stdout
    cache = paths.runs() / ".cache" / "remembered.json"
    cache.write_text(cache.read_text()[:50])
    assert tree.encore("list").stdout == good
    for _ in range(2):
        failed = tree.encore("show", "toi")
        assert failed.returncode == 2
        assert "Did you mean toy" in failed.stderr
    cache.write_text("[1, 2]")
    assert tree.encore("list").stdout == good

"""What the front page and the set-up files promise."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_lock_pins_every_direct_dependency_with_hashes_and_names_no_index() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    pinned = {name.lower() for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    assert {re.match(r"[\w-]+", requirement)[0].lower() for requirement in wanted} <= pinned
    assert lock.count("--hash=sha256:") > len(pinned)
    assert "index-url" not in re.sub(r"^#.*$", "", lock, flags=re.MULTILINE)
    assert not re.search(r"https?://", lock)


def test_every_target_of_the_readme_exists_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text() + (ROOT / ".ci/run").read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target

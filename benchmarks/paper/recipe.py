"""Recipe rows: published constants of training, read from the configs as they are after all merging and defaults.

A config opens with a comment that holds its command, `python -m papers.<slug>.train fit --config a.yaml --config b.yaml
--data.init_args.path DIR`: that command, placeholders and all, is what is parsed here, by the train script's own
parser, so a value counts wherever it comes from: the file, the base file before it, or a constructor's default. What
was found is kept beside the facts in benchmarks/results/<paper>/facts.json.
"""

import importlib
import math
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.paper import fingerprint, paths
from benchmarks.paper.facts import FactVerdict, read_part, write_part
from benchmarks.paper.files import digest
from benchmarks.paper.schema import Constant, Paper
from common.errors import EncoreError

COMMAND = re.compile(r"python -m papers\.(\w+)\.train ([^;\n]+)")


@dataclass(frozen=True)
class RecipeResult:
    """`values`: {config: what it says}; for a row about a constant in code the name of the config is ""."""

    where: str
    reported: Any
    values: dict[str, Any]
    verdict: FactVerdict
    error: str = ""

    @property
    def computed(self) -> Any:
        """The value, where all configs say the same; else {config: value}."""
        first = next(iter(self.values.values()), None)
        return first if all(value == first for value in self.values.values()) else self.values


def arguments(config: Path) -> list[str]:
    """What the command in the config's header gives the train script; EncoreError where there is no such command."""
    text = config.read_text(encoding="utf-8")
    header = "\n".join(line for line in text.split("\n\n")[0].splitlines() if line.startswith("#"))
    for match in COMMAND.finditer(header):
        given = shlex.split(match[2].replace("$f", "1"))
        if any(Path(word).name == config.name for word in given):
            return [str(paths.root() / w) if before == "--config" else w for before, w in zip(["", *given], given)]
    raise EncoreError(
        f"{paths.shown(config)}: its first lines must hold its command, python -m papers.<slug>.train ..."
    )


def started(config: Path) -> list[str]:
    """The verb and the --config options alone: ["fit", "--config", "base.yaml", "--config", "paper_x.yaml"]."""
    try:
        given = arguments(config)
    except EncoreError:
        return ["fit", "--config", str(config)]
    pairs = [[option, word] for option, word in pairwise(given) if option == "--config"]
    return [given[0], *(word for pair in pairs for word in pair)]


def merged(config: Path) -> dict[str, Any]:
    """The whole configuration that the config's command runs with. EncoreError says what the parser refuses."""
    paths.make_importable()
    from common.training.cli import Parsed, run

    said = StringIO()
    try:
        with redirect_stderr(said):
            found = run(arguments(config), Parsed)
    except (SystemExit, Exception) as error:
        lines = [line for line in said.getvalue().splitlines() if line.strip()] or [str(error)]
        raise EncoreError(f"{paths.shown(config)}: {lines[-1].strip()}") from error
    return found.config[found.subcommand].as_dict()


def compute(paper: Paper, keep: bool = True) -> list[RecipeResult]:
    """Every recipe row of a paper, checked now. `keep` updates facts.json."""
    configs: dict[Path, dict[str, Any] | EncoreError] = {}
    found = [check(paper, row, configs) for row in paper.recipe]
    if keep:
        codes: dict[Path, str] = {}
        items = [
            {"id": identity(row), "computed": result.values, "code": code(paper, row, codes)}
            for row, result in zip(paper.recipe, found)
            if result.values
        ]
        write_part(paper, "recipe", items)
    return found


def check(paper: Paper, row: Constant, configs: dict[Path, dict[str, Any] | EncoreError]) -> RecipeResult:
    """One row; `configs` keeps what was merged, for the next rows."""
    try:
        if row.build is not None:
            module, _, name = row.build.partition(":")
            paths.make_importable()
            values = {"": plain(getattr(importlib.import_module(module), name)(**row.args))}
        else:
            values = {file.name: _read(row, _merged(file, configs)) for file in files(paper, row)}
    except Exception as error:
        kind = "" if isinstance(error, EncoreError) else f"{type(error).__name__}: "
        return RecipeResult(row.where, row.reported, {}, "error", f"{kind}{error}")
    return compare(row, values)


def compare(row: Constant, values: dict[str, Any]) -> RecipeResult:
    """match when the value of every config equals the reported one, numbers within the row's relative tolerance."""
    good = all(equal(value, row.reported, row.rel_tol) for value in values.values())
    return RecipeResult(row.where, row.reported, values, "match" if good else "mismatch")


def recorded(paper: Paper) -> list[RecipeResult]:
    """What the last computation found, without computing; `not computed` where configs, code or row changed since."""
    kept = {item["id"]: item for item in read_part(paper, "recipe") if _is_record(item)}
    codes: dict[Path, str] = {}
    found = []
    for row in paper.recipe:
        item = kept.get(identity(row))
        if item is not None and item["code"] == code(paper, row, codes):
            found.append(compare(row, item["computed"]))
        else:
            found.append(RecipeResult(row.where, row.reported, {}, "not computed"))
    return found


def files(paper: Paper, row: Constant) -> list[Path]:
    """The configs a row is about."""
    folder = paths.room(paper.slug) / "configs"
    return sorted({file for pattern in row.patterns for file in folder.glob(pattern)})


def code(paper: Paper, row: Constant, known: dict[Path, str]) -> str:
    """Hash of what a row's value depends on: its configs (and those they are merged with) and the code they name.

    `known` keeps the hashes of configs for the next rows.
    """
    if row.build is not None:
        return fingerprint.code(row.build)
    found = files(paper, row)
    for file in found:
        if file not in known:
            known[file] = _config_code(file)
    return digest([known[file] for file in found])


def identity(row: Constant) -> str:
    """What names a row in facts.json."""
    return digest([row.patterns, row.key or "", row.product, row.build or "", row.args])


def plain(value: Any) -> Any:
    """A value as yaml and JSON have it: tuples are lists."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def equal(ours: Any, reported: Any, rel_tol: float) -> bool:
    """Whether two plain values agree; True is not 1, and a missing list entry is not a match."""
    if isinstance(ours, list) and isinstance(reported, list):
        return len(ours) == len(reported) and all(equal(a, b, rel_tol) for a, b in zip(ours, reported))
    if isinstance(ours, bool) or isinstance(reported, bool):
        return ours is reported
    if isinstance(ours, int | float) and isinstance(reported, int | float):
        return math.isclose(ours, reported, rel_tol=max(rel_tol, 1e-12))  # 0.05 * 3 is 0.15 for a reader
    return ours == reported


def _merged(file: Path, configs: dict[Path, dict[str, Any] | EncoreError]) -> dict[str, Any]:
    if file not in configs:
        try:
            configs[file] = merged(file)
        except EncoreError as error:
            configs[file] = error
    found = configs[file]
    if isinstance(found, EncoreError):
        raise found
    return found


def _read(row: Constant, config: dict[str, Any]) -> Any:
    if row.key is not None:
        return plain(_at(config, row.key))
    return math.prod(_processes(config) if key == "devices" else _at(config, key) for key in row.product)


def _at(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for step in key.split("."):
        known = value if isinstance(value, dict) else dict(zip(map(str, range(99)), _entries(value)))
        if step not in known:
            raise EncoreError(f"{key}: there is no {step!r}; choose from {', '.join(known) or 'nothing'}")
        value = known[step]
    return value


def _entries(value: Any) -> list[Any] | tuple[Any, ...]:
    return value if isinstance(value, list | tuple) else []


def _processes(config: dict[str, Any]) -> int:
    return int(config["trainer"]["devices"]) * int(config["trainer"]["num_nodes"])


def _is_record(item: Any) -> bool:
    """Whether it has the form `compute` writes: a damaged file is a row not computed."""
    return (
        isinstance(item, dict)
        and isinstance(item.get("computed"), dict)
        and all(isinstance(item.get(key), str) for key in ("id", "code"))
    )


def _config_code(config: Path) -> str:
    parts = started(config)
    texts = [Path(word).read_text(encoding="utf-8") for before, word in pairwise(parts) if before == "--config"]
    classes = sorted({name for text in texts for name in _classes(text)})
    return digest([config.name, *map(digest, texts), *(fingerprint.code(name) for name in classes)])


def _classes(text: str) -> Iterator[str]:
    for name in re.findall(r"class_path:\s*[\"']?((?:papers|common)\.[\w.]+)", text):
        module, _, attribute = name.rpartition(".")
        yield f"{module}:{attribute}"

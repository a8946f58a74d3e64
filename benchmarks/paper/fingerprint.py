"""Hashes of what a result depends on: the code reachable from its entry point, its definition, its data.

Code is followed name by name through static imports of papers.* and common.*: from the entry function to the functions,
classes and constants it names, to those they name, and so on; `from common.layers import X` leads through the package's
__init__ to the file that defines X. Where a name lives does not count, only what it is: code may move into common/.
What is hashed is the syntax tree without docstrings, so comments and formatting do not matter, nor does code nobody
reaches. Statements of a module that are neither definitions nor imports always count. A method is part of its class.
Where a name cannot be resolved (a module handed around, `import *`) all of it counts. The catalogue of data sources
does not: a new source changes no result, and the data a claim reads are held to their checksums. Nothing is imported,
so this is quick and needs no torch.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.paper import paths
from benchmarks.paper.files import DerivedCache, digest
from benchmarks.paper.schema import Experiment, Fact
from common.errors import EncoreError

HOUSE = ("papers", "common")
FINDS_FILES = ("common.sources", "common.download")  # what the files hold is in data_checksums
IGNORED_FIELDS = {"ctx", "kind", "type_comment", "type_ignores", "type_params"}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
Symbol = tuple[str, str | None]  # (module, name); name None = the whole module


def claim_code(experiment: Experiment) -> str:
    """Hash of the code a claim's or measurement's units run."""
    return code(experiment.entry)


def claim_config(experiment: Experiment) -> str:
    """Hash of the fields of paper.yaml that define what one unit computes; arms and seeds are the unit's own name."""
    return digest({"entry": experiment.entry, "data": experiment.sources})


def fact_code(fact: Fact) -> str:
    """Hash of what the computed value of a fact depends on."""
    return digest([code(fact.build), fact.args, fact.part or "", fact.quantity])


def data_checksums(experiment: Experiment) -> dict[str, str]:
    """{source name: recorded checksum}; generated data are part of the code."""
    checksums = {}
    for name in experiment.sources:
        if name == "generated":
            checksums[name] = "generated"
        else:
            from common.sources import checksum

            checksums[name] = checksum(name)
    return checksums


def code(entry: str) -> str:
    """Hash of everything reachable from "package.module:name"."""
    module, _, name = entry.partition(":")
    return _Code.of(paths.root()).fingerprint(module, name)


def imported_modules(file: Path) -> set[str]:
    """Dotted names every import statement of a file leads to, wherever it stands in the file."""
    found: set[str] = set()
    for node in ast.walk(_parse(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            found |= {target.removesuffix(".*") for _, target in _bindings(node)}
    return found


def forget() -> None:
    """Read the sources anew at the next call (they are read once a process otherwise)."""
    _Code.of.cache_clear()


class _Code:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = DerivedCache("fingerprint", describe)
        self.answers: dict[tuple[str, str], str] = {}
        self.files: dict[str, Path | None] = {}
        self.steps: dict[Symbol, tuple[set[str], list[Symbol]]] = {}

    @staticmethod
    @cache
    def of(root: Path) -> "_Code":
        return _Code(root)

    def fingerprint(self, module: str, name: str) -> str:
        if (module, name) not in self.answers:
            hashes: set[str] = set()
            seen: set[Symbol] = set()
            queue: list[Symbol] = [(module, name)]
            while queue:
                symbol = queue.pop()
                if symbol in seen:
                    continue
                seen.add(symbol)
                if symbol not in self.steps:
                    self.steps[symbol] = self.step(symbol)
                own, leads_to = self.steps[symbol]
                hashes |= own
                queue += leads_to
            self.answers[module, name] = digest(sorted(hashes))
            self.cache.save()
        return self.answers[module, name]

    def step(self, symbol: Symbol) -> tuple[set[str], list[Symbol]]:
        """({name and hash of what the symbol brings in}, the symbols that names in turn).

        Modules are not part of it: what moves unchanged, say into common/ when its second user arrives, stays the same.
        """
        hashes: set[str] = set()
        leads_to: list[Symbol] = []
        for (module, name), part in self.follow(*symbol):
            hashes.add(f"{name} {part['hash']}")
            leads_to += self.targets(module, part)
            if part["yaml"]:
                hashes |= self.configs(module, part)
        return hashes, leads_to

    def file(self, module: str) -> Path | None:
        """The source file of a module of the house, None when it is not one whose code counts."""
        if module.split(".")[0] not in HOUSE or module in FINDS_FILES:
            return None
        if module not in self.files:
            base = self.root.joinpath(*module.split("."))
            found = (file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file())
            self.files[module] = next(found, None)
        return self.files[module]

    def follow(self, module: str, name: str | None) -> Iterator[tuple[tuple[str, str], dict]]:
        """The parts of the module a use of `name` brings in; ((module, part name), part)."""
        file = self.file(module)
        if file is None:
            return
        parts = self.cache[file]["parts"]
        chosen = [part for part in (name, "") if part in parts] if name is not None and name in parts else list(parts)
        for part in chosen:
            if parts[part]["hash"]:
                yield (module, part), parts[part]
            else:  # an imported name: go where it leads, hash nothing here
                yield from self.through_import(module, parts[part])

    def through_import(self, module: str, part: dict) -> Iterator[tuple[tuple[str, str], dict]]:
        for target in self.targets(module, part):
            yield from self.follow(*target)

    def targets(self, module: str, part: dict) -> list[Symbol]:
        """What a part names: other parts of its module, and dotted names resolved to modules of the house."""
        found: list[Symbol] = [(module, name) for name in part["local"]]
        for dotted in part["uses"]:
            symbol = self.resolve(module, dotted)
            if symbol is not None:
                found.append(symbol)
        return found

    def resolve(self, module: str, dotted: str) -> Symbol | None:
        """(module, name) of "common.layers.Attention.forward"; leading dots are relative to `module`."""
        if dotted.startswith("."):
            level = len(dotted) - len(dotted.lstrip("."))
            file = self.file(module)
            package = module.split(".") if file and file.name == "__init__.py" else module.split(".")[:-1]
            dotted = ".".join([*package[: len(package) - level + 1], *filter(None, dotted.lstrip(".").split("."))])
        steps = dotted.split(".")
        if steps[0] not in HOUSE:
            return None
        for length in range(len(steps), 1, -1):
            if self.file(".".join(steps[:length])) is not None:
                rest = steps[length:]
                return ".".join(steps[:length]), (rest[0] if rest and rest[0] != "*" else None)
        return None

    def configs(self, module: str, part: dict) -> set[str]:
        """Names and hashes of the yaml files a part names in a string: those of its paper's configs/ folder."""
        folder = self.root.joinpath(*module.split(".")[:2]) / "configs"
        files = [folder / Path(name).name for name in part["yaml"]]
        return {f"configs/{file.name} {digest(file.read_bytes())}" for file in files if file.is_file()}


def describe(file: Path) -> dict[str, Any]:
    """What a source file defines: {parts: {name: {hash, local, uses, yaml}}}; part "" is its loose statements.

    `local`: names of the same file the part mentions; `uses`: dotted names it reaches through imports.
    A name bound by an import has an empty hash and uses only.
    """
    tree = _parse(file)
    imports: dict[str, str] = {}
    for node in ast.walk(tree):
        imports |= dict(_bindings(node))
    bodies: dict[str, list[ast.stmt]] = {}
    imported_here: set[str] = set()
    for statement in tree.body:
        if _is_docstring(statement):
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imported_here |= {name for name, _ in _bindings(statement)}
            continue
        names = _names_bound(statement)
        if names == ["__all__"]:
            continue
        for name in names or [""]:
            bodies.setdefault(name, []).append(statement)
    stars = sorted(target for name, target in imports.items() if name.startswith("*"))
    parts = {name: _part(statements, set(bodies), imports, stars) for name, statements in bodies.items()}
    for name in imported_here - set(parts):
        parts[name] = {"hash": "", "local": [], "uses": [imports[name]], "yaml": []}
    return {"parts": parts}


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise EncoreError(f"{paths.shown(file)}{line}: not valid Python: {error.args[0]}") from error


def _part(statements: list[ast.stmt], local: set[str], imports: dict[str, str], stars: list[str]) -> dict[str, Any]:
    named: set[str] = set()
    uses: set[str] = set(stars)
    files: set[str] = set()
    inside: set[ast.AST] = set()  # heads of a dotted chain already taken as a whole
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.Attribute | ast.Name) and node not in inside:
            chain = _dotted(node)
            if chain is None:
                continue
            while isinstance(node, ast.Attribute):
                node = node.value
                inside.add(node)
            head, *rest = chain
            if head in local:
                named.add(head)
            if head in imports:
                uses.add(".".join([imports[head], *rest]))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.endswith(".yaml"):
                files.add(node.value)
            elif node.value.startswith(tuple(f"{package}." for package in HOUSE)):
                uses.add(node.value.replace(":", "."))
    return {"hash": _tree_hash(statements), "local": sorted(named), "uses": sorted(uses), "yaml": sorted(files)}


def _bindings(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(bound name, dotted target) of an import statement anywhere in the file."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
    elif isinstance(node, ast.ImportFrom):
        source = "." * node.level + (node.module or "")
        for alias in node.names:
            target = f"{source}{'' if source.endswith('.') else '.'}{alias.name}"
            yield (f"*{source}", target) if alias.name == "*" else (alias.asname or alias.name, target)


def _names_bound(statement: ast.stmt) -> list[str]:
    """Names a top-level statement defines; none when it does something else as well."""
    if isinstance(statement, DEFINITIONS):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    flat = [item for target in targets for item in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return (
        [item.id for item in flat if isinstance(item, ast.Name)] if all(isinstance(i, ast.Name) for i in flat) else []
    )


def _dotted(node: ast.AST) -> list[str] | None:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else None


def _is_docstring(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _tree_hash(statements: list[ast.stmt]) -> str:
    """Hash of syntax trees without docstrings and positions, the same under every Python version."""
    out: list[str] = []
    for statement in statements:
        _flatten(statement, out.append)
    return hashlib.sha256("\0".join(out).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _flatten(node: Any, write: Any) -> None:
    if isinstance(node, ast.AST):
        write(type(node).__name__)
        for field in node._fields:
            value = getattr(node, field, None)
            if field not in IGNORED_FIELDS and value is not None and value != []:
                write(field)
                _flatten(value, write)
        write(")")
    elif isinstance(node, list):
        for item in node:
            if not _is_docstring(item):
                _flatten(item, write)
        write("]")
    else:
        write(repr(node))

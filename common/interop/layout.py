"""A table of two namings of the same tensors, read in both directions.

    BERT = Layout(
        [
            ("embeddings.word_embeddings.", "embeddings.words."),           # ends in a dot: all names below it
            ("encoder.layer.*.output.dense.", "blocks.layers.*.mlp.fc2."),  # *: one part of a name, kept in order
            Fused(("layer.*.query.", "layer.*.key.", "layer.*.value."), "blocks.layers.*.attn.qkv."),
            Also("decoder.weight", "embeddings.words.weight"),              # written a second time, not read
            Drop("pooler."),                                                # not read, not written
        ]
    )

The order of entries does not matter: of several that fit a name, the one that says most of it counts. A name that no
entry fits is an error that names it, in either direction.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from common.errors import EncoreError
from common.interop.weights import State, check_and_load, load_weights, names, save_weights

PREFIXES = ("module.", "_orig_mod.", "model.")  # what DDP, torch.compile and training scripts put before every name
Names = tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One row: tensors `theirs` make one tensor `ours`. read: theirs -> ours; write: ours -> theirs."""

    theirs: Names
    ours: Names
    read: Callable[[list[Tensor]], Tensor] = lambda parts: parts[0]
    write: Callable[[Tensor], list[Tensor]] = lambda value: [value]
    reads: bool = True


def Fused(theirs: Names, ours: str, dim: int = 0) -> Entry:
    """Equal parts of theirs, in that order along `dim`, are one tensor of ours (q, k, v -> qkv)."""
    return Entry(
        theirs, (ours,), lambda parts: torch.cat(parts, dim), lambda value: list(value.chunk(len(theirs), dim))
    )


def Changed(theirs: str, ours: str, read: Callable[[Tensor], Tensor], write: Callable[[Tensor], Tensor]) -> Entry:
    """One tensor in another shape."""
    return Entry((theirs,), (ours,), lambda parts: read(parts[0]), lambda value: [write(value)])


def Transposed(theirs: str, ours: str) -> Entry:
    """A matrix that they keep transposed (x @ W)."""
    return Changed(theirs, ours, torch.t, torch.t)


def Unbatched(theirs: str, ours: str, leading: int = 1) -> Entry:
    """A tensor that they keep with so many dimensions of length 1 before ours."""
    return Changed(
        theirs, ours, lambda value: value.reshape(value.shape[leading:]), lambda value: value[(None,) * leading]
    )


def Also(theirs: str, ours: str) -> Entry:
    """A second copy that their file holds (tied weights): written, not read."""
    return Entry((theirs,), (ours,), reads=False)


def Drop(theirs: str) -> Entry:
    """What their file may hold and ours has no use for."""
    return Entry((theirs,), ())


class Layout:
    """Two namings; see the module. spelled: {their other spelling: the one in the table}, parts of names that old files
    have. base: what a file of the bare model leaves out before every name (`bert.`).
    """

    def __init__(
        self, entries: Iterable[Entry | tuple[str, str]], *, spelled: dict[str, str] | None = None, base: str = ""
    ) -> None:
        self.entries = [e if isinstance(e, Entry) else Entry((e[0],), (e[1],)) for e in entries]
        self.spelled, self.base = dict(spelled or {}), base
        main = [entry for entry in self.entries if entry.reads]
        self._theirs = _Table((e, i, name) for e in self.entries for i, name in enumerate(e.theirs))
        self._ours = _Table((e, i, name) for e in main for i, name in enumerate(e.ours))
        self._also = _Table((e, i, name) for e in self.entries if not e.reads for i, name in enumerate(e.ours))

    def __add__(self, other: Self) -> "Layout":
        return Layout([*self.entries, *other.entries], spelled=self.spelled | other.spelled, base=self.base)

    def under(self, theirs: str = "", ours: str = "") -> "Layout":
        """The same table one level down: both prefixes end in a dot, or are empty."""
        moved = [
            replace(e, theirs=tuple(theirs + name for name in e.theirs), ours=tuple(ours + name for name in e.ours))
            for e in self.entries
        ]
        return Layout(moved, spelled=self.spelled)

    def to_ours(self, state: State, source: str | Path = "weights") -> State:
        """Their tensors under our names. EncoreError for a name that is not in the table or a part that is missing."""
        found: dict[str, tuple[Entry, dict[int, Tensor], Names]] = {}
        unknown = []
        for name, value in self._stripped(state).items():
            match = self._their_match(name)
            if match is None:
                unknown.append(name)
            elif match.entry.reads and match.entry.ours:
                ours = match.fill(match.entry.ours[0])
                entry, parts, _ = found.setdefault(
                    ours, (match.entry, {}, tuple(match.fill(theirs) for theirs in match.entry.theirs))
                )
                if match.index in parts or entry is not match.entry:
                    raise EncoreError(f"{source}: two tensors are our {ours!r}, one of them {name!r}")
                parts[match.index] = value
        missing = [wanted[i] for _, parts, wanted in found.values() for i in range(len(wanted)) if i not in parts]
        if unknown or missing:
            problems = [f"unknown {names(sorted(unknown))}"] if unknown else []
            problems += [f"missing {names(sorted(missing))}"] if missing else []
            raise EncoreError(f"{source}: {', '.join(problems)}; it holds another model or is not whole")
        return {ours: e.read([parts[i] for i in range(len(parts))]) for ours, (e, parts, _) in found.items()}

    def to_theirs(self, state: State, source: str | Path = "model") -> State:
        """Our tensors under their names."""
        out: State = {}
        unknown = []
        for name, value in state.items():
            match = self._ours.match(name)
            if match is None:
                unknown.append(name)
                continue
            for theirs, part in zip(match.entry.theirs, match.entry.write(value), strict=True):
                out[match.fill(theirs)] = part
            also = self._also.match(name)
            if also is not None:
                out[also.fill(also.entry.theirs[0])] = value
        if unknown:
            raise EncoreError(f"{source}: no name in the other layout for {names(sorted(unknown))}")
        return out

    def load(self, model: nn.Module, path: str | Path, *, fresh: Names = ()) -> None:
        """Weights of a file or hub directory into `model`. fresh: prefixes of ours that keep the model's own values
        where the file has none of them.
        """
        state = self.to_ours(load_weights(path), path)
        own = model.state_dict()
        for prefix in fresh:
            if not any(name.startswith(prefix) for name in state):
                state |= {name: value for name, value in own.items() if name.startswith(prefix)}
        check_and_load(model, state, path)

    def save(self, model: nn.Module, directory: str | Path, config: dict[str, Any]) -> None:
        """Write `model` as a hub directory: model.safetensors and config.json."""
        save_weights(directory, self.to_theirs(model.state_dict(), type(model).__name__), config)

    def _their_match(self, name: str) -> "_Match | None":
        for old, new in self.spelled.items():
            name = name.replace(old, new)
        return self._theirs.match(name) or (self._theirs.match(self.base + name) if self.base else None)

    def _stripped(self, state: State) -> State:
        """Without the prefixes that wrappers put before every name, where the table does not know them."""
        while state and not any(self._their_match(name) for name in state):
            prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None)
            if prefix is None:
                break
            state = {name.removeprefix(prefix): value for name, value in state.items()}
        return state


@dataclass(frozen=True)
class _Match:
    entry: Entry
    index: int  # which of the entry's names it was
    captured: Names  # what the stars stood for
    rest: str  # what came after a name that ends in a dot

    def fill(self, pattern: str) -> str:
        parts = pattern.split("*")
        return "".join(part + star for part, star in zip(parts, (*self.captured, ""))) + self.rest


@dataclass
class _Table:
    """Names with stars, compiled."""

    rows: Iterable[tuple[Entry, int, str]]
    compiled: list[tuple[re.Pattern[str], Entry, int]] = field(init=False)

    def __post_init__(self) -> None:
        rows = sorted(self.rows, key=lambda row: (row[2].endswith("."), -len(row[2].replace("*", ""))))
        self.compiled = [(_compile(name), entry, index) for entry, index, name in rows]

    def match(self, name: str) -> _Match | None:
        for pattern, entry, index in self.compiled:
            if found := pattern.fullmatch(name):
                *captured, rest = found.groups()
                return _Match(entry, index, tuple(captured), rest)
        return None


def _compile(name: str) -> re.Pattern[str]:
    inner = r"([^.]+)".join(re.escape(part) for part in name.split("*"))
    return re.compile(inner + ("(.+)" if name.endswith(".") else "()"))

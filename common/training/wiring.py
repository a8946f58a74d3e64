"""What a unit of a claim is wired to: its splits, settings and trainings, as digests that the harness compares.

Nothing here draws a random number or changes what it looks at, so a claim that declares more gives the same metrics.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from common.errors import EncoreError
from common.training.loaders import seeded

ROLES = ("train", "valid", "test")
MOST = 4096  # examples of a split that are looked at; of more, so many evenly spaced ones, always the same
State = Mapping[str, Tensor]

# modules that received weights in this process, with the digest of what they received
_handed: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


@dataclass
class Wiring:
    """The record of one unit. `fits` is in the order of training; see `Run.split`, `Run.settings` and `fit`."""

    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    fits: dict[str, dict[str, Any]] = field(default_factory=dict)
    _examples: dict[str, set[bytes]] = field(default_factory=dict, repr=False)
    _data: dict[str, Any] = field(default_factory=dict, repr=False)  # kept, so that an id stays that of one object

    def as_json(self) -> dict[str, Any]:
        return {key: value for key in ("splits", "settings", "fits") if (value := getattr(self, key))}

    def split(self, name: str, data: Any, overlap: str | None) -> None:
        """See Run.split."""
        role, _, group = name.partition(":")
        if role not in ROLES:
            raise EncoreError(
                f"split {name!r}: a name is {', '.join(ROLES)}, or one of these with ':' and its own name"
            )
        digests = list(example_digests(data))
        found = {"examples": len(data), "digest": _hex(digests)} | ({"overlap": overlap} if overlap else {})
        if self.splits.get(name, found) != found:
            raise EncoreError(
                f"split {name!r} is declared twice with other examples; give each its own name, {name}:..."
            )
        self.splits[name], self._examples[name], self._data[name] = found, set(digests), data
        for other in self.splits:
            other_role, _, other_group = other.partition(":")
            apart = role != other_role and (group == other_group or not group or not other_group)
            shared = len(self._examples[name] & self._examples[other]) if apart else 0
            if shared and not overlap and "overlap" not in self.splits[other]:
                raise EncoreError(
                    f"{shared} examples of split {name!r} are in split {other!r} too: divide the data before training, "
                    'or say why they may with overlap="..."'
                )

    def name_of(self, data: Any) -> str | None:
        """The split that this very object was declared as."""
        return next((name for name, known in self._data.items() if known is data), None)


def example_digests(data: Any) -> Iterator[bytes]:
    """A digest of every example (of MOST evenly spaced ones) of a sequence, of rows of a tensor, or of a dataset.

    A dataset is read with the global generators seeded alike for each example, so that what it adds at random is the
    same for the same example; afterwards they are as before.
    """
    if not hasattr(data, "__len__"):
        raise EncoreError(
            f"a split of {type(data).__name__} has no length: give a list, a tensor or a map-style dataset"
        )
    indices = range(len(data)) if len(data) <= MOST else [i * len(data) // MOST for i in range(MOST)]
    plain = isinstance(data, Tensor | np.ndarray | Sequence)
    for index in indices:
        if plain:
            yield digest_of(data[index])
            continue
        with seeded(0):
            yield digest_of(data[index] if hasattr(data, "__getitem__") else data.__getitems__([index]))


def digest_of(example: Any) -> bytes:
    """Equal for equal tensors or arrays, text, numbers, images, None, and containers of these."""
    state = blake2b(digest_size=8)
    for part in _parts(example):
        state.update(part)
    return state.digest()


def _parts(example: Any) -> Iterator[bytes]:
    if isinstance(example, Tensor):
        example = example.detach().cpu()
        example = example.view(torch.int16) if example.dtype == torch.bfloat16 else example
        example = example.numpy()
    if isinstance(example, np.ndarray | np.generic) and example.dtype != object:
        example = np.ascontiguousarray(example)
        yield f"{example.dtype.str}{example.shape}".encode()
        yield example.tobytes()
    elif isinstance(example, str | bytes | int | float | None):
        yield f"{type(example).__name__}{example!r};".encode("utf-8", "surrogatepass")
    elif isinstance(example, Mapping):
        for key, value in example.items():
            yield f"{key!r}:".encode()
            yield from _parts(value)
    elif is_dataclass(example):
        yield from _parts({f.name: getattr(example, f.name) for f in fields(example)})
    elif hasattr(example, "tobytes") and hasattr(example, "mode"):  # an image of Pillow
        yield f"{example.mode}{example.size}".encode()
        yield example.tobytes()
    elif isinstance(example, Iterable):
        yield b"("
        for item in example:
            yield from _parts(item)
        yield b")"
    else:
        raise EncoreError(
            f"no digest of a {type(example).__name__}: declare a split by tensors, arrays, text, numbers or images"
        )


def weights_digest(state: State) -> str:
    """Eight hexadecimal digits that tell two state dicts apart; of weights and buffers, not of other extra state."""
    whole = {name: value for name, value in state.items() if isinstance(value, Tensor) and not is_lazy(value)}
    return _hex(_parts(whole))


def mark_handed(module: nn.Module, state: State) -> None:
    """Remember that `module` received `state` from elsewhere."""
    _handed[module] = weights_digest(state)


def handed_to(module: nn.Module) -> str | None:
    """The digest of what the module, or the first of its parts that did, received by hand_over; None: nothing."""
    return next((_handed[part] for part in module.modules() if part in _handed), None)


def _hex(parts: Iterable[bytes]) -> str:
    state = blake2b(digest_size=4)
    for part in parts:
        state.update(part)
    return state.hexdigest()

"""What a user may choose from, and the one error for a name that is not among it. Imports nothing that is slow."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from common.errors import EncoreError

SCALES = ("smoke", "cpu", "gpu", "paper")
ENGINES = ("local", "ray", "slurm")
DEFAULT_PAPER = "pointer_networks"
T = TypeVar("T")


def pick(name: str, choices: Mapping[str, T], what: str) -> T:
    """choices[name], or one clear error that names the close matches and all choices."""
    if name in choices:
        return choices[name]
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise EncoreError(f"unknown {what}: {name!r}.{hint} Choices: {', '.join(choices) or 'none'}")

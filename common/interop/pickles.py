"""Pickles of other projects, of which nothing runs but what is allowed by name."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct  # what pickled arrays call  # type: ignore[attr-defined]

from common.errors import EncoreError

Allowed = Mapping[tuple[str, str], Any]  # {(module, name) that a file may ask for: what it gets}
ARRAYS: Allowed = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}


class _Only(pickle.Unpickler):
    """Builds plain containers, text, numbers and what is allowed; all else is refused before it is called."""

    def __init__(self, file: Any, allowed: Allowed, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self.allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def load_pickle(path: str | Path, allowed: Allowed | None = None, *, encoding: str = "ASCII") -> Any:
    """A pickle of text, numbers, plain containers and what `allowed` names (ARRAYS: numpy's arrays of numbers).

    encoding: of texts that Python 2 wrote; "bytes" leaves them bytes. EncoreError, before anything runs, for a file
    that asks for more, and for one that cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return _Only(file, allowed or {}, encoding).load()
    except (pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise EncoreError(f"{path}: refused or unreadable ({error}); use the archive's own file") from error

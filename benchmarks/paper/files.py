"""Small files, written whole or not at all, and a content-addressed cache of what was derived from them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.paper import paths
from common.files import replacing


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader, or a kill at any moment, sees the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None when there is no file or it is not a whole JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def is_finite(value: object) -> bool:
    """Whether it is a number that counts and compares like one (JSON also has NaN, and integers of any length)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def digest(content: bytes | str | list | dict) -> str:
    """16 hex digits that name the content; a list or dict is hashed as canonical JSON."""
    if isinstance(content, list | dict):
        content = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


class DerivedCache:
    """What `derive(path)` gives, remembered by the content of the file in runs/.cache/<name>.json.

    Reading every source file is cheap, parsing it is not: this keeps `encore list` far below half a second. The values
    must be JSON. A lost or unwritable cache costs time, never correctness.
    """

    def __init__(self, name: str, derive: Callable[[Path], Any]) -> None:
        self.file = (
            paths.runs() / ".cache" / f"{name}-{digest(Path(__file__).parent.joinpath(f'{name}.py').read_bytes())}.json"
        )
        self.derive = derive
        self.known = read_json(self.file) or {}
        self.used: dict[str, Any] = {}
        self.by_path: dict[Path, Any] = {}

    def __getitem__(self, path: Path) -> Any:
        if path not in self.by_path:
            key = digest(path.read_bytes())
            if key not in self.used:
                self.used[key] = self.known[key] if key in self.known else self.derive(path)
            self.by_path[path] = self.used[key]
        return self.by_path[path]

    def save(self) -> None:
        """Keep what this process derived (and what it found, while the file stays small)."""
        if self.used.keys() <= self.known.keys():
            return
        kept = self.known if len(self.known) < 5000 else {}
        try:
            write_atomic(self.file, json.dumps({**kept, **self.used}, default=str))
        except OSError:
            return

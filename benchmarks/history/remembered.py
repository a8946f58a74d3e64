"""What `list` and `show` print, remembered for as long as no file of the tree changes.

Importing the schema and the tables takes longer than everything else these commands do, and grows with the papers. A
look at the names, sizes and times of all files is enough to know that the same text would come out again.
"""

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.paper import paths
from benchmarks.paper.files import digest, read_json, write_atomic

if TYPE_CHECKING:
    from rich.console import Console

FOLDERS = ("papers", "common", "benchmarks", "tests")
TERMINAL = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS")
KEPT = 40  # texts; the oldest go first


def text_of(name: str, make: Callable[[], str]) -> str:
    """make(), or what it gave the last time the tree and `name` (the command with its arguments) were the same."""
    file = paths.runs() / ".cache" / "remembered.json"
    key = digest([name, sys.version, *map(str, dict.fromkeys((paths.root(), paths.REPOSITORY))), *_state()])
    known = read_json(file) or {}
    if isinstance(known.get(key), str):
        return known[key]
    text = make()
    with contextlib.suppress(OSError):  # costs time, never correctness
        write_atomic(file, json.dumps(dict([*known.items(), (key, text)][-KEPT:])))
    return text


def print_drawn(name: str, draw: "Callable[[Console], None]") -> None:
    """Print what draw(console) puts on a console like the one that stdout is."""
    terminal, encoding = sys.stdout.isatty(), sys.stdout.encoding or "utf-8"
    width = shutil.get_terminal_size().columns

    def make() -> str:
        from benchmarks.run.table import console

        page = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", newline="")
        draw(console(page, terminal, width))
        page.flush()
        return page.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]

    place = json.dumps([terminal, width, encoding, *map(os.environ.get, TERMINAL)])
    sys.stdout.write(text_of(f"{name} {place}", make))


def _state() -> list[str]:
    """Name, size and times of every file that the commands could read."""
    roots = dict.fromkeys((paths.root(), paths.REPOSITORY))
    return [line for root in roots for folder in FOLDERS for line in sorted(_files(root / folder))]


def _files(folder: Path) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.name == "__pycache__":
            continue
        if entry.is_dir():
            yield from _files(Path(entry.path))
        else:
            found = entry.stat(follow_symlinks=False)
            yield f"{entry.path} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"

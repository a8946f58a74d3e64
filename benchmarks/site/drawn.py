"""The figures of a report: drawn once, and kept in runs/.cache by what went into them.

Drawing is what takes time in a report, and most figures are those of the last one: with all of them kept, matplotlib is
not even imported.
"""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmarks.paper import paths
from benchmarks.paper.files import digest, read_json, write_atomic


class Drawn:
    """drawn("curves", name="...", ...): the figure of that function of site.figures. Arguments must be JSON."""

    def __init__(self) -> None:
        source = Path(__file__).with_name("figures.py").read_bytes()
        self.file = paths.runs() / ".cache" / f"figures-{digest(source)}.json"
        self.known = read_json(self.file) or {}
        self.used: dict[str, str] = {}

    def __call__(self, kind: str, **arguments: Any) -> Markup:
        key = digest([kind, list(arguments.items())])
        svg = self.known.get(key)
        if not isinstance(svg, str):
            from benchmarks.site import figures

            svg = getattr(figures, kind)(**arguments)
        self.used[key] = svg
        return Markup(svg)

    def save(self) -> None:
        """Keep the figures of this report, and only them; a cache that cannot be written costs time alone."""
        if self.used.keys() != self.known.keys():
            try:
                write_atomic(self.file, json.dumps(self.used))
            except OSError:
                return

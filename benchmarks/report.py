"""One self-contained HTML page about all papers."""

from pathlib import Path

from benchmarks import paths


def write_report(output: Path | None) -> Path:
    """Being written."""
    return output or paths.root() / "reports" / "index.html"

"""Named data sources (sources.yaml): what they are, what their files hash to, and where a file is found.

A file is looked for in this order: the data directory (``ENCORE_DATA``, default ``~/.cache/encore``), a mirror
directory (``ENCORE_MIRROR``), a download from the source's home (unless ``ENCORE_OFFLINE`` is set). Both directories
have the layout of the relative paths below. Every file is verified; a wrong one is an error, never skipped for the next
place in the order.

Nothing heavy is imported here: catalogue commands read this module.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common.checksums import file_sha256
from common.errors import EncoreError

GENERATED = "generated"


@dataclass(frozen=True)
class File:
    """One file of a source.

    sha256 is that of the bytes; for a ``.gz`` that of the content, because the container depends on the compressor.
    url: a direct link, or None when the form used here is a conversion that no single download gives.
    """

    sha256: str
    url: str | None = None


@dataclass(frozen=True)
class Source:
    """A data set under one name.

    files: {path relative to the data or mirror directory: File}; file names are unique.
    """

    name: str
    description: str
    licence: str
    home: str
    files: dict[str, File]

    @property
    def downloadable(self) -> bool:
        return all(file.url for file in self.files.values())


CATALOGUE = Path(__file__).with_name("sources.yaml")


@cache
def _by_name() -> dict[str, Source]:
    import yaml

    rows = yaml.load(CATALOGUE.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    found = [Source(**row | {"files": {name: File(**file) for name, file in row["files"].items()}}) for row in rows]
    return {source.name: source for source in found}


def all_sources() -> list[Source]:
    """Every named source, in catalogue order."""
    return list(_by_name().values())


def get(name: str) -> Source:
    """The source of that name, or an error that lists the names there are."""
    try:
        return _by_name()[name]
    except KeyError:
        raise EncoreError(f"no data source named {name!r}; there are: {', '.join(_by_name())}") from None


def data_dir() -> Path:
    """ENCORE_DATA, default ~/.cache/encore. Downloads go here."""
    return Path(os.environ.get("ENCORE_DATA") or Path.home() / ".cache" / "encore").expanduser()


def mirror_dir() -> Path | None:
    """ENCORE_MIRROR, or None when it is not set."""
    value = os.environ.get("ENCORE_MIRROR")
    return Path(value).expanduser() if value else None


def locate(name: str) -> dict[str, Path]:
    """Verified local paths of a source, {file name: path}; downloads what is absent and has a link.

    Raises EncoreError for an unknown name, a file with a wrong checksum (wherever it lies), and a file that cannot be
    had.
    """
    source = get(name)
    paths = {relative: _find(relative, file) for relative, file in source.files.items()}
    missing = [relative for relative, path in paths.items() if path is None]
    if missing and (os.environ.get("ENCORE_OFFLINE") or any(source.files[r].url is None for r in missing)):
        raise EncoreError(_missing_message(source, missing))
    for relative in missing:
        from common.download import download

        file, target = source.files[relative], data_dir() / relative
        try:
            download(str(file.url), target, file.sha256)
        except ConnectionError as error:
            raise EncoreError(f"{error}\n{_missing_message(source, missing)}") from None
        paths[relative] = target
    return {Path(relative).name: path for relative, path in paths.items() if path is not None}


def whereabouts(name: str) -> str:
    """'here' (all files in the data or mirror directory), 'downloadable' or 'missing'.

    Looks, but neither hashes nor downloads.
    """
    source = get(name)
    roots = [root for root in (data_dir(), mirror_dir()) if root]
    absent = [r for r in source.files if not any((root / r).is_file() for root in roots)]
    if not absent:
        return "here"
    return "downloadable" if all(source.files[r].url for r in absent) else "missing"


def available(name: str) -> bool:
    """True when every file lies in the data or mirror directory (not verified): `locate` will need no network."""
    return whereabouts(name) == "here"


def checksum(names: str | Sequence[str]) -> str:
    """One sha256 over the files of a source or of several, from the catalogue; generated data has the checksum
    'generated'.
    """
    names = [names] if isinstance(names, str) else sorted(names)
    if set(names) <= {GENERATED}:
        return GENERATED
    lines = [f"{file.sha256}  {relative}" for n in names if n != GENERATED for relative, file in get(n).files.items()]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _find(relative: str, file: File) -> Path | None:
    for root in (data_dir(), mirror_dir()):
        if root is None or not (root / relative).is_file():
            continue
        path = root / relative
        got = file_sha256(path)
        if got != file.sha256:
            raise EncoreError(
                f"{path}: wrong checksum: expected sha256 {file.sha256}, got {got} ({path.stat().st_size} bytes); "
                "the file is truncated, damaged or another version: delete it or replace it, then run again"
            )
        return path
    return None


def _missing_message(source: Source, missing: Sequence[str]) -> str:
    mirror = mirror_dir()
    if any(source.files[relative].url is None for relative in missing):
        third = (
            f"convert it yourself: the form used here is a conversion of {source.home} and has no download of its own"
        )
    elif os.environ.get("ENCORE_OFFLINE"):
        third = f"let it be downloaded from {source.home}: unset ENCORE_OFFLINE"
    else:
        third = f"run again with a network connection to download it from {source.home}"
    return (
        f"data source {source.name!r} is missing: {', '.join(missing)}. Three ways to provide it: "
        f"(1) put the files under the data directory, ENCORE_DATA={data_dir()}; "
        f"(2) point ENCORE_MIRROR (now {mirror or 'not set'}) at a directory that has them; (3) {third}"
    )

"""Downloading one file with checksum, resume and progress, and unpacking an archive that may be hostile."""

import fcntl
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from common.checksums import file_sha256
from common.errors import EncoreError

ATTEMPTS = 4
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 16
LARGEST = 64 << 30  # bytes of a download, and of an archive's content
UNREADABLE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, RuntimeError, ValueError),
)


def download(url: str, target: Path, sha256: str) -> Path:
    """Fetch url to target; the file appears there whole and verified, or not at all.

    Bytes so far are kept in ``<target>.part`` and a cut connection goes on from them (HTTP Range), within this call and
    in the next. A target that ends in .gz from a url that does not is compressed on arrival. Two processes take turns.
    Raises EncoreError for a wrong checksum (the bytes are deleted) and ConnectionError when the server cannot be
    reached or keeps breaking off.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with _alone(part) as stream:
        if target.is_file() and file_sha256(target) == sha256:  # another process was faster
            return target
        _fetch(url, stream, part)
        stream.flush()
        got = file_sha256(part, gzipped=url.endswith(".gz"))
        if got != sha256:
            size = part.stat().st_size
            part.unlink()
            raise EncoreError(
                f"{url}: wrong checksum: expected sha256 {sha256}, got {got} ({size} bytes); nothing was kept. "
                f"Run again; if it stays so the file at its home has changed: place the right one at {target}"
            )
        if target.suffix == ".gz" and not url.endswith(".gz"):
            packed = target.with_name(target.name + ".packed")
            packed.unlink(missing_ok=True)
            stream.seek(0)
            with packed.open("xb") as raw, gzip.GzipFile(packed.name, "wb", fileobj=raw, mtime=0) as out:
                shutil.copyfileobj(stream, out)
            os.replace(packed, target)
            part.unlink()
        else:
            os.replace(part, target)
    return target


def _alone(part: Path) -> BinaryIO:
    """The part file, open and locked. EncoreError when writing to it would write to some other file."""
    while True:
        try:
            number = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            said = "is a link" if part.is_symlink() else f"cannot be written ({error.strerror})"
            raise EncoreError(f"{part}: {said}; delete it") from None
        facts = os.fstat(number)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            os.close(number)
            raise EncoreError(f"{part}: is {'a link' if stat.S_ISREG(facts.st_mode) else 'no file'}; delete it")
        stream = os.fdopen(number, "r+b")
        fcntl.flock(stream, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(facts, os.lstat(part)):
                return stream
        stream.close()  # while this process waited, the other one moved the file to its place


def _fetch(url: str, part: BinaryIO, name: Path) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(url.rsplit("/", 1)[-1], total=None)
        for attempt in range(ATTEMPTS):
            try:
                return _continue(url, part, progress, task)
            except requests.RequestException as error:
                if attempt + 1 == ATTEMPTS:
                    kept = os.fstat(part.fileno()).st_size
                    raise ConnectionError(
                        f"download of {url} failed after {ATTEMPTS} attempts ({type(error).__name__}: {error}); "
                        f"{kept} bytes are kept in {name} and the next run continues from them"
                    ) from None
                time.sleep(0.2 * 2**attempt)


def _continue(url: str, part: BinaryIO, progress: Progress, task: TaskID) -> None:
    """One request for the bytes that are not there yet."""
    start = os.fstat(part.fileno()).st_size
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # nothing after `start`: the part is complete, or not of this file
            return
        if 400 <= response.status_code < 500:  # asking again would not help
            raise ConnectionError(
                f"download of {url} failed: the server answered {response.status_code} {response.reason}"
            )
        response.raise_for_status()
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {start}-"
        )
        if response.status_code == 206 and not resumed:
            part.truncate(0)
            raise requests.ConnectionError(f"unexpected range {response.headers.get('Content-Range')!r}")
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        if length is not None and not re.fullmatch(r"[0-9]{1,18}", length):
            raise requests.ConnectionError(f"unexpected Content-Length {length[:40]!r}")
        total = None if length is None else start + int(length)
        _check_size(url, total or 0)
        progress.update(task, completed=start, total=total)
        part.truncate(start)
        part.seek(start)
        for block in response.iter_content(BLOCK):
            start += len(block)
            _check_size(url, start)
            part.write(block)
            progress.advance(task, len(block))
        part.flush()


def _check_size(what: object, size: int) -> None:
    if size > LARGEST:
        raise EncoreError(f"{what}: more than {LARGEST:,} bytes; nothing here is so large, so it is refused")


def extract(archive: Path, directory: Path) -> Path:
    """Unpack a .tar[.gz|.bz2|.xz] or .zip into a directory that does not exist yet; it appears whole or not at all.

    Raises EncoreError, before anything is written, for absolute paths, paths that leave the directory, links and
    special files, for an archive that is damaged, and for one whose content is larger than LARGEST.
    """
    if directory.exists():
        raise EncoreError(f"{directory} exists already; delete it or choose another directory for {archive}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as temporary:
            inside = Path(temporary) / "content"
            inside.mkdir()
            if zipfile.is_zipfile(archive):
                _unzip(archive, inside)
            else:
                _untar(archive, inside)
            os.replace(inside, directory)
    except UNREADABLE as error:
        raise EncoreError(f"{archive}: cannot be unpacked ({error}); delete it and fetch it again") from None
    return directory


def _untar(archive: Path, directory: Path) -> None:
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        while tar.fileobj is not None and tar.fileobj.read(BLOCK):  # to the end, where a gzip keeps its checksum
            pass
        _check_size(archive, sum(member.size for member in members))
        for member in members:
            _check_name(archive, member.name)
            if not (member.isfile() or member.isdir()):
                raise EncoreError(f"{archive}: refused: member {member.name!r} is a link or a special file")
        tar.extractall(directory, filter="data")


def _unzip(archive: Path, directory: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        _check_size(archive, sum(info.file_size for info in zipped.infolist()))
        for info in zipped.infolist():
            _check_name(archive, info.filename)
            if stat.S_ISLNK(info.external_attr >> 16):
                raise EncoreError(f"{archive}: refused: member {info.filename!r} is a link")
        zipped.extractall(directory)


def _check_name(archive: Path, name: str) -> None:
    path = PureWindowsPath(name)  # takes both kinds of slash for separators
    if path.drive or path.root or ".." in path.parts:
        raise EncoreError(f"{archive}: refused: member {name!r} would be written outside the directory")

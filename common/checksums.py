"""SHA-256 of files."""

import gzip
import hashlib
import zlib
from functools import cache
from pathlib import Path


def file_sha256(path: Path, gzipped: bool | None = None) -> str:
    """sha256 of a file's bytes, or of its content when it is gzipped (by default: when named .gz).

    A broken gzip gives the text 'unreadable gzip'. Cached in the process by name, size and time of change, so that
    asking again costs a stat.
    """
    stat = path.stat()
    return _sha256(str(path), path.suffix == ".gz" if gzipped is None else gzipped, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: str, gzipped: bool, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    try:
        with gzip.open(path) if gzipped else open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return "unreadable gzip"
    return digest.hexdigest()

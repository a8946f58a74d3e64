"""Lines of text files. A line feed alone ends one: other characters that str.splitlines takes for an end are text."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from common.errors import EncoreError


def byte_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """(where it begins in the file, the line with its end), read one by one; a byte order mark is left out."""
    begin = 0
    try:
        with Path(path).open("rb") as file:
            for line in file:
                if begin == 0 and line.startswith(codecs.BOM_UTF8):
                    begin, line = len(codecs.BOM_UTF8), line.removeprefix(codecs.BOM_UTF8)
                yield begin, line
                begin += len(line)
    except OSError as error:
        raise EncoreError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def text_lines(path: str | Path) -> Iterator[str]:
    """Lines of a UTF-8 file without their ends. EncoreError names the file and the first line that is not UTF-8."""
    for number, (_, line) in enumerate(byte_lines(path), 1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise EncoreError(f"{path}:{number}: not a readable UTF-8 text; fetch or convert it again") from None

"""Lines of text files. A line feed alone ends one: other characters that str.splitlines takes for an end are text.

A byte order mark is no part of a file's text.
"""

import codecs
import csv
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


def table_rows(path: str | Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, each with at least these columns. EncoreError names the file, and the line
    of a row that lacks one."""
    try:
        reader = csv.DictReader(text_lines(path))
        if not set(columns) <= set(reader.fieldnames or ()):
            raise EncoreError(f"{path}: expected the columns {','.join(columns)}; write it anew or fetch it again")
        rows = []
        for row in reader:
            if any(row[column] is None for column in columns):
                raise EncoreError(f"{path}, line {reader.line_num}: a row with too few fields; mend or remove it")
            rows.append(row)
    except csv.Error as error:
        raise EncoreError(f"{path}: is no CSV table ({error}); fetch it again") from None
    return rows

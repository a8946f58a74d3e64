"""Reading tables and texts of a source, and the {bytes, path} cells in which images and audio are stored."""

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from common.errors import EncoreError
from common.formats.images import load_image
from common.formats.lines import text_lines


def read_table(path: Path, columns: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Columns of a Parquet file as Python lists, {column: values}; all columns when none are named."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            absent = [column for column in columns or () if column not in names]
            if absent:
                raise EncoreError(f"{path}: no column {absent[0]!r}; it has {', '.join(names)}")
            table = file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise EncoreError(f"{path}: not a readable Parquet file ({error}); delete it and fetch it again") from None
    return {column: table[column].to_pylist() for column in table.column_names}


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, plain or gzipped, without a byte order mark."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise EncoreError(f"{path}: not a readable UTF-8 text ({error}); delete it and fetch it again") from None


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the non-blank lines of a UTF-8 file, read one by one: some have gigabytes.

    Only a line feed ends a line: texts of the web hold other characters that `str.splitlines` takes for an end.
    """
    for number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            yield number, line


def decode_image(cell: dict[str, Any] | bytes, mode: str = "RGB") -> Image.Image:
    """PIL image of a cell in mode 'RGB', 'L' or 'RGBA'; see common.formats.images."""
    data, name = _content(cell)
    return load_image(data, mode, f"image {name}")


def decode_images(cells: Iterable[dict[str, Any] | bytes], mode: str = "RGB", size: int | None = None) -> np.ndarray:
    """Images of one size stacked, uint8 (N, H, W, 3), or (N, H, W) for mode 'L'; resized to size x size (bicubic) when
    given.
    """
    images = [decode_image(cell, mode) for cell in cells]
    if size is not None:
        images = [
            image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)
            for image in images
        ]
    if len({image.size for image in images}) > 1:
        raise EncoreError(
            f"images differ in size ({sorted({image.size for image in images})}); pass size= to resize them"
        )
    return np.stack([np.asarray(image) for image in images])


def decode_audio(cell: dict[str, Any] | bytes) -> tuple[np.ndarray, int]:
    """Mono waveform float32 (samples,) in [-1, 1] and its sampling rate in Hz. Channels are averaged."""
    import soundfile

    data, name = _content(cell)
    try:
        waveform, sample_rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise EncoreError(f"audio {name}: cannot be decoded ({error}); remove or replace it") from None
    return waveform.mean(axis=1), sample_rate


def _content(cell: dict[str, Any] | bytes) -> tuple[bytes, str]:
    if isinstance(cell, bytes):
        return cell, f"of {len(cell)} bytes"
    return cell["bytes"] or b"", repr(cell.get("path"))

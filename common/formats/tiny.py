"""Tiny files in the formats real data comes in: what a paper's fixtures.py is written with, and many a test.

Every writer is exact (seeded) and returns the path it wrote.
"""

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TEXT = """
the old river ran past a small house where two dogs slept under warm sun when cold wind came over low hills and
birds sang in tall trees near stone bridge
"""
WORDS = TEXT.split()


def sentence(rng: np.random.Generator, length: int = 8) -> str:
    """`length` words, the first with a capital, and a full stop."""
    return " ".join(rng.choice(WORDS, size=length)).capitalize() + "."


def sentences(count: int, length: int = 8, seed: int = 0) -> list[str]:
    """`count` sentences."""
    rng = np.random.default_rng(seed)
    return [sentence(rng, length) for _ in range(count)]


def byte_bpe(folder: Path, vocab_size: int = 300, texts: Sequence[str] = ()) -> Path:
    """vocab.json and merges.txt of a byte-level BPE (BART's layout) trained on `texts` or on sentences of WORDS."""
    from common.formats.tokenizers import train_byte_bpe

    train_byte_bpe(texts or sentences(50), vocab_size).save(folder)
    return folder


def word_piece(folder: Path, vocab_size: int = 160, texts: Sequence[str] = ()) -> Path:
    """vocab.txt of a WordPiece tokenizer (BERT's layout) trained on `texts` or on sentences of WORDS."""
    from common.formats.wordpiece import WordPiece

    WordPiece.train(texts or sentences(200), vocab_size).save(folder)
    return folder


def clip_bpe(folder: Path, context_length: int = 16, texts: Sequence[str] = ()) -> Path:
    """CLIP's tokenizer: trained on `texts`, or 514 tokens without merges (a byte inside and at the end of a word)."""
    from common.formats.tokenizers import ClipTokenizer

    trained = ClipTokenizer.train(texts, 560, context_length=context_length) if texts else None
    (trained or ClipTokenizer.from_merges([], context_length=context_length)).save(folder)
    return folder


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """JSON lines; gzip where the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def dataset(folder: Path, **splits: Mapping[str, Sequence[Any]]) -> Path:
    """{split: {column: values}} as the `datasets` library saves it to disk."""
    import datasets

    made = {name: datasets.Dataset.from_dict(dict(columns)) for name, columns in splits.items()}
    datasets.DatasetDict(made).save_to_disk(folder)
    return folder


def png(value: int, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> bytes:
    """A picture of (width, height) whose first channel is `value` all over; in RGB a ramp tells where a crop is."""
    buffer = io.BytesIO()
    picture = Image.new("L", size, value)
    if mode == "RGB":
        ramp = Image.linear_gradient("L").rotate(90).resize(size)
        picture = Image.merge("RGB", [picture, ramp, ramp])
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def image(path: Path, value: int = 100, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Path:
    """`png` as a file; its bytes stay PNG whatever the name says, as readers must go by content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value, size, mode))
    return path


def image_folder(root: Path, classes: Sequence[str] = ("n01", "n02", "n03"), each: int = 2) -> Path:
    """root/<class>/<i>.png, the red of image i of class c being 60 c + 20 i."""
    for number, name in enumerate(classes):
        for i in range(each):
            image(root / name / f"{i}.png", (60 * number + 20 * i) % 256)
    return root


def wav(path: Path, samples: int = 8000, rate: int = 16000, seed: int = 0) -> Path:
    """Noise, as the suffix says: .wav, .flac."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(samples), rate)
    return path


def video(path: Path, frames: int = 24, height: int = 48, width: int = 64, rate: int = 10) -> Path:
    """MPEG-4 in the container of the suffix. Frame t is grey 20 + 5 t in its left half, black in the right one."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            picture = np.zeros((height, width, 3), np.uint8)
            picture[:, : width // 2] = min(20 + 5 * t, 255)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def shard(path: Path, samples: Iterable[tuple[str, str, bytes]]) -> Path:
    """A tar of (stem, suffix, content): members <stem>.<suffix> in that order, as webdataset reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for stem, suffix, data in samples:
            info = tarfile.TarInfo(f"{stem}.{suffix}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def caption_shards(folder: Path, count: int = 3, each: int = 8) -> str:
    """`count` shards of images with captions, the running number; returns the brace pattern that names them."""
    for number in range(count):
        samples = []
        for i in range(each * number, each * (number + 1)):
            samples += [(f"{i:05d}", "png", png(10 * i % 256)), (f"{i:05d}", "txt", f" {i}\n".encode())]
        shard(folder / f"{number}.tar", samples)
    return f"{folder}/{{0..{count - 1}}}.tar"

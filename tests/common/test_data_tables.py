"""Tables, texts, and the image and audio cells in them."""

import gzip
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from common.errors import EncoreError
from common.formats.tables import decode_audio, decode_image, decode_images, read_table, read_text


def png(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": "drawing.png"}


def test_tables_give_the_named_columns_and_name_a_missing_one(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), path)
    assert read_table(path) == {"text": ["a", "b"], "label": [0, 1]}
    assert read_table(path, ["label"]) == {"label": [0, 1]}
    with pytest.raises(EncoreError, match="no column 'lable'; it has text, label"):
        read_table(path, ["lable"])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(EncoreError, match=r"t\.parquet: not a readable Parquet file"):
        read_table(path)


def test_texts_are_read_plain_and_gzipped_and_a_cut_one_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_bytes("naïve".encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("naïve".encode()))
    assert read_text(tmp_path / "a.txt") == read_text(tmp_path / "a.txt.gz") == "naïve"
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"naive" * 100)[:-12])
    with pytest.raises(EncoreError, match=r"a\.txt\.gz"):
        read_text(tmp_path / "a.txt.gz")


def test_images_keep_their_pixels_and_transparent_ones_become_white():
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert np.array_equal(np.asarray(decode_image(png(pixels))), pixels)
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    decoded = np.asarray(decode_image(png(clear)))
    assert decoded[0, 0].tolist() == [10, 20, 30]
    assert decoded[1, 1].tolist() == [255, 255, 255]
    assert np.asarray(decode_image(png(clear), "L"))[1, 1] == 255


def test_a_stack_needs_one_size_or_a_size_to_resize_to():
    small, large = np.zeros((4, 4, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)
    with pytest.raises(EncoreError, match="differ in size"):
        decode_images([png(small), png(large)])
    stack = decode_images([png(small), png(large)], size=4)
    assert stack.shape == (2, 4, 4, 3)
    assert (stack[1] == 200).all()


def test_a_broken_image_or_sound_is_named():
    with pytest.raises(EncoreError, match=r"image 'x\.png': cannot be decoded"):
        decode_image({"bytes": png(np.zeros((9, 9, 3), np.uint8))["bytes"][:40], "path": "x.png"})
    with pytest.raises(EncoreError, match=r"audio 'x\.wav': cannot be decoded"):
        decode_audio({"bytes": b"RIFF no", "path": "x.wav"})


def test_audio_cells_are_averaged_to_mono():
    stereo = np.stack([np.full(100, 0.5), np.full(100, -0.25)], 1)
    buffer = io.BytesIO()
    soundfile.write(buffer, stereo, 8000, format="FLAC")
    waveform, rate = decode_audio({"bytes": buffer.getvalue(), "path": None})
    assert (waveform.shape, waveform.dtype, rate) == ((100,), np.float32, 8000)
    assert np.allclose(waveform, 0.125, atol=1e-4)

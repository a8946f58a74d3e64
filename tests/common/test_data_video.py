"""Video files: exact frames, facts, and what is said about bad ones."""

import av
import numpy as np
import pytest
import soundfile

from common.errors import EncoreError
from common.formats.video import probe, read_frames
from common.sources import locate
from tests.helpers import requires_mirror


def write(path, frames, codec="ffv1", pix_fmt="bgr0", rate=10):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def lossless(frames, tmp_path_factory):
    return write(tmp_path_factory.mktemp("video") / "clip.mkv", frames)


def test_frames_are_exact_in_the_order_asked_and_may_repeat(lossless, frames):
    read = read_frames(lossless, [7, 0, 11, 7])
    assert read.dtype == np.uint8
    assert np.array_equal(read, frames[[7, 0, 11, 7]])


def test_facts_are_found_with_and_without_a_frame_count_in_the_container(lossless, frames, tmp_path):
    info = probe(lossless)  # matroska states no count
    assert (info.frames, info.fps, info.width, info.height) == (12, 10, 48, 32)
    other = probe(write(tmp_path / "clip.mp4", frames, "mpeg4", "yuv420p", rate=25))
    assert (other.frames, other.fps, other.width, other.height) == (12, 25, 48, 32)


def test_between_key_frames_too_the_right_frame_comes_back(tmp_path):
    grey = np.stack([np.full((32, 32, 3), 20 * i, np.uint8) for i in range(12)])
    path = write(tmp_path / "clip.mp4", grey, "mpeg4", "yuv420p")
    means = read_frames(path, range(12)).mean((1, 2, 3))
    assert np.abs(means - 20 * np.arange(12)).max() < 5


def test_a_video_with_fewer_frames_than_asked_is_an_error_or_repeats_its_last_frame(lossless, frames):
    with pytest.raises(EncoreError, match=r"clip\.mkv: has 12 frames, frame 12 was asked for"):
        read_frames(lossless, [3, 12])
    padded = read_frames(lossless, [3, 12, 40, 11], pad="repeat")
    assert np.array_equal(padded, frames[[3, 11, 11, 11]])
    with pytest.raises(EncoreError, match="non-negative"):
        read_frames(lossless, [-1])


def test_broken_files_are_named(lossless, frames, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    whole = write(tmp_path / "whole.mp4", frames, "mpeg4", "yuv420p").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    soundfile.write(tmp_path / "sound.wav", np.zeros(800), 8000)
    for name in ("missing.mp4", "text.mp4", "cut.mp4"):
        for read in (probe, lambda path: read_frames(path, [0])):
            with pytest.raises(EncoreError, match=rf"{name}: cannot be decoded"):
                read(tmp_path / name)
    with pytest.raises(EncoreError, match=r"sound\.wav: has no video stream"):
        probe(tmp_path / "sound.wav")
    (tmp_path / "short.mkv").write_bytes(lossless.read_bytes()[: lossless.stat().st_size // 2])
    with pytest.raises(EncoreError, match=r"short\.mkv"):
        read_frames(tmp_path / "short.mkv", range(12))


# frames, width, height, frames a second as the files' homes state them (first video stream)
FIXTURES = {
    "mmaction2_test.mp4": (300, 340, 256, 30),
    "mmaction2_test.avi": (164, 320, 240, 25),
    "mmaction2_part_0.mp4": (32, 340, 256, 30),
    "mmaction2_demo.mp4": (280, 340, 256, 28),
    "torchcodec_av1_video.mkv": (125, 640, 360, 25),
    "torchcodec_bt709_full_range.mp4": (30, 1280, 720, 30),
    "torchcodec_h264_10bits.mp4": (30, 200, 200, 30),
    "torchcodec_h265_10bits.mp4": (30, 200, 200, 30),
    "torchcodec_h265_video.mp4": (10, 128, 128, 10),
    "torchcodec_nasa_13013.mp4": (325, 320, 180, 25),
}


@requires_mirror("video_fixtures")
def test_real_files_of_four_codecs_have_the_stated_facts_and_decode():
    paths = locate("video_fixtures")
    for name, (count, width, height, fps) in FIXTURES.items():
        info = probe(paths[name])
        assert (info.frames, info.width, info.height, round(info.fps)) == (count, width, height, fps), name
        clip = read_frames(paths[name], [0, 9, 4])
        assert clip.shape == (3, height, width, 3), name
        assert clip.std() > 5, name

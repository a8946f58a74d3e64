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


def test_a_frame_is_turned_as_its_display_matrix_says(tmp_path):
    bright = np.zeros((32, 48, 3), np.uint8)
    bright[:16, :24] = 200  # upper left
    corners = {}
    for angle in (0, 90, 180, -90):
        with av.open(str(tmp_path / f"{angle}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            stream.set_display_rotation(angle)  # against the clock
            container.mux(stream.encode(av.VideoFrame.from_ndarray(bright, format="rgb24")))
            container.mux(stream.encode())
        (frame,) = read_frames(tmp_path / f"{angle}.mp4", [0])
        info = probe(tmp_path / f"{angle}.mp4")
        assert frame.shape == (info.height, info.width, 3)
        rows, columns = np.nonzero(frame[..., 0] > 100)
        corners[angle] = (frame.shape[:2], bool(rows.mean() > frame.shape[0] / 2), columns.mean() > frame.shape[1] / 2)
    assert corners == {
        0: ((32, 48), False, False),
        90: ((48, 32), True, False),
        180: ((32, 48), True, True),
        -90: ((48, 32), False, True),
    }


def test_frames_that_an_edit_list_hides_are_neither_counted_nor_read(tmp_path):
    picture, noise = np.random.default_rng(0).integers(0, 40, (2, 32, 48, 3), dtype=np.uint8)
    whole = np.stack([picture + np.uint8(8 * t) + (noise if t % 10 == 0 else 0) for t in range(20)])
    with av.open(str(tmp_path / "whole.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"sc_threshold": "1000000000"})
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 32, 48, "yuv420p", 10
        for frame in whole:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with (
        av.open(str(tmp_path / "whole.mp4")) as source,
        av.open(str(tmp_path / "cut.mp4"), "w", options=options) as target,
    ):  # from the middle of a group of pictures: frames 0 to 3 must be there, but are not shown
        copied = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = (round(t - 0.4 / float(packet.time_base)) for t in (packet.pts, packet.dts))
                packet.stream = copied
                target.mux(packet)
    with av.open(str(tmp_path / "cut.mp4")) as container:
        assert container.streams.video[0].frames == 20, "the container's own count holds the hidden ones"
    assert probe(tmp_path / "cut.mp4").frames == 16
    seen = read_frames(tmp_path / "cut.mp4", range(16))
    assert np.array_equal(seen, read_frames(tmp_path / "whole.mp4", range(4, 20)))

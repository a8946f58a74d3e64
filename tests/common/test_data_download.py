"""Downloads from a local server that cuts connections, and archives that try to write elsewhere."""

import gzip
import hashlib
import io
import os
import re
import tarfile
import tempfile
import threading
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import download as downloads
from common import sources
from common.download import download, extract
from common.errors import EncoreError
from common.sources import File, Source

CONTENT = hashlib.sha256(b"encore").digest() * 20_000  # 640 kB
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    """Serves CONTENT. cuts: so many answers break off halfway; ranges: the Range header of every request."""
    state = SimpleNamespace(cuts=0, ranges=[], supports_range=True, status=None, body=CONTENT, length=None)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            if state.status:
                return self.send_error(state.status)
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and state.supports_range else 0
            if start >= len(state.body):
                return self.send_error(416)
            body = state.body[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)) if state.length is None else state.length)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.body) - 1}/{len(state.body)}")
            self.end_headers()
            if state.cuts:
                state.cuts -= 1
                body = body[: len(body) // 2]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    state.url = f"http://127.0.0.1:{httpd.server_port}/file.bin"
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_a_cut_connection_continues_from_the_bytes_that_arrived(server, tmp_path):
    server.cuts = 2
    target = tmp_path / "deep/file.bin"
    assert download(server.url, target, SHA) == target
    assert target.read_bytes() == CONTENT
    first, *later = server.ranges
    second, third = (int(asked.removeprefix("bytes=").removesuffix("-")) for asked in later)
    assert first is None
    for start, sent in ((second, len(CONTENT) // 2), (third, second + (len(CONTENT) - second) // 2)):
        assert sent - downloads.BLOCK < start <= sent  # at most one block of what arrived is fetched again
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_what_a_failed_download_kept_is_used_by_the_next_run(server, tmp_path):
    server.cuts = downloads.ATTEMPTS
    target = tmp_path / "file.bin"
    with pytest.raises(ConnectionError, match=r"failed after 4 attempts .* bytes are kept in .*file\.bin\.part"):
        download(server.url, target, SHA)
    assert not target.exists()
    kept = (tmp_path / "file.bin.part").stat().st_size
    assert kept > len(CONTENT) * 3 // 4
    server.ranges.clear()
    download(server.url, target, SHA)
    assert server.ranges == [f"bytes={kept}-"]
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_is_read_from_the_start_again(server, tmp_path):
    server.cuts, server.supports_range = 1, False
    target = tmp_path / "file.bin"
    download(server.url, target, SHA)
    assert target.read_bytes() == CONTENT


def test_a_complete_part_file_is_accepted_without_fetching_it_again(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "file.bin", SHA)
    assert server.ranges == [f"bytes={len(CONTENT)}-"]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    with pytest.raises(EncoreError, match=f"wrong checksum: expected sha256 {'0' * 64}, got {SHA}"):
        download(server.url, tmp_path / "file.bin", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_file_ends_in_an_error_and_the_next_run_starts_afresh(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"something else")
    with pytest.raises(EncoreError, match="wrong checksum"):
        download(server.url, tmp_path / "file.bin", SHA)
    download(server.url, tmp_path / "file.bin", SHA)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_plain_text_is_compressed_on_arrival_where_the_source_keeps_it_gzipped(server, tmp_path):
    target = download(server.url, tmp_path / "file.txt.gz", SHA)
    assert gzip.decompress(target.read_bytes()) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt.gz"]


def test_a_gzip_from_its_home_is_stored_as_it_is(server, tmp_path):
    server.body = gzip.compress(CONTENT, 1)
    target = download(server.url + ".gz", tmp_path / "file.bin.gz", SHA)
    assert target.read_bytes() == server.body


def test_two_downloads_of_one_file_share_the_work(server, tmp_path):
    target = tmp_path / "file.bin"
    threads = [threading.Thread(target=download, args=(server.url, target, SHA)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.ranges == [None]
    assert target.read_bytes() == CONTENT


def test_a_missing_source_is_downloaded_into_the_data_directory(server, tmp_path, monkeypatch):
    monkeypatch.setenv("ENCORE_DATA", str(tmp_path))
    monkeypatch.delenv("ENCORE_MIRROR", raising=False)
    monkeypatch.delenv("ENCORE_OFFLINE", raising=False)
    toy = Source("toy", "", "", "https://example.org", {"toy/file.bin": File(SHA, server.url)})
    monkeypatch.setitem(sources._by_name(), "toy", toy)
    assert sources.locate("toy") == {"file.bin": tmp_path / "toy/file.bin"}
    sources.locate("toy")
    assert server.ranges == [None]

    (tmp_path / "toy/file.bin").unlink()
    server.status = 404
    with pytest.raises(
        EncoreError, match=r"answered 404(.|\n)*'toy' is missing: toy/file\.bin(.|\n)*\(1\).*\(2\).*\(3\)"
    ):
        sources.locate("toy")
    assert len(server.ranges) == 2  # a 404 is not asked for again


def make_tar(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for info in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = 2 if info.isfile() else 0
            tar.addfile(info, io.BytesIO(b"hi") if info.isfile() else None)
    return path


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        "../evil.txt",
        "a/../../evil.txt",
        "/tmp/evil.txt",
        "C:\\evil.txt",
        "..\\evil.txt",
        link("evil", "/etc/passwd", tarfile.SYMTYPE),
        link("evil", "good.txt", tarfile.LNKTYPE),
        link("evil", "", tarfile.FIFOTYPE),
    ],
    ids=["parent", "inner parent", "absolute", "drive", "backslash", "symlink", "hardlink", "fifo"],
)
def test_a_tar_that_reaches_outside_is_refused_before_anything_is_written(tmp_path, hostile):
    archive = make_tar(tmp_path / "a.tar.gz", "good.txt", hostile)
    with pytest.raises(EncoreError, match=r"a\.tar\.gz: refused: member"):
        extract(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("hostile", ["../evil.txt", "/evil.txt", "symlink"])
def test_a_zip_that_reaches_outside_is_refused(tmp_path, hostile):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("good.txt", "hi")
        info = zipfile.ZipInfo(hostile)
        if hostile == "symlink":
            info.external_attr = 0o120777 << 16
        zipped.writestr(info, "/etc/passwd")
    with pytest.raises(EncoreError, match=r"a\.zip: refused: member"):
        extract(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_good_archives_are_unpacked_and_damaged_ones_leave_nothing(tmp_path):
    archive = make_tar(tmp_path / "a.tar.gz", "good.txt", "deep/er.txt")
    assert (extract(archive, tmp_path / "tar") / "deep/er.txt").read_text() == "hi"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("deep/er.txt", "ho")
    assert (extract(tmp_path / "a.zip", tmp_path / "zip") / "deep/er.txt").read_text() == "ho"
    with pytest.raises(EncoreError, match="exists already"):
        extract(archive, tmp_path / "tar")

    archive.write_bytes(archive.read_bytes()[:-30])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EncoreError, match="cannot be unpacked"):
        extract(archive, tmp_path / "broken")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["symlink", "dangling", "hard", "fifo"])
def test_a_part_that_is_another_file_is_not_written_through(server, kind, tmp_path):
    precious, part = tmp_path / "precious", tmp_path / "file.part"
    if kind != "dangling":
        precious.write_bytes(b"mine")
    if kind == "fifo":
        os.mkfifo(part)
    elif kind == "hard":
        part.hardlink_to(precious)
    else:
        part.symlink_to(precious)
    with pytest.raises(EncoreError, match=r"file\.part: is (a link|no file); delete it"):
        download(server.url, tmp_path / "file", SHA)
    assert precious.read_bytes() == b"mine" if kind != "dangling" else not precious.exists()
    assert not (tmp_path / "file").exists()


def test_compressing_on_arrival_does_not_write_through_a_link(server, tmp_path):
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "a.txt.gz.packed").symlink_to(tmp_path / "precious")
    target = download(server.url, tmp_path / "a.txt.gz", SHA)
    assert gzip.decompress(target.read_bytes()) == CONTENT
    assert (tmp_path / "precious").read_bytes() == b"mine"


@pytest.mark.parametrize("length", ["many", "-5", "1e3", "", "9" * 30])
def test_a_content_length_that_is_no_number_is_one_line(server, length, tmp_path):
    server.length = length
    with pytest.raises(ConnectionError, match="unexpected Content-Length") as error:
        download(server.url, tmp_path / "file", SHA)
    assert "\n" not in str(error.value)
    server.length = None
    assert download(server.url, tmp_path / "file", SHA).read_bytes() == CONTENT


@pytest.mark.parametrize("length", [None, "100"])
def test_a_download_has_a_largest_size(server, length, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "LARGEST", 99 if length else len(CONTENT) - 1)
    server.length = length
    with pytest.raises(EncoreError, match="more than .* bytes"):
        download(server.url, tmp_path / "file", SHA)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("place", [-8, -4])  # its checksum, its length
def test_a_gzipped_tar_with_a_wrong_end_is_not_unpacked(place, tmp_path):
    archive = make_tar(tmp_path / "a.tar.gz", "good.txt")
    content = bytearray(archive.read_bytes())
    content[place] ^= 1
    archive.write_bytes(content)
    with pytest.raises(EncoreError, match=r"a\.tar\.gz: cannot be unpacked"):
        extract(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_an_archive_whose_content_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "LARGEST", 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("zeros", bytes(2000))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("zeros")
        info.size = 2000
        tar.addfile(info, io.BytesIO(bytes(2000)))
    for name in ("a.zip", "a.tar.gz"):
        with pytest.raises(EncoreError, match=f"{name}: more than 1,000 bytes"):
            extract(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@QUICK
@given(data=st.data(), kind=st.sampled_from(["tar", "tar.gz", "tar.xz", "tar.bz2", "zip"]))
def test_any_damage_of_an_archive_is_unpacked_or_refused(data, kind, tmp_path):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    archive = folder / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("deep/er.txt", "ho" * 50)
    else:
        with tarfile.open(archive, f"w:{kind[4:]}") as tar:
            info = tarfile.TarInfo("deep/er.txt")
            info.size = 100
            tar.addfile(info, io.BytesIO(b"ho" * 50))
    content = bytearray(archive.read_bytes())
    for place in data.draw(st.lists(st.integers(0, min(len(content), 600) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    archive.write_bytes(content)
    with suppress(EncoreError):
        extract(archive, folder / "out")

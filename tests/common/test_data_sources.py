"""Named sources: where a file is found, that it is verified, and what is said when it is not there."""

import gzip
import hashlib
import os
import subprocess
import sys

import pytest

from common import sources
from common.errors import EncoreError
from common.sources import File, Source
from tests.helpers import requires_mirror

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def rooms(tmp_path, monkeypatch):
    """Empty data and mirror directories, and a source `toy` of two files that cannot be downloaded."""
    data, mirror = tmp_path / "data", tmp_path / "mirror"
    for folder in (data, mirror):
        (folder / "toy").mkdir(parents=True)
    monkeypatch.setenv("ENCORE_DATA", str(data))
    monkeypatch.setenv("ENCORE_MIRROR", str(mirror))
    monkeypatch.delenv("ENCORE_OFFLINE", raising=False)
    sha = hashlib.sha256(CONTENT).hexdigest()
    toy = Source("toy", "a toy", "CC0", "https://example.org/toy", {"toy/a.bin": File(sha), "toy/b.txt.gz": File(sha)})
    monkeypatch.setitem(sources._by_name(), "toy", toy)
    return data, mirror


def fill(folder, level=9):
    (folder / "toy/a.bin").write_bytes(CONTENT)
    (folder / "toy/b.txt.gz").write_bytes(gzip.compress(CONTENT, level))


def test_the_data_directory_comes_before_the_mirror_and_files_may_be_spread_over_both(rooms):
    data, mirror = rooms
    fill(mirror)
    assert sources.locate("toy") == {"a.bin": mirror / "toy/a.bin", "b.txt.gz": mirror / "toy/b.txt.gz"}
    (data / "toy/a.bin").write_bytes(CONTENT)
    assert sources.locate("toy") == {"a.bin": data / "toy/a.bin", "b.txt.gz": mirror / "toy/b.txt.gz"}


def test_a_gzip_is_verified_by_its_content_whatever_compressed_it(rooms):
    fill(rooms[1], level=1)
    assert sources.locate("toy")["b.txt.gz"].is_file()


@pytest.mark.parametrize("name", ["a.bin", "b.txt.gz"])
def test_a_truncated_mirror_file_is_an_error_that_names_file_expected_and_got(rooms, name):
    _, mirror = rooms
    fill(mirror)
    path = mirror / "toy" / name
    path.write_bytes(path.read_bytes()[:-9])
    got = "unreadable gzip" if name.endswith("gz") else hashlib.sha256(CONTENT[:-9]).hexdigest()
    with pytest.raises(EncoreError) as caught:
        sources.locate("toy")
    for part in (str(path), hashlib.sha256(CONTENT).hexdigest(), got, "delete it"):
        assert part in str(caught.value)


def test_a_wrong_file_in_the_data_directory_is_not_passed_over_for_a_good_one_in_the_mirror(rooms):
    data, mirror = rooms
    fill(mirror)
    (data / "toy/a.bin").write_bytes(CONTENT[::-1])
    with pytest.raises(EncoreError, match="wrong checksum"):
        sources.locate("toy")


def test_a_file_that_changes_after_it_was_verified_is_verified_again(rooms):
    _, mirror = rooms
    fill(mirror)
    sources.locate("toy")
    path = mirror / "toy/a.bin"
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(0, 0))
    with pytest.raises(EncoreError, match="wrong checksum"):
        sources.locate("toy")


def test_the_message_for_a_missing_source_gives_three_ways(rooms, monkeypatch):
    data, mirror = rooms
    (mirror / "toy/a.bin").write_bytes(CONTENT)
    with pytest.raises(EncoreError) as caught:
        sources.locate("toy")
    message = str(caught.value)
    assert "'toy' is missing: toy/b.txt.gz." in message  # and not the file that is there
    assert f"(1) put the files under the data directory, ENCORE_DATA={data}" in message
    assert f"(2) point ENCORE_MIRROR (now {mirror})" in message
    assert "(3) convert it yourself" in message
    assert "https://example.org/toy" in message
    assert sources.whereabouts("toy") == "missing"
    assert not sources.available("toy")

    linked = Source("toy", "", "", "https://example.org/toy", {"toy/a.bin": File("0" * 64, "http://127.0.0.1:9/a.bin")})
    monkeypatch.setitem(sources._by_name(), "toy", linked)
    (mirror / "toy/a.bin").unlink()
    assert sources.whereabouts("toy") == "downloadable"
    monkeypatch.setenv("ENCORE_OFFLINE", "1")
    with pytest.raises(EncoreError, match="unset ENCORE_OFFLINE"):
        sources.locate("toy")


def test_an_unknown_source_lists_the_known_ones():
    with pytest.raises(EncoreError, match=r"'wikitext3'.*wikitext2, sst2"):
        sources.locate("wikitext3")


def test_checksums_tell_sources_apart_and_need_no_file(rooms, monkeypatch):
    assert sources.checksum("generated") == "generated"
    assert sources.checksum(["generated"]) == "generated"
    assert sources.checksum("mnist") != sources.checksum("cifar10")
    assert sources.checksum(["mnist", "cifar10"]) == sources.checksum(["cifar10", "generated", "mnist"])
    before = sources.checksum("toy")
    changed = Source("toy", "", "", "", {"toy/a.bin": File("0" * 64)})
    monkeypatch.setitem(sources._by_name(), "toy", changed)
    assert sources.checksum("toy") != before


def test_catalogue_entries_are_complete():
    for source in sources.all_sources():
        assert source.licence
        assert source.home.startswith("https://")
        assert all(len(file.sha256) == 64 for file in source.files.values())
        names = [relative.rsplit("/")[-1] for relative in source.files]
        assert len(set(names)) == len(names), f"{source.name}: two files of one name"


def test_the_catalogue_imports_nothing_heavy():
    heavy = "{'torch', 'numpy', 'requests', 'rich', 'pyarrow'}"
    code = f"import sys, common.sources; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@requires_mirror("wikitext2")
def test_every_source_of_the_mirror_has_the_recorded_checksums(monkeypatch, tmp_path):
    monkeypatch.setenv("ENCORE_DATA", str(tmp_path))
    for source in sources.all_sources():
        if sources.available(source.name):
            assert len(sources.locate(source.name)) == len(source.files)

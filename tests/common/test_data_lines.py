"""Readers of lines: a byte order mark is no text, and a line feed alone ends a line."""

import gzip
import json
from functools import partial

import pytest

from common.errors import EncoreError
from common.formats.json_shards import read_shard
from common.formats.lines import table_rows, text_lines
from common.formats.tokenizers import ClipTokenizer, clip_tokenizer, load_byte_bpe, train_byte_bpe
from common.interop import load_config
from papers.beats.data import read_classes, read_segments
from papers.clip.zero_shot import read_lines
from papers.pointer_networks.data import ProblemFile
from papers.pre.data import read_splits
from papers.tera.downstream import read_alignments

MARK = b"\xef\xbb\xbf"


def marked(path):
    path.write_bytes(MARK + path.read_bytes())


def test_a_byte_order_mark_changes_nothing_that_any_reader_finds(tmp_path):
    texts = {
        "names.txt": "cat\ndog\n",
        "classes.csv": "index,mid,display_name\n0,/m/a,A\n1,/m/b,B\n",
        "alignments.txt": "a-1 0 1 2\nb-1 3\n",
        "segments.csv": 'a, 0, 10, "/m/a"\nb, 0, 10, "/m/b"\n',
        "config.json": json.dumps({"a": 1}),
        "sets.txt": "0.1 0.2 0.3 0.4 0.9 0.1 output 1 2 3 1\n",
    }
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    readers = {
        "names.txt": read_lines,
        "classes.csv": read_classes,
        "alignments.txt": lambda path: {name: ids.tolist() for name, ids in read_alignments(path).items()},
        "segments.csv": lambda path: [file.name for file in read_segments(path, {"/m/a": 0, "/m/b": 1}, tmp_path)[0]],
        "config.json": lambda path: load_config(path.parent),
        "sets.txt": lambda path: ProblemFile(path, "hull").points[0].tolist(),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        found = readers[name](tmp_path / name)
        marked(tmp_path / name)
        assert readers[name](tmp_path / name) == found, name


def test_split_files_of_pre_may_have_a_mark(tmp_path):
    folder = tmp_path / "fgvc_aircraft"
    (folder / "images").mkdir(parents=True)
    (folder / "variants.txt").write_text("A\u2028B\n747\n", encoding="utf-8-sig")
    for part in ("train", "test"):
        (folder / f"images_variant_{part}.txt").write_text("1 747\n2 A\u2028B\n", encoding="utf-8-sig")
    splits = read_splits(tmp_path, "fgvc_aircraft")
    assert [(item.path.name, item.label) for item in splits.train] == [("1.jpg", 1), ("2.jpg", 0)]


def test_tokenizers_and_shards_may_have_a_mark(tmp_path):
    clip = ClipTokenizer.train(["the cat sat on the mat"] * 3, 530)
    clip.save(tmp_path / "clip")
    wanted = clip.encode("the cat sat")
    for name in ("vocab.json", "merges.txt"):
        marked(tmp_path / "clip" / name)
        assert clip_tokenizer(tmp_path / "clip").encode("the cat sat") == wanted
    (tmp_path / "merges.txt.gz").write_bytes(gzip.compress((tmp_path / "clip/merges.txt").read_bytes()))
    assert clip_tokenizer(tmp_path / "merges.txt.gz").encode("the cat sat") == wanted
    (tmp_path / "shard.json.gz").write_bytes(gzip.compress(MARK + b'{"text": "a"}\n{"text": "b"}\n'))
    assert list(read_shard(tmp_path / "shard.json.gz")) == ["a", "b"]
    bpe = train_byte_bpe(["the cat"], 270)
    bpe.save(tmp_path / "bpe")
    assert load_byte_bpe(tmp_path / "bpe").encode("the") == bpe.encode("the")


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_a_line_feed_alone_ends_a_line(end, tmp_path):
    (tmp_path / "a.txt").write_bytes(f"ho{end}me\r\ncat\n".encode())
    assert read_lines(tmp_path / "a.txt") == list(text_lines(tmp_path / "a.txt")) == [f"ho{end}me", "cat"]
    (tmp_path / "a.csv").write_bytes(f"name,x\nho{end}me,1\n".encode())
    assert table_rows(tmp_path / "a.csv", "name") == [{"name": f"ho{end}me", "x": "1"}]


def test_bad_tables_are_one_line(tmp_path):
    path = tmp_path / "t.csv"
    read = partial(table_rows, path, "a", "b")
    for content, said in (
        (b"", "expected the columns a,b"),
        (b"a,c\n1,2\n", "expected the columns a,b"),
        (b"a,b\n1,2\n3\n", "line 3: a row with too few fields"),
        (b"a,b\n\xff,2\n", r"t\.csv:2: not a readable UTF-8"),
        (b'a,b\n"' + b"x" * 200_000 + b'",2\n', "is no CSV table"),
    ):
        path.write_bytes(content)
        with pytest.raises(EncoreError, match=said):
            read()
    path.unlink()
    with pytest.raises(EncoreError, match=r"t\.csv: cannot be read"):
        read()

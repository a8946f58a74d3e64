"""`encore embed`: every file once, bad ones listed, whatever happens in between."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from importlib import import_module

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import benchmarks.tools.embed as embedding
from benchmarks.tools.embed import embed, errors_file
from common.errors import EncoreError
from tests import exported, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "last.ckpt"
    exported.clip(path)
    return path


@pytest.fixture
def images(tmp_path):
    """Eleven images in three folders, in the order in which they must come out."""
    rng = np.random.default_rng(0)
    names = ["a/0.png", "a/1.JPG", "a/deep/x.png", "b.png", *(f"c/{i}.png" for i in range(7))]
    for name in names:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
    (tmp_path / "images" / "notes.txt").write_text("not an image, and not meant as one")
    return tmp_path / "images", names


def run(model, folder, out, **options):
    return embed("clip", model, folder, "images", out, **{"part_size": 4, "batch_size": 3} | options)


def rows(out):
    table = pq.read_table(out)
    return table["path"].to_pylist(), torch.tensor(table["feature"].to_pylist())


def counted(monkeypatch):
    """The paths that were computed, as they come."""
    seen: list[str] = []
    compute = embedding._compute

    def watched(encoder, folder, inputs, *rest):
        seen.extend(each.path for each in inputs)
        return compute(encoder, folder, inputs, *rest)

    monkeypatch.setattr(embedding, "_compute", watched)
    return seen


def test_every_image_has_the_feature_that_encode_gives(model, images, tmp_path):
    folder, names = images
    out = tmp_path / "features.parquet"
    assert run(model, folder, out) == embedding.Outcome(rows=11)
    paths, features = rows(out)
    assert paths == names
    encoder = embedding.load_encoder("clip", model, None, "images")[0]
    with torch.no_grad():
        for name, feature in zip(names, features):
            torch.testing.assert_close(encoder.encode(encoder.read(folder / name)[None]).pooled[0], feature)
    file = pq.ParquetFile(out)
    assert file.num_row_groups == 3
    assert str(file.schema_arrow.field("feature").type) == "fixed_size_list<element: float>[12]"
    assert json.loads(file.schema_arrow.metadata[b"encore"])["rows"] == 11
    assert sorted(tmp_path.iterdir()) == [out, folder]


def test_a_checkpoint_and_its_export_give_the_same(model, images, tmp_path):
    from benchmarks.tools.export import export

    export("clip", model, tmp_path / "exported")
    run(model, images[0], tmp_path / "a.parquet")
    run(tmp_path / "exported", images[0], tmp_path / "b.parquet")
    assert torch.equal(rows(tmp_path / "a.parquet")[1], rows(tmp_path / "b.parquet")[1])


def test_bad_files_are_left_out_and_listed(model, images, tmp_path, monkeypatch):
    folder, names = images
    whole = (folder / "a/1.JPG").read_bytes()
    (folder / "c/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "c/empty.png").touch()
    (folder / "c/text.png").write_text("<html>")
    (folder / "c/folder.png").mkdir()
    outside = tmp_path / "outside.png"
    outside.write_bytes((folder / "b.png").read_bytes())
    (folder / "c/out.png").symlink_to(outside)
    (folder / "c/gone.png").symlink_to(folder / "nowhere.png")
    (folder / "c/up").symlink_to(folder.parent, target_is_directory=True)
    os.mkfifo(folder / "c/pipe.png")
    (folder / os.fsdecode(b"c/\xff.png")).write_bytes(outside.read_bytes())
    Image.fromarray(np.zeros((60, 60), np.uint8)).save(folder / "c/huge.png")
    monkeypatch.setattr("common.formats.images.MAX_PIXELS", 3000)
    out = tmp_path / "features.parquet"
    outcome = run(model, folder, out)
    listed = {bad["path"]: bad["error"] for bad in map(json.loads, errors_file(out).read_text().splitlines())}
    reasons = {
        "c/cut.jpg": "truncated",
        "c/empty.png": "empty",
        "c/text.png": "cannot identify",
        "c/out.png": "leads out",
        "c/gone.png": "cannot be read",
        "c/up": "link to a folder",
        "c/pipe.png": "no file",
        "c/\\xff.png": "not utf-8",
        "c/huge.png": "too large",
    }
    assert listed.keys() == reasons.keys()
    for path, reason in reasons.items():
        assert reason in listed[path].lower()
        assert str(folder) not in listed[path] or path in ("c/gone.png", "c/text.png")
    assert (outcome.rows, outcome.bad) == (11, 9)
    assert rows(out)[0] == names
    for path in (*listed, os.fsdecode(b"c/\xff.png")):
        (folder / path).unlink(missing_ok=True)
    run(model, folder, out, force=True)
    assert not errors_file(out).exists()


def test_a_feature_that_is_not_finite_is_no_feature(images, tmp_path):
    path = tmp_path / "last.ckpt"
    exported.clip(path)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["model.image.proj.weight"][:] = float("nan")
    torch.save(content, path)
    out = tmp_path / "features.parquet"
    assert run(path, images[0], out) == embedding.Outcome(rows=0, bad=11, first_error="its feature is not finite")
    assert not out.exists()
    assert len(errors_file(out).read_text().splitlines()) == 11


def test_a_stopped_run_goes_on_and_loses_one_part_at_most(model, images, tmp_path, monkeypatch):
    folder, names = images
    run(model, folder, tmp_path / "whole.parquet")
    out, written = tmp_path / "features.parquet", []
    write = embedding._write_whole

    def stopped(file, table):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(file)
        write(file, table)

    monkeypatch.setattr(embedding, "_write_whole", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(model, folder, out)
    assert not out.exists()
    monkeypatch.setattr(embedding, "_write_whole", write)
    seen = counted(monkeypatch)
    assert run(model, folder, out) == embedding.Outcome(rows=11, reused=8)
    assert seen == names[8:]
    assert torch.equal(rows(out)[1], rows(tmp_path / "whole.parquet")[1])
    assert rows(out)[0] == names


def leave_parts(model, folder, out, monkeypatch):
    """All parts are there, the end was not reached."""
    with monkeypatch.context() as patched:
        patched.setattr(embedding, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(model, folder, out)
    return out.with_name(f"{out.name}.parts")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another", "short"])
def test_a_damaged_part_is_computed_again(damage, model, images, tmp_path, monkeypatch):
    folder, names = images
    out = tmp_path / "features.parquet"
    parts = leave_parts(model, folder, out, monkeypatch)
    victim = parts / "part-00001.parquet"
    content = bytearray(victim.read_bytes())
    table = pq.read_table(victim)
    start = content.index(np.float32(table["feature"].to_pylist()[2][5]).tobytes())
    content[start + 2] ^= 0x40
    changes = {"cut": content[: len(content) // 2], "flipped": content, "empty": b""}
    victim.write_bytes(
        changes.get(damage) or (b"" if damage == "empty" else (parts / "part-00000.parquet").read_bytes())
    )
    seen = counted(monkeypatch)
    assert run(model, folder, out).reused == 7
    assert seen == names[4:8]
    assert rows(out)[0] == names
    assert torch.isfinite(rows(out)[1]).all()


def test_another_model_or_a_changed_file_never_mixes_with_earlier_parts(model, images, tmp_path, monkeypatch):
    folder, names = images
    out = tmp_path / "features.parquet"
    leave_parts(model, folder, out, monkeypatch)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(folder / names[5])
    with monkeypatch.context() as patched:
        seen = counted(patched)
        run(model, folder, out)
        assert seen == names[4:8]
    out.unlink()
    leave_parts(model, folder, out, monkeypatch)
    torch.manual_seed(1)
    exported.clip(tmp_path / "other.ckpt")
    run(tmp_path / "other.ckpt", folder, out)
    run(tmp_path / "other.ckpt", folder, tmp_path / "alone.parquet")
    assert torch.equal(rows(out)[1], rows(tmp_path / "alone.parquet")[1])


def test_what_is_there_stays_without_force(model, images, tmp_path):
    out = tmp_path / "features.parquet"
    out.write_text("mine")
    with pytest.raises(EncoreError, match="--force"):
        run(model, images[0], out)
    assert out.read_text() == "mine"
    assert run(model, images[0], out, force=True).rows == 11
    for message, folder, kind, slug in (
        ("no such folder", tmp_path / "nothing", "images", "clip"),
        ("holds no audio", images[0], "audio", "beats"),
        ("clip embeds no videos; it reads images", images[0], "videos", "clip"),
        ("bart embeds no images; it reads no files", images[0], "images", "bart"),
        ("has no encoder to export; these have: .*clip", images[0], "images", "toy"),
    ):
        (images[0] / "v.mp4").touch()
        with pytest.raises(EncoreError, match=message):
            embed(slug, model, folder, kind, tmp_path / "new.parquet")
    with pytest.raises(EncoreError, match="--device nowhere"):
        run(model, images[0], tmp_path / "new.parquet", device="nowhere")
    assert not (tmp_path / "new.parquet").exists()


def test_other_files_of_the_same_stem_stay(model, images, tmp_path):
    folder, names = images
    for name in ("f.errors.jsonl", "f.csv"):
        (tmp_path / name).write_text("mine")
    assert run(model, folder, tmp_path / "f.parquet").rows == len(names)
    assert [(tmp_path / name).read_text() for name in ("f.errors.jsonl", "f.csv")] == ["mine", "mine"]
    for foreign in ("g.parquet.errors.jsonl", "g.parquet.parts/thesis.tex"):
        path = tmp_path / foreign
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        with pytest.raises(EncoreError, match=f"{path.name}: is no"):
            run(model, folder, tmp_path / "g.parquet", force=True)
        assert path.read_text() == "mine"
        path.unlink()


def test_two_runs_on_one_output_do_not_mix(model, images, tmp_path):
    folder, _ = images
    out = tmp_path / "features.parquet"
    parts = out.with_name("features.parquet.parts")
    parts.mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, parts / "lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        with pytest.raises(EncoreError, match=r"features\.parquet: another encore embed is writing it"):
            run(model, folder, out)
        assert not out.exists()
        other.communicate("\n")
    assert run(model, folder, out).rows
    assert not parts.exists()


def test_no_more_than_a_batch_of_decoded_images_is_alive(model, images, tmp_path, monkeypatch):
    from papers.clip.export import CLIPEncoder

    alive: list[int] = []
    sizes: list[int] = []
    read, encode = CLIPEncoder.read, CLIPEncoder.encode
    monkeypatch.setattr(CLIPEncoder, "read", lambda self, path: (alive.append(1), read(self, path))[1])
    monkeypatch.setattr(CLIPEncoder, "encode", lambda self, batch: (sizes.append(len(alive)), encode(self, batch))[1])
    run(model, images[0], tmp_path / "features.parquet")
    assert sizes == [3, 4, 7, 8, 11]  # parts of 4, batches of 3: an image is decoded just before it is needed


@pytest.mark.parametrize("paper", ["beats", "tera"])
def test_sounds_are_embedded_as_if_alone_and_what_is_no_clip_is_listed(paper, tmp_path):
    import soundfile

    tiny.checkpoint(tmp_path / "last.ckpt", import_module(f"papers.{paper}.fixtures").tiny()[0])
    sounds = tmp_path / "sounds"
    for name, samples in (("a.wav", 16000), ("b.flac", 9000), ("short.wav", 150)):
        tiny.wav(sounds / name, samples)
    tiny.wav(sounds / "odd.wav", 44101, rate=44101)
    tiny.wav(sounds / "one_hertz.wav", 5000, rate=1)
    for name, samples, rate in (("silent.wav", 16000, 16000), ("hour.wav", 3600 * 1000, 1000)):
        soundfile.write(sounds / name, np.zeros(samples, "int16"), rate)
    out = tmp_path / "features.parquet"
    outcome = embed(paper, tmp_path / "last.ckpt", sounds, "audio", out)
    assert (outcome.rows, outcome.bad) == (4, 3)
    listed = errors_file(out).read_text()
    for reason in ("lasts 3600 s, more than 600 s", "a sampling rate of 1 Hz", "150 samples at 16"):
        assert reason in listed
    assert rows(out)[1].abs().max() < 1e3  # silence too
    encoder = embedding.load_encoder(paper, tmp_path / "last.ckpt", None, "audio")[0]
    with torch.no_grad():
        alone = [encoder.encode(encoder.collate([encoder.read(sounds / name)])) for name in rows(out)[0]]
    torch.testing.assert_close(rows(out)[1], torch.cat([each.pooled for each in alone]), atol=1e-5, rtol=1e-4)


def test_a_run_killed_while_it_writes_a_part_goes_on(model, images, tmp_path, monkeypatch):
    folder, names = images
    out = tmp_path / "features.parquet"
    processes = multiprocessing.get_context("fork")
    reached = processes.Event()
    write = embedding._write_whole

    def hanging(file, table):
        if file.name == "part-00001.parquet":
            file.with_name(f".{file.name}.1").write_bytes(b"half a part")
            reached.set()
            time.sleep(60)
        write(file, table)

    def child():
        torch.set_num_threads(1)  # the pool of OpenMP does not survive a fork
        monkeypatch.setattr(embedding, "_write_whole", hanging)
        run(model, folder, out)

    process = processes.Process(target=child)
    process.start()
    assert reached.wait(60)
    process.kill()
    process.join()
    assert not out.exists()
    seen = counted(monkeypatch)
    assert run(model, folder, out) == embedding.Outcome(rows=11, reused=4)
    assert seen == names[4:]
    assert rows(out)[0] == names
    assert sorted(tmp_path.iterdir()) == [out, folder]


def test_the_command_warns_of_some_bad_files_and_fails_when_all_are(model, images, tmp_path):
    from benchmarks.cli import app

    def encore(folder, *more):
        command = ["embed", "clip", "--checkpoint", model, "--images", folder, "--out", tmp_path / "f.parquet", *more]
        return CliRunner().invoke(app, list(map(str, command)))

    (images[0] / "bad.png").write_text("no image")
    done = encore(images[0])
    assert done.exit_code == 0
    assert f"{tmp_path / 'f.parquet'}: 11 images" in done.output
    assert f"warning: 1 images could not be read, see {tmp_path / 'f.parquet.errors.jsonl'}" in done.output
    (tmp_path / "bad").mkdir()
    (images[0] / "bad.png").rename(tmp_path / "bad" / "bad.png")
    done = encore(tmp_path / "bad", "--force")
    assert done.exit_code == 1
    assert "all of them, so nothing is written: cannot be decoded" in done.output
    assert len(rows(tmp_path / "f.parquet")[0]) == 11
    assert isinstance(encore(images[0], "--audio", "x").exception, EncoreError)

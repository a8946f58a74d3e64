"""`encore embed`: one feature vector for every file of a folder, as Parquet.

The sorted files are cut into parts of PART rows. Each part is a Parquet file of its own beside the output, written
whole or not at all, and holds a key: the hash of the model and of its files' names, sizes and times. A part that cannot
be read to the end or has another key is computed again, so a run goes on where an earlier one was killed and never
mixes two models. At the end the parts are streamed into one file. Nothing that grows with the folder is kept in memory
but the names in one folder.
"""

import fcntl
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.paper.files import digest
from benchmarks.tools.export import encoder_of, paper_encoder
from common.checksums import file_sha256
from common.errors import EncoreError
from common.files import replacing
from common.interop.checkpoint import load_checkpoint
from common.interop.encoder import Encoder

FORMAT = 1
PART = 1024
SUFFIXES = {
    "images": (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    "audio": (".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".wav"),
    "videos": (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"),
}
META = b"encore"
OWN = re.compile(r"\.?part-\d+\.parquet(\.\d+(\.tmp)?)?|lock|joined\.parquet|errors\.jsonl")  # files among the parts


@dataclass(frozen=True)
class Input:
    """path: relative to the folder, with "/". stamp: size and time of change. problem: why it is not read, or ""."""

    path: str
    stamp: str
    problem: str = ""


@dataclass
class Outcome:
    """What a run did. reused: rows taken from parts of an earlier run."""

    rows: int = 0
    bad: int = 0
    reused: int = 0
    first_error: str = ""


def embed(
    slug: str,
    source: Path,
    folder: Path,
    kind: str,
    out: Path,
    *,
    config: Path | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    force: bool = False,
    part_size: int = PART,
) -> Outcome:
    """Write {path, feature} of every file of `kind` below `folder` to `out`, and the bad ones to errors_file(out).

    source: a training checkpoint, or a directory that `encore export` wrote or the public hub's. EncoreError on bad
    input; bad files are counted, listed, and left out.
    """
    if not folder.is_dir():
        raise EncoreError(f"{folder}: no such folder of {kind}")
    if out.is_dir() or (out.exists() and not force):
        raise EncoreError(f"{out}: is there already; --force replaces it" if out.is_file() else f"{out}: is a folder")
    _refuse_foreign(out)
    if not (total := sum(1 for _ in walk(folder, kind))):
        raise EncoreError(f"{folder}: holds no {kind} ({' '.join(sorted(SUFFIXES[kind]))})")
    encoder, model_key = load_encoder(slug, source, config, kind)
    try:
        encoder.to(device)
    except (RuntimeError, AssertionError) as error:
        raise EncoreError(f"--device {device}: {str(error).splitlines()[0]}") from error
    parts = out.with_name(f"{out.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    outcome, numbers = Outcome(), 0
    with _alone(parts, out), _bar(total) as advance:
        inputs = walk(folder, kind)
        while chosen := list(islice(inputs, part_size)):
            file = parts / f"part-{numbers:05d}.parquet"
            key = digest([FORMAT, model_key, kind, [[i.path, i.stamp, i.problem] for i in chosen]])
            table = read_part(file, key, len(chosen))
            if table is None:
                table = _compute(encoder, folder, chosen, key, batch_size, device, advance)
                _write_whole(file, table)
            else:
                outcome.reused += table.num_rows
                advance(len(chosen))
            bad = _about(table)["bad"]
            outcome.rows, outcome.bad, numbers = outcome.rows + table.num_rows, outcome.bad + len(bad), numbers + 1
            outcome.first_error = outcome.first_error or (bad[0]["error"] if bad else "")
        _join(parts, numbers, out, {"paper": slug, "model": model_key, "rows": outcome.rows, "bad": outcome.bad})
        shutil.rmtree(parts)
    return outcome


def _refuse_foreign(out: Path) -> None:
    """EncoreError when something that no run of ours wrote stands where parts or the list of bad files go."""
    parts, listed = out.with_name(f"{out.name}.parts"), errors_file(out)
    inside = [file for file in parts.iterdir() if not OWN.fullmatch(file.name)] if parts.is_dir() else []
    if inside or (parts.exists() and not parts.is_dir()):
        raise EncoreError(f"{inside[0] if inside else parts}: is not ours and in the way; move it, or change --out")
    try:
        with listed.open(encoding="utf-8") as file:
            ours = all(json.loads(line).keys() == {"path", "error"} for line in islice(file, 10))
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise EncoreError(f"{listed}: is no list of bad files of ours; move it, or change --out")


def errors_file(out: Path) -> Path:
    """Where the bad files of an output are listed, a JSON object {path, error} a line."""
    return out.with_name(f"{out.name}.errors.jsonl")


def load_encoder(slug: str, source: Path, config: Path | None, kind: str) -> tuple[Encoder, str]:
    """The encoder of a checkpoint or directory, and a hash of its weights and sizes."""
    reader = paper_encoder(slug)
    if reader.kind != kind:
        reads = f"it reads {reader.kind}" if reader.kind else "it reads no files: call its encode from Python"
        raise EncoreError(f"{slug} embeds no {kind}; {reads}")
    if source.is_dir():
        files = [file for file in sorted(source.iterdir()) if file.suffix in (".json", ".safetensors", ".bin")]
        return Encoder.from_directory(source, slug), digest([[file.name, file_sha256(file)] for file in files])
    checkpoint = load_checkpoint(source, config)
    return encoder_of(slug, checkpoint), digest([checkpoint.sha256, checkpoint.arguments])


def walk(folder: Path, kind: str) -> Iterator[Input]:
    """Files of a kind below `folder`, in a fixed order. Links that lead out of it, and what is no file, are marked."""
    root = folder.resolve()

    def below(directory: Path) -> Iterator[Input]:
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError as error:
            yield Input(directory.relative_to(root).as_posix(), "", f"cannot be listed ({error.strerror})")
            return
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from below(path)
            elif path.suffix.lower() in SUFFIXES[kind]:
                yield _input(path, root)
            elif entry.is_symlink() and entry.is_dir():
                yield Input(path.relative_to(root).as_posix(), "", "is a link to a folder; links are not followed")

    yield from below(root)


def _input(path: Path, root: Path) -> Input:
    name = path.relative_to(root).as_posix()
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            return Input(name, "", "is a link that leads out of the folder")
        facts = path.stat()
        name.encode()
    except UnicodeEncodeError:
        return Input(os.fsencode(name).decode(errors="backslashreplace"), "", "has a name that is not UTF-8")
    except (OSError, RuntimeError) as error:
        return Input(name, "", f"cannot be read ({error})")
    problem = "" if stat.S_ISREG(facts.st_mode) else "is no file"
    problem = problem or ("" if facts.st_size else "is empty")
    return Input(name, f"{facts.st_size} {facts.st_mtime_ns}", problem)


@contextmanager
def _alone(parts: Path, out: Path) -> Iterator[None]:
    """Holds a lock in the folder of parts, which ends with the process. EncoreError when another process holds it."""
    with (parts / "lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EncoreError(f"{out}: another encore embed is writing it; wait for it, or change --out") from error
        yield


@torch.inference_mode()
def _compute(
    encoder: Encoder, folder: Path, inputs: Sequence[Input], key: str, batch_size: int, device: str, advance: Any
) -> pa.Table:
    """The rows of one part; never more than batch_size decoded files are in memory."""
    bad: list[dict[str, str]] = []
    paths: list[str] = []
    features: list[torch.Tensor] = []
    for start in range(0, len(inputs), batch_size):
        chosen, items = [], []
        for each in inputs[start : start + batch_size]:
            try:
                if each.problem:
                    raise EncoreError(each.problem)
                items.append(encoder.read(folder / each.path))
                chosen.append(each.path)
            except Exception as error:  # decoders raise what they like on broken files
                reason = " ".join(str(error).removeprefix(f"{folder / each.path}: ").split())
                bad.append({"path": each.path, "error": reason or type(error).__name__})
        if items:
            pooled = encoder.encode(_moved(encoder.collate(items), device)).pooled.float().cpu()
            for path, feature in zip(chosen, pooled):
                if bool(feature.isfinite().all()):
                    paths.append(path)
                    features.append(feature)
                else:
                    bad.append({"path": path, "error": "its feature is not finite"})
        advance(min(batch_size, len(inputs) - start))
    width = len(features[0]) if features else 0
    flat = torch.stack(features).flatten().numpy() if features else torch.zeros(0).numpy()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), max(width, 1))
    about = json.dumps({"key": key, "bad": bad}).encode()
    return pa.table({"path": pa.array(paths, pa.string()), "feature": vectors}, metadata={META: about})


def read_part(file: Path, key: str, inputs: int) -> pa.Table | None:
    """A part of an earlier run, when it is whole and of this key and accounts for all its inputs; else None."""
    try:
        table = pq.read_table(file, page_checksum_verification=True, memory_map=False)
        about = _about(table)
        whole = about["key"] == key and table.num_rows + len(about["bad"]) == inputs
        return table if whole else None
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None


def _about(table: pa.Table) -> dict[str, Any]:
    return json.loads((table.schema.metadata or {})[META])


def _moved(batch: Any, device: str) -> Any:
    return {k: v.to(device) for k, v in batch.items()} if isinstance(batch, dict) else batch.to(device)


def _write_whole(file: Path, table: pa.Table) -> None:
    with replacing(file) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


def _join(parts: Path, count: int, out: Path, about: dict[str, Any]) -> None:
    """The parts, one row group each, and the list of bad files. No rows at all: no output."""
    temporary, errors, writer = parts / "joined.parquet", parts / "errors.jsonl", None
    with errors.open("w", encoding="utf-8") as listed:
        for number in range(count):
            table = pq.read_table(parts / f"part-{number:05d}.parquet", page_checksum_verification=True)
            listed.writelines(json.dumps(bad) + "\n" for bad in _about(table)["bad"])
            if not table.num_rows:
                continue
            table = table.replace_schema_metadata({META: json.dumps(about).encode()})
            writer = writer or pq.ParquetWriter(temporary, table.schema, write_page_checksum=True)
            writer.write_table(table)
    if writer is not None:
        writer.close()
    if about["bad"]:
        with replacing(errors_file(out)) as target:
            os.replace(errors, target)
    else:
        errors_file(out).unlink(missing_ok=True)
    if writer is not None:
        with replacing(out) as target:
            os.replace(temporary, target)


class _bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("embed"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self.task = self.progress.add_task("embed", total=total)

    def __enter__(self) -> Any:
        self.progress.start()
        return lambda count: self.progress.advance(self.task, count)

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

"""`encore export`: a checkpoint becomes a directory in the public hub's format, with a model card."""

import inspect
import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import torch
import yaml

from benchmarks.paper import catalog, paths
from benchmarks.paper.schema import Paper
from benchmarks.run.provenance import commit, versions
from common.errors import EncoreError
from common.interop.checkpoint import Checkpoint, load_checkpoint
from common.interop.encoder import BLOCK, Encoder, encoder_class, mark
from common.interop.weights import load_config
from common.sources import GENERATED, all_sources

WRITTEN = ("config.json", "model.safetensors", "README.md")  # by an export that does not list its files
STARTS = ("weights", "checkpoint", "start", "student", "clip_weights")  # arguments that name weights to start from


def export(slug: str, checkpoint: Path, out: Path, config: Path | None = None, force: bool = False) -> Path:
    """Write the model of a training checkpoint to the directory `out`, whole or not at all.

    EncoreError when the paper exports nothing, the checkpoint is missing, damaged or another model's, or `out` holds
    something; with force an earlier export there is replaced.
    """
    paper = catalog.load_one(slug)
    refuse_occupied(out, force)
    if checkpoint.is_dir():
        raise EncoreError(
            f"{checkpoint}: is a folder, and export takes the checkpoint of a run; what is in the hub's format is read "
            f'by common.interop.encoder.Encoder.from_directory("{checkpoint}", paper="{slug}")'
        )
    found = load_checkpoint(checkpoint, config)
    encoder = encoder_of(slug, found)
    temporary = out.absolute().with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        encoder.to_hub(temporary)
        written = sorted({"README.md", *(file.name for file in temporary.iterdir())})
        origin = {"module": found.module, "steps": found.steps, "checkpoint_sha256": found.sha256}
        mark(temporary, slug, {**origin, "files": written})
        (temporary / "README.md").write_text(
            model_card(paper, found, encoder, load_config(temporary)), encoding="utf-8"
        )
        _check_same(encoder, Encoder.from_directory(temporary), out)
        _put(temporary, out.absolute())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def exporting() -> list[str]:
    """Slugs of the papers whose encoders can be exported."""
    return sorted(file.parent.name for file in (paths.root() / "papers").glob("*/export.py"))


def paper_encoder(slug: str) -> type[Encoder]:
    """The encoder class of a paper. EncoreError that names the papers that have one."""
    paths.make_importable()
    if slug not in exporting():
        raise EncoreError(f"{slug} has no encoder to export; these have: {', '.join(exporting())}")
    return encoder_class(slug)


def encoder_of(slug: str, checkpoint: Checkpoint) -> Encoder:
    """The encoder in a training checkpoint, in eval mode. EncoreError when it is one of another paper."""
    reader = paper_encoder(slug)
    other = checkpoint.module.split(".")[1] if checkpoint.module.startswith("papers.") else slug
    if other != slug:
        raise EncoreError(f"{checkpoint.path}: is a checkpoint of {other}, not of {slug}; name that paper")
    try:
        return reader.from_checkpoint(checkpoint).eval()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise EncoreError(f"{checkpoint.path}: is no checkpoint of {slug} ({error!r:.200})") from error


def refuse_occupied(out: Path, force: bool) -> None:
    """EncoreError unless `out` is free: not there, an empty folder, or with force an earlier export."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise EncoreError(f"{out}: is there and no folder; choose another --out")
    if not any(out.iterdir()):
        return
    ours = (out / "config.json").is_file() and BLOCK in load_config(out)
    if not ours:
        raise EncoreError(f"{out}: holds something else than an export; choose another --out")
    if not force:
        raise EncoreError(f"{out}: holds an export already; --force replaces it")
    block = load_config(out)[BLOCK]
    written = block.get("files") if isinstance(block, dict) else None
    foreign = sorted({file.name for file in out.iterdir()} - set(written if isinstance(written, list) else WRITTEN))
    if foreign:
        raise EncoreError(f"{out / foreign[0]}: is not of the export that --force would replace; move it away first")


def model_card(paper: Paper, checkpoint: Checkpoint, encoder: Encoder, config: dict[str, Any]) -> str:
    """README.md of an exported directory: what the model is, where it came from, which licences apply."""
    run = checkpoint.config
    named = {source.name: source for source in all_sources()}
    used = [name for name in _strings(run.get("data")) if name in named]
    experiments = [name for e in paper.experiments for name in e.sources if name != GENERATED]
    template = files("benchmarks.site").joinpath("templates/card.jinja").read_text(encoding="utf-8")
    return (
        jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            paper=paper,
            checkpoint=checkpoint,
            interface=inspect.cleandoc(type(encoder).__doc__ or ""),
            parameters=sum(p.numel() for p in encoder.parameters()),
            hub_class=(config.get("architectures") or [""])[0],
            seed=run.get("seed_everything"),
            data=(run.get("data") or {}).get("class_path"),
            used=[named[name] for name in dict.fromkeys(used)],
            experiments=[named[name] for name in dict.fromkeys(experiments) if name in named],
            started_from={
                k: Path(v).name for k, v in checkpoint.arguments.items() if k in STARTS and isinstance(v, str)
            },
            config=yaml.safe_dump(
                _without_folders({k: run[k] for k in ("model", "data") if k in run}), sort_keys=False
            ),
            commit=commit(),
            versions=versions(),
        )
    )


def _strings(tree: Any) -> list[str]:
    if isinstance(tree, dict | list):
        return [text for part in (tree.values() if isinstance(tree, dict) else tree) for text in _strings(part)]
    return [tree] if isinstance(tree, str) else []


def _without_folders(tree: Any) -> Any:
    """The same with absolute paths cut to their last part: folders of the machine it ran on tell a reader nothing."""
    if isinstance(tree, dict):
        return {key: _without_folders(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_folders(value) for value in tree]
    return Path(tree).name if isinstance(tree, str) and Path(tree).is_absolute() else tree


def _check_same(written: Encoder, read: Encoder, out: Path) -> None:
    """Every tensor comes back as it was, also those that are computed, such as tables of positions."""
    ours, theirs = (dict([*e.named_parameters(), *e.named_buffers()]) for e in (written, read))
    differ = [name for name in ours if name not in theirs or not torch.equal(ours[name].cpu(), theirs[name])]
    if differ or type(written.model) is not type(read.model):
        what = ", ".join(differ[:3]) or type(written.model).__name__
        raise EncoreError(f"{out}: the hub's format cannot hold this model ({what} would be lost); nothing is written")


def _put(temporary: Path, out: Path) -> None:
    """Rename into place; an earlier export goes only when the new one can take its place."""
    old = temporary.with_suffix(".old")
    if out.exists() and any(out.iterdir()):
        os.rename(out, old)
        try:
            os.rename(temporary, out)
        except OSError:
            os.rename(old, out)
            raise
        shutil.rmtree(old)
    else:
        os.rename(temporary, out)

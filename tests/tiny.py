"""The makers that tests share: tiny files (common/formats/tiny.py), tiny models of other libraries, quiet trainers.

from tests import tiny
tiny.wav(tmp_path / "a.wav"); tiny.randomise(model); tiny.quiet(3).fit(module, data); tiny.close(a, b)
"""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from common.formats.tiny import (  # noqa: F401
    WORDS,
    byte_bpe,
    caption_shards,
    clip_bpe,
    dataset,
    image,
    image_folder,
    lines,
    png,
    sentence,
    sentences,
    shard,
    video,
    wav,
    word_piece,
)


def randomise(model: nn.Module, std: float = 0.2, seed: int = 0) -> Any:
    """The model with noise on every weight and buffer statistic, in evaluation mode.

    At their initial zeros and ones biases, gains and running statistics would hide a dropped or swapped tensor.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3, generator=generator)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def hub(name: str, folder: Path | None = None, std: float = 0.2, **sizes: Any) -> Any:
    """The transformers class of that name with random weights at these sizes, saved to `folder` where one is given.

    The sizes are those of its configuration class: hub("BertModel", path, vocab_size=80, hidden_size=32, ...).
    """
    import transformers

    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = randomise(kind(kind.config_class(**sizes)), std)
    if folder is not None:
        model.save_pretrained(folder)
    return model


def ids(*lengths: int, vocab: int = 60, first: int = 0, last: int = 2, pad: int = 1, width: int = 0) -> Tensor:
    """(B, width or longest + 2): `first`, that many random pieces from 4 on, `last`, then padding."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.full((len(lengths), max(width, *(length + 2 for length in lengths))), pad)
    for row, length in zip(rows, lengths):
        row[0], row[length + 1] = first, last
        row[1 : length + 1] = torch.randint(4, vocab, (length,), generator=generator)
    return rows


def images(count: int = 3, size: int = 16, channels: int = 3) -> Tensor:
    """(count, channels, size, size) of noise, the same every time."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(2))


def close(ours: Any, theirs: Any, atol: float = 1e-5) -> None:
    """Equal up to an absolute `atol`."""
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def same_state(ours: nn.Module, theirs: nn.Module) -> None:
    """Bit for bit the same weights and buffers under the same names."""
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values()):
        assert torch.equal(a, b), name


def silent(module: L.LightningModule) -> Any:
    """The module with `log` and `log_dict` doing nothing: its steps can be called without a trainer."""
    module.log = module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return module


def quiet(steps: int, **options: Any) -> L.Trainer:
    """A trainer on one CPU that writes and prints nothing."""
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    fixed: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "max_epochs": -1}
    return L.Trainer(max_steps=steps, **(off | fixed | options))


def train(config: Path, overrides: Mapping[str, Any], folder: Path) -> Any:
    """Run a config as its command does, dotted keys changed; the CLI with its model, datamodule and trainer."""
    from benchmarks.paper.recipe import started
    from common.training.cli import run

    given = {"trainer.default_root_dir": folder, **overrides}
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    options = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in plain.items()]
    return run([*started(config), *options])


def logged(folder: Path, name: str = "train/loss") -> list[float]:
    """What a run logged under that name in its metrics.csv, in order."""
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


class Kill(Callback):
    """Ends training as a kill would, after `step` optimizer steps: nothing of the run's end is written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


class Killed(Exception):
    """What Kill raises."""


def _parsed(spec: Mapping[str, Any]) -> tuple[Any, Any]:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningModule, "model")
    return parser, parser.parse_object({"model": dict(spec)})


def built(spec: Mapping[str, Any]) -> L.LightningModule:
    """The module that {class_path, init_args} describes, with the types its constructor asks for."""
    parser, parsed = _parsed(spec)
    return parser.instantiate_classes(parsed).model


def checkpoint(path: Path, spec: Mapping[str, Any]) -> L.LightningModule:
    """What a train script leaves of the module that `spec` describes, its weights random; the module."""
    parser, parsed = _parsed(spec)
    module = randomise(parser.instantiate_classes(parsed).model)
    data = {"class_path": "papers.toy.data.Toy", "init_args": {"source": "wikitext2", "folder": "/somewhere/of/mine"}}
    config = yaml.safe_load(parser.dump(parsed, skip_none=False)) | {"seed_everything": 11, "data": data}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"epoch": 0, "global_step": 3, "state_dict": module.state_dict()}
    torch.save(content | {"encore": {"config": yaml.safe_dump(config)}}, path)
    return module


class Harmful:
    """A pickle of it leaves the file `harmed` in the working directory when it is loaded unsafely."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (Path("harmed"),)

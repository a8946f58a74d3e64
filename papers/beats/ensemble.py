"""Ensembles (Table 3): the mean of several fine-tuned models' class probabilities, and its metric on held-out clips.

    python -m papers.beats.ensemble --config CONFIG A.ckpt B.ckpt ... [--device cuda] [--data.init_args.root FOLDER]

CONFIG is the configuration of the fine-tuning; of it, only the section `data` counts, and changes to it come last. Its
test set is read where the data module has one, else its validation set. Prints macro mAP for multi-label models
(trained with BCE), else accuracy.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision

from common.errors import EncoreError
from common.interop import check_and_load
from common.interop.checkpoint import load_checkpoint
from papers.beats.model import AudioClassifier, Encoder
from papers.beats.module import batch_padding

MODULES = ("papers.beats.data", "papers.beats.protocols")  # where a config may take its data module from


def load_classifier(path: str | Path) -> tuple[AudioClassifier, bool]:
    """The model of a FineTuneModule checkpoint in eval mode, and whether it is multi-label (trained with BCE)."""
    checkpoint = load_checkpoint(path)
    if "num_classes" not in checkpoint.arguments:
        raise EncoreError(f"{path}: holds no classifier; give the last.ckpt of a fine-tuning")
    model = AudioClassifier(Encoder(**(checkpoint.argument("encoder") or {})), checkpoint.argument("num_classes"))
    check_and_load(model, checkpoint.part("model."), path)
    return model.eval(), checkpoint.argument("objective") == "bce"


@torch.inference_mode()
def predict(
    model: AudioClassifier, loader: DataLoader, *, multilabel: bool, device: str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch by batch: (B, C) probabilities, a sigmoid a class or one softmax, and the labels, (B,) or (B, C)."""
    model = model.to(device)
    for batch in loader:
        moved = {name: value.to(device) for name, value in batch.items()}
        logits = model(moved["spectrogram"], batch_padding(moved, model.encoder.patch_size)).float()
        yield (logits.sigmoid() if multilabel else logits.softmax(dim=-1)).cpu(), batch["label"]


def average(paths: Sequence[str | Path], loader: DataLoader, device: str = "cpu") -> tuple[Tensor, Tensor, bool]:
    """Mean over the checkpoints of their probabilities, (N, C), the labels, and whether they are multi-label.

    The loader must keep its order. One model at a time is in memory. EncoreError when there is no checkpoint, or two
    that differ in their classes or objective.
    """
    if not paths:
        raise EncoreError("an ensemble needs at least one checkpoint; give the last.ckpt of each fine-tuning")
    total, labels, first = torch.zeros(()), torch.zeros(()), None
    for path in paths:
        model, multilabel = load_classifier(path)
        kind = (model.head.out_features, multilabel)
        first = first or kind
        if kind != first:
            raise EncoreError(
                f"{path}: {_described(*kind)}, but {paths[0]} {_described(*first)}; members must share their classes"
            )
        probabilities, truths = zip(*predict(model, loader, multilabel=multilabel, device=device))
        total, labels = total + torch.cat(probabilities), torch.cat(truths)
    assert first is not None
    return total / len(paths), labels, first[1]


def _described(num_classes: int, multilabel: bool) -> str:
    return f"has {num_classes} {'multi-label' if multilabel else 'exclusive'} classes"


def score(probabilities: Tensor, labels: Tensor, multilabel: bool) -> tuple[str, float]:
    """("mAP", macro) of (N, C) labels or ("accuracy", share) of (N,) labels. EncoreError when the labels do not fit."""
    num_classes = probabilities.shape[1]
    fits = labels.shape == probabilities.shape if multilabel else labels.dim() == 1 and labels.max() < num_classes
    if not fits:
        raise EncoreError(
            f"the checkpoints' {num_classes} {'multi-label' if multilabel else 'exclusive'} classes do not fit the "
            f"data's labels of shape {tuple(labels.shape)}; give the configuration that they were trained with"
        )
    if multilabel:
        metric: Any = MultilabelAveragePrecision(num_classes, thresholds=None)
        return "mAP", float(metric(probabilities, labels.long()))
    return "accuracy", float(MulticlassAccuracy(num_classes, average="micro")(probabilities, labels))


def data_module(config: str | Path, overrides: Sequence[str] = ()) -> L.LightningDataModule:
    """The data module of a configuration. overrides: as for the train script, --data.init_args.root FOLDER."""
    try:
        content = yaml.safe_load(Path(config).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EncoreError(f"{config}: cannot be read as a configuration: {str(error).splitlines()[0]}") from None
    section = content.get("data") if isinstance(content, dict) else None
    name = str(section.get("class_path", "")) if isinstance(section, dict) else ""
    if name.rpartition(".")[0] not in MODULES:
        raise EncoreError(f"{config}: names no data module of {' or '.join(MODULES)} in `data`")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    try:
        parsed = parser.parse_args(["--data", json.dumps(section), *overrides])
    except ArgumentError as error:
        raise EncoreError(f"{config}: {' '.join(str(error).split())}") from None
    return parser.instantiate(parsed).data


def held_out(data: Any) -> DataLoader:
    """The test set's loader where the module has one, else the validation set's."""
    data.setup()
    return data.test_dataloader() if getattr(data, "test_set", None) is not None else data.val_dataloader()


def run(arguments: Sequence[str] | None = None) -> tuple[str, float]:
    """Parse, average, print; returns the metric's name and value."""
    parser = argparse.ArgumentParser(
        prog="python -m papers.beats.ensemble", description="Metric of several fine-tuned models' mean probabilities."
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT", help="last.ckpt of each fine-tuning")
    parser.add_argument("--config", required=True, help="the fine-tuning's configuration; its data module is read")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    known, overrides = parser.parse_known_args(arguments)
    if known.device != "cpu" and not (known.device.startswith("cuda") and torch.cuda.is_available()):
        raise EncoreError(f"--device {known.device}: there is no such device here; leave it out to use the CPU")
    loader = held_out(data_module(known.config, overrides))
    name, value = score(*average(known.checkpoints, loader, known.device))
    print(f"{name} {100 * value:.2f} % of {len(known.checkpoints)} models' mean probabilities")
    return name, value


if __name__ == "__main__":
    try:
        run()
    except EncoreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

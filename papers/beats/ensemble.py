"""Ensembles (Table 3): the mean of several fine-tuned models' class probabilities, and its metric on held-out clips.

    python -m papers.beats.ensemble A.ckpt B.ckpt ... --config CONFIG [--device cuda] [--data.init_args.root FOLDER]

The options are those of the train script: the configuration of the fine-tuning (--config as often as there) and changes
to it; of them only the data count, whose test set is read. Prints macro mAP for multi-label models (trained with BCE),
else top1 accuracy.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lightning.pytorch.cli import instantiate_class
from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import EncoreError, one_line
from common.eval.classification import Scores
from common.interop.checkpoint import load_checkpoint
from common.training import cli
from papers.beats.interop import trained
from papers.beats.model import AudioClassifier
from papers.beats.module import batch_padding


def load_classifier(path: str | Path) -> tuple[AudioClassifier, bool]:
    """The model of a FineTuneModule checkpoint in eval mode, and whether it is multi-label (trained with BCE)."""
    checkpoint = load_checkpoint(path)
    if "num_classes" not in checkpoint.arguments:
        raise EncoreError(f"{path}: holds no classifier; give the last.ckpt of a fine-tuning")
    model = trained(checkpoint)
    assert isinstance(model, AudioClassifier)
    return model, checkpoint.argument("objective") == "bce"


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
    """("map", macro) of (N, C) labels or ("top1", accuracy) of (N,) labels, in percent.

    EncoreError when the labels do not fit.
    """
    num_classes = probabilities.shape[1]
    fits = labels.shape == probabilities.shape if multilabel else labels.dim() == 1 and labels.max() < num_classes
    if not fits:
        raise EncoreError(
            f"the checkpoints' {num_classes} {'multi-label' if multilabel else 'exclusive'} classes do not fit the "
            f"data's labels of shape {tuple(labels.shape)}; give the configuration that they were trained with"
        )
    scores = Scores(multilabel=multilabel)
    scores.update(probabilities.logit() if multilabel else probabilities, labels)
    name = "map" if multilabel else "top1"
    return name, scores.compute()[name]


def test_loader(options: Sequence[str]) -> DataLoader:
    """The test set of the data module that the train script's options describe."""
    parsed = cli.run(["test", *options], cli.Parsed).config["test"]
    data = instantiate_class((), parsed.data.as_dict())
    data.setup()
    return data.test_dataloader()


def run(arguments: Sequence[str] | None = None) -> tuple[str, float]:
    """Parse, average, print; returns the metric's name and value in percent."""
    parser = argparse.ArgumentParser(
        prog="python -m papers.beats.ensemble", description="Metric of several fine-tuned models' mean probabilities."
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT", help="last.ckpt of each fine-tuning")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    known, options = parser.parse_known_args(arguments)
    if known.device != "cpu" and not (known.device.startswith("cuda") and torch.cuda.is_available()):
        raise EncoreError(f"--device {known.device}: there is no such device here; leave it out to use the CPU")
    name, value = score(*average(known.checkpoints, test_loader(options), known.device))
    print(f"{name} {value:.2f} % of {len(known.checkpoints)} models' mean probabilities")
    return name, value


if __name__ == "__main__":
    one_line(run)

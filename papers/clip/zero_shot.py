"""Using a trained CLIP: zero-shot classifier with prompt ensembling (Sec. 3.1.4), features, linear probe (Sec. 3.2)."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from common.errors import EncoreError
from common.eval.extract import extract_features
from common.eval.linear_probe import Probe, logistic_probe
from common.eval.zero_shot import zero_shot_weights
from common.formats.lines import text_lines
from papers.clip.model import CLIP

# A few patterns of our own. The 80 of the paper are in the authors' repository: save them one a line and give the file.
TEMPLATES = (
    "a photo of a {}.",
    "a close view of the {}.",
    "a {} seen from far away.",
    "an unsharp snapshot of a {}.",
    "a drawing of the {}.",
    "a big {}.",
    "a little {}.",
)


def read_lines(path: str) -> list[str]:
    """Class names or templates: the lines of a UTF-8 file that are not empty. Raises EncoreError when there are
    none.
    """
    lines = [line.strip() for line in text_lines(path) if line.strip()]
    if not lines:
        raise EncoreError(f"{path}: no entries; give a UTF-8 file with one entry a line")
    return lines


def zero_shot_classifier(
    model: CLIP,
    tokenizer: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Tensor:
    """Weights (C, e): the normalised mean of a class's normalised prompt embeddings. The model should be in eval
    mode.
    """
    device = model.logit_scale.device
    return zero_shot_weights(lambda texts: model.encode_text(tokenizer(texts).to(device)), class_names, templates)


def image_features(model: CLIP, loader: Iterable[dict[str, Tensor]], *, project: bool = True) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of batches {image, label}.

    project=True: the joint space, as encode_image of the released code. project=False: before the last matrix, where
    the paper probes its ViTs.
    """
    was_training = model.training
    model.eval()
    try:
        device = model.logit_scale.device
        pairs = ((batch["image"], batch["label"]) for batch in loader)
        return extract_features(lambda images: model.image(images, project=project), pairs, device)
    finally:
        model.train(was_training)


def linear_probe(
    model: CLIP,
    train: Iterable[dict[str, Tensor]],
    test: Iterable[dict[str, Tensor]],
    *,
    validation: Iterable[dict[str, Tensor]] | None = None,
    c: float | None = None,
    project: bool = False,
) -> Probe:
    """Logistic regression (L-BFGS, at most 1000 iterations) on frozen features.

    Give validation batches to search C as the paper does (96 values in [1e-6, 1e6]), or c (the README's example:
    0.316 with project=True).
    """
    held_out = None if validation is None else image_features(model, validation, project=project)
    return logistic_probe(
        image_features(model, train, project=project),
        image_features(model, test, project=project),
        validation=held_out,
        c=c,
    )

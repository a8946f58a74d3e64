"""Linear classifiers on frozen features: L-BFGS logistic regression with CLIP's search for the penalty, ridge (once, or
over folds), and softmax regression by Adam for millions of frames."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier, RidgeClassifierCV
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import EncoreError

Array = np.ndarray | Tensor
PER_DECADE = 8  # 96 steps over the 12 decades of [1e-6, 1e6]
GRID = tuple(10.0 ** (i / PER_DECADE - 6) for i in range(12 * PER_DECADE + 1))


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    accuracy in percent on the test set; c: inverse penalty used (ridge: 1 / alpha); predictions: (N,).
    """

    accuracy: float
    c: float
    predictions: np.ndarray


def search_c(score: Callable[[float], float]) -> float:
    """C with the highest score by CLIP's parametric binary search (appendix A.3): 15 of the 97 values of the grid are
    tried.

    The first round tries every second decade; every further one halves the step and tries both neighbours of the best
    so far, down to 8 steps a decade. Exact when the score has one peak that the first round can see. Of equal scores
    the smaller C wins.
    """
    step = 2 * PER_DECADE
    scores = {i: score(GRID[i]) for i in range(0, len(GRID), step)}
    while step > 1:
        step //= 2
        best = _best(scores)
        for i in (best - step, best + step):
            if 0 <= i < len(GRID):
                scores[i] = score(GRID[i])
    return GRID[_best(scores)]


def _best(scores: dict[int, float]) -> int:
    return max(sorted(scores), key=scores.__getitem__)


def logistic_probe(
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    *,
    validation: tuple[Array, Array] | None = None,
    c: float | None = None,
    max_iter: int = 1000,
) -> Probe:
    """Multinomial logistic regression with an L2 penalty, fitted by L-BFGS. Pairs are (features (N, D), labels (N,)).

    Give c, or a validation set on which it is searched; in the second case the final fit is on train and validation
    together (CLIP, appendix A.3). Features are used as they come: normalise before if the protocol does.
    """
    if (c is None) == (validation is None):
        raise EncoreError("logistic_probe: give either c or a validation set to choose it on")
    (x, y), (test_x, test_y) = _arrays(train, "train"), _arrays(test, "test")
    if validation is not None:
        val_x, val_y = _arrays(validation, "validation")
        c = search_c(lambda value: float(np.mean(_logistic(x, y, value, max_iter).predict(val_x) == val_y)))
        x, y = np.concatenate([x, val_x]), np.concatenate([y, val_y])
    assert c is not None
    predictions = _logistic(x, y, c, max_iter).predict(test_x)
    return Probe(100 * float(np.mean(predictions == test_y)), c, predictions)


def _logistic(x: np.ndarray, y: np.ndarray, c: float, max_iter: int) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=max_iter).fit(x, y)


def ridge_probe(train: tuple[Array, Array], test: tuple[Array, Array], *, alpha: float = 1.0) -> Probe:
    """Least squares on +-1 targets with an L2 penalty: closed form, for a quick look. Pairs as in `logistic_probe`."""
    (x, y), (test_x, test_y) = _arrays(train, "train"), _arrays(test, "test")
    predictions = RidgeClassifier(alpha=alpha).fit(x, y).predict(test_x)
    return Probe(100 * float(np.mean(predictions == test_y)), 1 / alpha, predictions)


def _arrays(pair: Sequence[Array], name: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = (item.detach().cpu().numpy() if isinstance(item, Tensor) else np.asarray(item) for item in pair)
    if x.ndim != 2 or y.shape != (len(x),) or not len(x):
        raise EncoreError(f"probe: {name} needs features (N, D) and labels (N,), got {x.shape} and {y.shape}")
    if not np.isfinite(x).all():
        raise EncoreError(f"probe: {name} features hold NaN or infinity; the encoder has diverged")
    return x.astype(np.float64), y


def ridge_over_folds(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> float:
    """Accuracy (%) of a ridge classifier on features (N, D), each fold (N,) held out once.

    The ridge strength is chosen inside the training folds by generalised cross-validation; so is the normalisation.
    """
    right = np.zeros(len(labels), dtype=bool)
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        mean, std = features[train].mean(0), features[train].std(0).mean() + 1e-8
        classifier = RidgeClassifierCV(alphas=np.logspace(-2, 4, 13))
        classifier.fit((features[train] - mean) / std, labels[train])
        right[test] = classifier.predict((features[test] - mean) / std) == labels[test]
    return 100 * float(right.mean())


def softmax_probe(
    x: Tensor, y: Tensor, num_classes: int, *, steps: int, seed: int, batch_size: int = 256, lr: float = 3e-3
) -> Callable[[Tensor, Tensor], float]:
    """A linear softmax classifier on standardised rows x (N, D), y (N,); returns its accuracy (%) as a function of
    (rows, labels).

    Adam from zero weights, the rate falling linearly to 0.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, std = x.mean(dim=0), x.std(dim=0) + 1e-6
    x = (x - mean) / std
    weight = nn.Parameter(torch.zeros(num_classes, x.shape[1]))
    bias = nn.Parameter(torch.zeros(num_classes))
    optimizer = torch.optim.Adam([weight, bias], lr=lr, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        chosen = torch.randint(len(x), (batch_size,), generator=generator)
        loss = F.cross_entropy(F.linear(x[chosen], weight, bias), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def accuracy(test_x: Tensor, test_y: Tensor) -> float:
        scores = F.linear((test_x - mean) / std, weight, bias)
        return 100 * (scores.argmax(dim=1) == test_y).float().mean().item()

    return accuracy

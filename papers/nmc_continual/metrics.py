"""What is said about a stream: final, average incremental, restricted accuracy and forgetting.

Counts are integer arrays (T, C): after task t, how many test images of class c there were and how many were right.
R[t, i] is the accuracy on the test images of task i's classes after task t, every class seen so far competing.
"""

from collections.abc import Sequence

import numpy as np

Counts = np.ndarray
Classes = Sequence[np.ndarray]


def accuracy_matrix(correct: Counts, tested: Counts, classes: Classes) -> np.ndarray:
    """R in percent, (T, T); NaN where a task's classes were not tested yet. classes: those of each task."""
    rows = [[_share(correct[t, c], tested[t, c]) for c in classes] for t in range(len(classes))]
    return np.array(rows)


def _share(correct: Counts, tested: Counts) -> float:
    return 100 * float(correct.sum()) / float(tested.sum()) if tested.sum() else float("nan")


def summarise(correct: Counts, restricted: Counts, tested: Counts, classes: Classes) -> dict[str, float]:
    """All metrics of a finished stream, in percent.

    final_accuracy: sum_i w_i R[T, i], w_i the share of task i among the test images.
    average_incremental_accuracy: mean over t of the accuracy on all classes seen up to t.
    forgetting: mean over i < T of max_{t < T} R[t, i] - R[T, i]; 0 for a single task.
    restricted_accuracy: as final_accuracy where an image may only be given a class of its own task.
    restricted_drift: largest change of a task's restricted accuracy after its own task; 0 for frozen means.
    own_time_accuracy: mean over t of the accuracy on tasks 1..t, each tested right after it was learned. Two of the
    released scripts print this; it hides whatever later tasks do to earlier ones.
    """
    matrix = accuracy_matrix(correct, tested, classes)
    inside = accuracy_matrix(restricted, tested, classes)
    last = len(classes) - 1
    own = [(correct[t, c].sum(), tested[t, c].sum()) for t, c in enumerate(classes)]
    hits, total = np.cumsum(own, axis=0).T
    drift = [np.nanmax(np.abs(inside[i:, i] - inside[i, i])) for i in range(len(classes))]
    return {
        "final_accuracy": _share(correct[last], tested[last]),
        "average_incremental_accuracy": float(np.mean([_share(c, n) for c, n in zip(correct, tested)])),
        "forgetting": float(np.mean(np.nanmax(matrix[:last, :last], axis=0) - matrix[last, :last])) if last else 0.0,
        "restricted_accuracy": _share(restricted[last], tested[last]),
        "restricted_drift": float(max(drift)),
        "own_time_accuracy": float(np.mean(100 * hits / total)),
    }

"""How good predicted classes are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Classes = npt.NDArray[np.int64]


def accuracy(truth: Classes, predicted: Classes) -> float:
    """Share of the n predictions, (n,) class numbers, that are right."""
    return float(np.mean(truth == predicted))


def macro_f1(truth: Classes, predicted: Classes) -> float:
    """Unweighted mean of each class's F1, 2 TP / (2 TP + FP + FN), over the classes that occur in either array (n,)."""
    scores = []
    for number in np.union1d(truth, predicted):
        hits = np.count_nonzero((truth == number) & (predicted == number))
        scores.append(2 * hits / (np.count_nonzero(truth == number) + np.count_nonzero(predicted == number)))
    return float(np.mean(scores))


def log_loss(truth: Classes, logits: npt.NDArray[np.float32]) -> float:
    """Mean cross-entropy in nats of logits (n, classes) against class numbers (n,)."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(shifted, truth[:, None], -1)[:, 0]
    return float(np.mean(np.log(np.exp(shifted).sum(-1)) - chosen))

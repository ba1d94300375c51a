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

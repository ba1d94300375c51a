from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub.tuning.metrics import accuracy, macro_f1

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


def test_a_worked_example() -> None:
    truth, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 1])
    assert accuracy(truth, predicted) == pytest.approx(3 / 6)
    # class 0: precision 2/2, recall 2/3; class 1: precision 1/3, recall 1/2; class 2: nothing right
    assert macro_f1(truth, predicted) == pytest.approx((4 / 5 + 2 / 5 + 0) / 3)


@given(PAIRS)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
    scores = []
    for number in sorted({*truth.tolist(), *predicted.tolist()}):
        of_predicted = [t == number for t, p in pairs if p == number]
        of_true = [p == number for t, p in pairs if t == number]
        precision = sum(of_predicted) / len(of_predicted) if of_predicted else 0.0
        recall = sum(of_true) / len(of_true) if of_true else 0.0
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    assert macro_f1(truth, predicted) == pytest.approx(np.mean(scores))
    assert accuracy(truth, predicted) == pytest.approx(np.mean([t == p for t, p in pairs]))

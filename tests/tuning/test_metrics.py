from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deltahub.errors import DataError, UsageError
from deltahub.names import TEXT_KINDS
from deltahub.tuning.metrics import IGNORED, PRIMARY, accuracy, log_loss, macro_f1, primary, scores

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)
BIO = ("B-A", "B-B", "I-A", "I-B", "O")


def one_hot(predicted: Any, classes: int) -> Any:
    """Logits of a model that is sure."""
    return np.eye(classes, dtype=np.float32)[np.asarray(predicted)] * 4


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_a_worked_example() -> None:
    truth, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 1])
    found = scores("text-classification", truth, one_hot(predicted, 3), ("a", "b", "c"))
    assert found["accuracy"] == pytest.approx(3 / 6)
    # class 0: precision 2/2, recall 2/3; class 1: precision 1/3, recall 1/2; class 2: nothing right
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 5 + 0) / 3)
    # (n x right - sum true x predicted) / sqrt((n^2 - sum predicted^2) (n^2 - sum true^2))
    assert found["mcc"] == pytest.approx((6 * 3 - 13) / ((36 - 14) * (36 - 14)) ** 0.5)
    right, wrong = (np.log(np.exp(4) + 2) - chosen for chosen in (4, 0))
    assert found["log_loss"] == pytest.approx((right + wrong) / 2)


@given(PAIRS)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
    scored = []
    for number in sorted({*truth.tolist(), *predicted.tolist()}):
        of_predicted = [t == number for t, p in pairs if p == number]
        of_true = [p == number for t, p in pairs if t == number]
        precision = sum(of_predicted) / len(of_predicted) if of_predicted else 0.0
        recall = sum(of_true) / len(of_true) if of_true else 0.0
        scored.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    assert macro_f1(truth, predicted) == pytest.approx(np.mean(scored))
    assert accuracy(truth, predicted) == pytest.approx(np.mean([t == p for t, p in pairs]))


def test_log_loss_of_a_sure_mistake_is_not_clipped() -> None:
    assert log_loss(np.array([1]), np.array([[500.0, 0.0]], np.float32)) == 500.0


LOGITS = st.floats(-50, 50, width=32)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(2, 4), st.integers(1, 5))
def test_all_scores_of_all_kinds_are_finite_and_hold_the_primary_one(data: Any, n: int, c: int, t: int) -> None:
    def drawn(shape: tuple[int, ...], elements: Any = LOGITS, dtype: Any = np.float32) -> Any:
        return data.draw(arrays.arrays(dtype, shape, elements=elements))

    classes, bits = st.integers(0, c - 1), st.integers(0, 1)
    tokens = drawn((n, t), st.sampled_from([IGNORED, *range(c)]), np.int64)
    tokens[0, 0] = 0
    cases = {
        "text-classification": (drawn((n,), classes, np.int64), drawn((n, c))),
        "multi-label-classification": (drawn((n, c), bits, np.float32), drawn((n, c))),
        "regression": (drawn((n,)), drawn((n, 1))),
        "token-classification": (tokens, drawn((n, t, c))),
        "embeddings": (np.zeros(n), tuple(unit(drawn((n, c), st.floats(1, 2, width=32))) for _ in range(2))),
    }
    names = ("B-A", "I-A", "O", "I-B")[:c]
    for kind in TEXT_KINDS:
        found = scores(kind, *cases[kind], names)
        assert all(isinstance(value, float) and np.isfinite(value) for value in found.values())
        assert {PRIMARY[kind], primary(kind, names)} <= set(found)


def test_labels_of_a_row_count_together_and_each() -> None:
    truth = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], np.float32)
    logits = np.array([[2, -1, -1, -1], [1, -3, 1, -1], [-1, -1, -1, 0]], np.float32)
    found = scores("multi-label-classification", truth, logits, ("a", "b", "c", "never"))
    assert found == pytest.approx({"micro_f1": 2 * 2 / (3 + 3), "macro_f1": (1 + 0 + 0) / 3, "subset_accuracy": 2 / 3})


@pytest.mark.parametrize("classes", [1, 2])
def test_labels_that_nobody_has_score_nothing(classes: int) -> None:
    truth = np.zeros((3, classes))
    found = scores("multi-label-classification", truth, truth - 1, ())
    assert found == {"micro_f1": 0.0, "macro_f1": 0.0, "subset_accuracy": 1.0}


def test_numbers_are_ranked_correlated_and_measured() -> None:
    truth, outputs = np.array([1.0, 2.0, 3.0, 4.0]), np.array([[1.0], [2.0], [3.0], [8.0]], np.float32)
    found = scores("regression", truth, outputs)
    assert found == pytest.approx({"pearson": np.corrcoef(truth, outputs[:, 0])[0, 1], "spearman": 1.0, "rmse": 2.0})


@pytest.mark.parametrize("outputs", [[3.0, 3.0, 3.0], [1 / 3, 1 / 3 + 1e-16, 1 / 3], [0.0, 0.0, 0.0]])
def test_a_constant_prediction_correlates_with_nothing(outputs: list[float]) -> None:
    found = scores("regression", [1.0, 2.0, 3.0], np.array(outputs))
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)


def entity_f1(truth: str, predicted: str) -> float:
    names = ("B-A", "B-B", "I-A", "I-B", "O")
    true, guess = ([[names.index(tag) for tag in side.split()]] for side in (truth, predicted))
    return scores("token-classification", true, one_hot(guess, 5), names)["entity_f1"]


@pytest.mark.parametrize(
    ("truth", "predicted", "wanted"),
    [
        ("B-A I-A O B-B", "B-A I-A O B-B", 1.0),
        ("B-A I-A O B-B", "B-A O O B-B", 2 * 1 / 4),  # half an entity is none
        ("B-A I-A O B-B", "B-B I-B O B-B", 2 * 1 / 4),  # nor is one of another type
        ("B-A B-A O O", "B-A I-A O O", 0.0),  # one entity of two words is not two of one
        ("B-A I-A O O", "I-A I-A O O", 1.0),  # what follows nothing begins
        ("B-A B-B I-B O", "B-A I-B I-B O", 1.0),  # as does what follows another type
        ("O O O B-A", "O O O O", 0.0),
        ("O O O O", "O O O O", 0.0),
    ],
)
def test_an_entity_is_right_as_a_whole(truth: str, predicted: str, wanted: float) -> None:
    assert entity_f1(truth, predicted) == pytest.approx(wanted)


@given(st.integers(0, 4), st.integers(1, 3))
def test_tokens_that_do_not_count_change_nothing(predicted: int, more: int) -> None:
    truth, guess = np.array([[0, 2, 4, 1]]), np.array([[0, 2, 4, 0]])
    plain = scores("token-classification", truth, one_hot(guess, 5), BIO)
    wider = np.insert(truth, [1] * more, IGNORED, axis=1)
    assert plain == scores("token-classification", wider, one_hot(np.insert(guess, [1] * more, predicted, 1), 5), BIO)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (BIO, "entity_f1"),
        (("I-A", "O"), "entity_f1"),
        (("NOUN", "O"), "macro_f1"),
        (("O",), "macro_f1"),
        ((), "macro_f1"),
    ],
)
def test_entities_are_scored_where_names_mark_them(names: tuple[str, ...], wanted: str) -> None:
    assert primary("token-classification", names) == wanted


def test_each_text_finds_its_own_by_rank() -> None:
    right = np.eye(4)
    left = unit(np.array([[9, 0, 0, 0], [0, 9, 0, 0], [9, 0, 5, 0], [8, 7, 6, 5]], np.float64))
    found = scores("embeddings", [], (left, right))
    assert found == pytest.approx({"recall_at_1": 2 / 4, "mrr": (1 + 1 + 1 / 2 + 1 / 4) / 4})


@pytest.mark.parametrize("n", [1, 2, 7, 1500])
def test_a_model_that_tells_nothing_apart_finds_by_lot(n: int) -> None:
    vectors = np.tile(unit(np.ones((1, 3), np.float32)), (n, 1))
    found = scores("embeddings", [], (vectors, vectors))
    assert found == pytest.approx({"recall_at_1": 1 / n, "mrr": np.mean(1 / np.arange(1, n + 1))})


def test_all_are_found_over_several_blocks() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(2100, 8)))
    assert scores("embeddings", [], (vectors, vectors)) == pytest.approx({"recall_at_1": 1.0, "mrr": 1.0})


@pytest.mark.parametrize(
    ("kind", "truth", "outputs", "error"),
    [
        ("text-classification", [0], np.array([[np.nan, 0.0]]), DataError),
        ("embeddings", [], (np.ones((1, 1)), np.full((1, 1), np.inf)), DataError),
        ("regression", [], np.zeros(0), UsageError),
        ("token-classification", [[IGNORED]], np.zeros((1, 1, 2)), UsageError),
        ("text-generation", [0], np.zeros((1, 2)), UsageError),
    ],
)
def test_what_cannot_be_scored_is_refused(kind: str, truth: Any, outputs: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        scores(kind, truth, outputs, ("a", "b"))


def test_without_scikit_learn_the_extra_is_named() -> None:
    code = (
        "import importlib.machinery, sys\n"
        "find = importlib.machinery.PathFinder.find_spec\n"
        "importlib.machinery.PathFinder.find_spec = "
        "lambda name, *rest: None if name == 'sklearn' else find(name, *rest)\n"
        "from deltahub.errors import UsageError\nfrom deltahub.tuning.metrics import scores\n"
        "try: scores('regression', [1.0], __import__('numpy').zeros(1))\nexcept UsageError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "scores need scikit-learn; install deltahub[train]\n"

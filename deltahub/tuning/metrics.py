"""How good a model's outputs are, by the kind of the task; the formulas are those of scikit-learn and SciPy.

A score that has nothing to find (no entity, no positive) is 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from deltahub.errors import DataError, UsageError

Classes = npt.NDArray[np.int64]
Floats = npt.NDArray[Any]
Outputs = Floats | tuple[Floats, Floats]

PRIMARY = {
    "text-classification": "accuracy",
    "multi-label-classification": "micro_f1",
    "regression": "spearman",
    "token-classification": "macro_f1",
    "embeddings": "mrr",
}
"""The score that epochs are chosen by; for tokens with BIO names see `primary`."""

IGNORED = -100
"""The class number of a token that does not count: a special one, or not the first one of its word."""

_BIO = re.compile(r"O|[BI]-.+", re.DOTALL)
_TIE = 1e-6
"""Cosines closer than this are equal: the same text in batches of other lengths differs by as much."""
_BLOCK = 1024
"""Rows of the matrix of all cosines that are in memory at once."""


def scores(kind: str, truth: npt.ArrayLike, outputs: Outputs, names: Sequence[str] = ()) -> dict[str, float]:
    """Finite scores by name, higher is better but for ``log_loss`` and ``rmse``.

    - text-classification: truth (n,) class numbers, outputs logits (n, c): accuracy, macro_f1, mcc, log_loss.
    - multi-label-classification: truth (n, c) of 0 and 1, outputs logits (n, c), a label is predicted above 0:
      micro_f1, macro_f1, subset_accuracy (all labels of a row right).
    - regression: truth (n,), outputs (n,) or (n, 1): pearson, spearman (0 where either side is constant), rmse.
    - token-classification: truth (n, t) class numbers or `IGNORED`, outputs logits (n, t, c): accuracy, macro_f1, and
      entity_f1 where ``names`` are BIO tags.
    - embeddings: truth is not looked at, outputs two (n, d) of unit vectors, left and right: recall_at_1 and mrr, the
      mean reciprocal rank, of finding ``right[i]`` among all of right by its cosine to ``left[i]``. Equal cosines
      count as if their order were drawn by lot, in expectation: a model that gives all texts one vector gets 1/n.

    macro_f1 is the mean over the classes that occur in truth or prediction.

    Args:
        names: the c classes.

    Raises:
        UsageError: an unknown kind, nothing to score, or scikit-learn is not installed.
        DataError: outputs that are NaN or infinite.
    """
    if kind not in PRIMARY:
        raise UsageError("the kind to score", expected=f"one of {', '.join(PRIMARY)}", got=repr(kind))
    check_installed()
    sides = outputs if isinstance(outputs, tuple) else (outputs,)
    if not all(np.isfinite(side).all() for side in sides):
        raise DataError("the model gives NaN or infinity", expected="finite outputs", hint="lower the learning rates")
    truth = np.asarray(truth)
    counted = truth != IGNORED if kind == "token-classification" else sides[0]
    if not len(sides[0]) or not np.size(counted) or (kind == "token-classification" and not np.any(counted)):
        raise UsageError("nothing to score", expected="at least 1 row")
    return _SCORES[kind](truth, outputs, tuple(names))


def primary(kind: str, names: Sequence[str] = ()) -> str:
    """The score that epochs of this kind are chosen by, see `PRIMARY`; entity_f1 for tokens with BIO names."""
    return "entity_f1" if kind == "token-classification" and is_bio(names) else PRIMARY[kind]


def check_installed() -> None:
    """Raises UsageError unless scikit-learn is there, which a training notices at its start rather than its end."""
    if find_spec("sklearn") is None:
        raise UsageError("scores need scikit-learn", hint="install deltahub[train]")


def is_bio(names: Sequence[str]) -> bool:
    """Whether classes mark entities: all are ``O``, ``B-...`` or ``I-...``, and not ``O`` alone."""
    return any(name != "O" for name in names) and all(_BIO.fullmatch(name) for name in names)


def accuracy(truth: Classes, predicted: Classes) -> float:
    """Share of the n predictions, (n,) class numbers or (n, c) of 0 and 1, that are right."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(truth, predicted))


def macro_f1(truth: Classes, predicted: Classes) -> float:
    """Unweighted mean of each class's F1, 2 TP / (2 TP + FP + FN), over the classes that occur in either array (n,)."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, average="macro", zero_division=0))


def log_loss(truth: Classes, logits: Floats) -> float:
    """Mean cross-entropy in nats of logits (n, classes) against class numbers (n,)."""
    from scipy.special import log_softmax

    chosen = np.take_along_axis(log_softmax(logits.astype(np.float64), axis=-1), truth[:, None], -1)
    return float(-np.mean(chosen))


def _text_scores(truth: Classes, outputs: Any, names: tuple[str, ...]) -> dict[str, float]:
    from sklearn.metrics import matthews_corrcoef

    predicted = np.argmax(outputs, axis=-1)
    several = len(np.union1d(truth, predicted)) > 1  # scikit-learn warns of one class and calls it 0
    return {
        "accuracy": accuracy(truth, predicted),
        "macro_f1": macro_f1(truth, predicted),
        "mcc": float(matthews_corrcoef(truth, predicted)) if several else 0.0,
        "log_loss": log_loss(truth, outputs),
    }


def _label_scores(truth: Floats, outputs: Any, names: tuple[str, ...]) -> dict[str, float]:
    from sklearn.metrics import f1_score

    wanted, predicted = truth.astype(np.int64), (np.asarray(outputs) > 0).astype(np.int64)
    occurring = np.flatnonzero((wanted | predicted).any(axis=0))
    f1 = {"micro_f1": 0.0, "macro_f1": 0.0}
    if len(occurring):  # of columns, for scikit-learn takes one column for a binary task
        sides = [np.pad(side[:, occurring], ((0, 0), (0, 1))) for side in (wanted, predicted)]
        labels = range(len(occurring))
        f1 = {
            f"{average}_f1": float(f1_score(*sides, average=average, labels=labels, zero_division=0))
            for average in ("micro", "macro")
        }
    return {**f1, "subset_accuracy": float(np.mean((wanted == predicted).all(axis=1)))}


def _number_scores(truth: Floats, outputs: Any, names: tuple[str, ...]) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import root_mean_squared_error

    wanted, predicted = truth.astype(np.float64).ravel(), np.asarray(outputs, np.float64).ravel()
    flat = _constant(wanted) or _constant(predicted)
    return {
        "pearson": 0.0 if flat else float(pearsonr(wanted, predicted).statistic),
        "spearman": 0.0 if flat else float(spearmanr(wanted, predicted).statistic),
        "rmse": float(root_mean_squared_error(wanted, predicted)),
    }


def _constant(numbers: Floats) -> bool:
    """Whether numbers (n,) differ by rounding errors at most; SciPy warns of a little less than that."""
    return bool(np.ptp(numbers) <= 1e-12 * np.abs(numbers).max())


def _token_scores(truth: Classes, outputs: Any, names: tuple[str, ...]) -> dict[str, float]:
    counted = truth != IGNORED
    predicted = np.argmax(outputs, axis=-1)
    found = {
        "accuracy": accuracy(truth[counted], predicted[counted]),
        "macro_f1": macro_f1(truth[counted], predicted[counted]),
    }
    return {**found, "entity_f1": _entity_f1(truth, predicted, names)} if is_bio(names) else found


def _entity_f1(truth: Classes, predicted: Classes, names: tuple[str, ...]) -> float:
    """F1 of whole entities over all rows: one is right where its start, end and type are, as in CoNLL-2000's conlleval.

    The tokens that do not count are taken out first.
    """
    wanted, given = set(), set()
    for row, (true, guess) in enumerate(zip(truth, predicted, strict=True)):
        counted = true != IGNORED
        wanted |= {(row, *entity) for entity in _entities([names[number] for number in true[counted]])}
        given |= {(row, *entity) for entity in _entities([names[number] for number in guess[counted]])}
    return 2 * len(wanted & given) / (len(wanted) + len(given)) if wanted or given else 0.0


def _entities(tags: list[str]) -> list[tuple[int, int, str]]:
    """Start, end and type of each entity; an ``I-`` that continues none of its own type starts one."""
    found: list[tuple[int, int, str]] = []
    open_since: int | None = None
    for at, (mark, _, name) in enumerate(tag.partition("-") for tag in [*tags, "O"]):
        before = tags[at - 1].partition("-")[2] if at else ""
        if open_since is not None and (mark != "I" or name != before):
            found.append((open_since, at, before))
            open_since = None
        if mark != "O" and open_since is None:
            open_since = at
    return found


def _pair_scores(truth: Floats, outputs: Any, names: tuple[str, ...]) -> dict[str, float]:
    from scipy.special import digamma

    left, right = (np.asarray(side, np.float64) for side in outputs)
    above, equal = [], []
    for start in range(0, len(left), _BLOCK):
        cosines = left[start : start + _BLOCK] @ right.T
        rows = np.arange(len(cosines))
        over = cosines - cosines[rows, start + rows][:, None]
        above.append(np.count_nonzero(over > _TIE, axis=1))
        equal.append(np.count_nonzero(np.abs(over) <= _TIE, axis=1))
    better, same = np.concatenate(above), np.concatenate(equal)
    # mean of 1/rank over ranks better + 1 to better + same: a difference of harmonic numbers
    reciprocal = (digamma(better + same + 1) - digamma(better + 1)) / same
    return {"recall_at_1": float(np.mean((better == 0) / same)), "mrr": float(np.mean(reciprocal))}


_SCORES: dict[str, Callable[[Any, Any, tuple[str, ...]], dict[str, float]]] = {
    "text-classification": _text_scores,
    "multi-label-classification": _label_scores,
    "regression": _number_scores,
    "token-classification": _token_scores,
    "embeddings": _pair_scores,
}

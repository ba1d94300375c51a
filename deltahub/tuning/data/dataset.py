"""Rows to train on, and what can be said of them without a model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from deltahub.errors import DataError, UsageError
from deltahub.names import TEXT_KINDS

Text = str | tuple[str, ...]
Label = str | float | tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Texts, each with what is to be learnt of it.

    Attributes:
        kind: one of `names.TEXT_KINDS`.
        texts: n texts, none of them blank; for token classification each is a tuple of words.
        pairs: the n second texts, or None; for embeddings they are what the texts belong to, and required.
        labels: n labels, aligned to ``texts``: a class; a sorted tuple of classes, which may be empty (multi-label); a
            finite number (regression); a tuple of one class per word (token classification); ``()`` for embeddings.
        names: the classes, sorted; a validation set has those of its training set. ``()`` where there are none.

    Raises:
        UsageError: columns that do not fit each other or the kind.
    """

    kind: str
    texts: tuple[Text, ...]
    pairs: tuple[str, ...] | None = None
    labels: tuple[Label, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_kind(self.kind)
        if (self.kind == "embeddings" and self.pairs is None) or (
            self.kind == "token-classification" and self.pairs is not None
        ):
            raise UsageError(f"second texts for {self.kind}", expected="some for embeddings, none for words")
        expected = 0 if self.kind == "embeddings" else len(self.texts)
        if len(self.labels) != expected or (self.pairs is not None and len(self.pairs) != len(self.texts)):
            raise UsageError(
                f"columns for {self.kind}", expected=f"{len(self.texts)} pairs, if any, and {expected} labels",
                got=f"{len(self.pairs or ())} and {len(self.labels)}",
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.texts)

    def label_ids(self) -> list[Any]:
        """The labels as numbers, by kind.

        Text classification: each label's position in ``names``, int. Multi-label: a list of 0.0 and 1.0 per name.
        Regression: the float itself. Token classification: a list of positions, one per word. Embeddings: none, ``[]``.
        """
        position = {name: number for number, name in enumerate(self.names)}
        labels: tuple[Any, ...] = self.labels
        if self.kind == "multi-label-classification":
            return [[float(name in label) for name in self.names] for label in labels]
        if self.kind == "token-classification":
            return [[position[name] for name in label] for label in labels]
        return [position[label] for label in labels] if self.kind == "text-classification" else list(labels)

    def take(self, rows: Iterable[int]) -> Dataset:
        """The given rows under the same ``names``."""
        rows = list(rows)
        return replace(
            self,
            texts=tuple(self.texts[row] for row in rows),
            pairs=None if self.pairs is None else tuple(self.pairs[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows) if self.labels else (),
        )


def check_kind(kind: str) -> str:
    """Returns ``kind``; raises UsageError unless it is one of `names.TEXT_KINDS`."""
    if kind not in TEXT_KINDS:
        raise UsageError("the kind of task", expected=f"one of {', '.join(TEXT_KINDS)}", got=repr(kind))
    return kind


def split(rows: Dataset, *, share: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Two disjoint parts: ``share`` of the rows (one row at least) goes to the second, never all of them.

    For text classification that holds of each class with two rows or more; a class with one row stays in the first
    part. The same rows, share and seed give the same parts, in the order of ``rows``.

    Raises:
        UsageError: a share outside (0, 1).
        DataError: nothing can be split off.
    """
    if not 0 < share < 1:
        raise UsageError("the validation share", expected="above 0 and below 1", got=share)
    chosen: set[int] = set()
    shuffle = random.Random(seed).shuffle  # noqa: S311 (a split, not a secret)
    for members in _groups(rows):
        shuffle(members)
        chosen.update(members[: min(max(1, round(len(members) * share)), len(members) - 1)] if members else ())
    if not chosen:
        problem = "nothing can be split off for validation"
        if rows.kind == "text-classification":
            raise DataError(problem, expected="a class with 2 rows", got="1 row in each")
        raise DataError(problem, expected="at least 2 rows", got=len(rows))
    return rows.take(row for row in range(len(rows)) if row not in chosen), rows.take(sorted(chosen))


def _groups(rows: Dataset) -> list[list[int]]:
    """Rows that are split on their own: those of one class, where each row has one."""
    if rows.kind != "text-classification":
        return [list(range(len(rows)))]
    by_class: dict[Label, list[int]] = {name: [] for name in rows.names}
    for row, label in enumerate(rows.labels):
        by_class[label].append(row)
    return list(by_class.values())


def majority_share(rows: Dataset) -> float:
    """Part that the commonest answer has: the accuracy of always giving it.

    Of the rows for text classification, of the rows' whole sets of labels for multi-label (subset accuracy), of the
    words for token classification.

    Raises:
        UsageError: a kind without classes.
    """
    labels: Iterable[Any] = rows.labels
    if rows.kind == "token-classification":
        labels = [name for label in labels for name in label]
    elif rows.kind not in ("text-classification", "multi-label-classification"):
        raise UsageError(f"{rows.kind} has no commonest class", expected="a kind with classes")
    counts = Counter(labels)
    return max(counts.values()) / counts.total()


def class_weights(rows: Dataset) -> tuple[float, ...]:
    """Weights of the classes in the loss that make rare ones count as much as common ones, aligned to ``names``.

    Text classification: "balanced" as in scikit-learn, n / (classes x rows of the class); a class without rows counts
    as having one. Multi-label: the weight of a positive, rows without the label / rows with it, within [1/100, 100].

    Raises:
        UsageError: another kind.
    """
    labels: tuple[Any, ...] = rows.labels
    if rows.kind == "text-classification":
        counts = Counter(labels)
        return tuple(len(rows) / (len(rows.names) * max(counts[name], 1)) for name in rows.names)
    if rows.kind == "multi-label-classification":
        counts = Counter(name for label in labels for name in label)
        ratios = ((len(rows) - counts[name]) / max(counts[name], 1) for name in rows.names)
        return tuple(min(max(ratio, 0.01), 100.0) for ratio in ratios)
    raise UsageError(f"class weights for {rows.kind}", expected="text-classification or multi-label-classification")

"""Reads training and validation data of every kind of task, checked row by row before any training starts."""

from __future__ import annotations

from collections.abc import Collection

from deltahub.errors import DataError, UsageError
from deltahub.tuning.data import fields
from deltahub.tuning.data.dataset import Dataset, Label, Text, check_kind, split
from deltahub.tuning.data.fields import ClassLabels
from deltahub.tuning.data.sources import Columns, Origin, Row, called, open_source


def load(
    train: Origin,
    validation: Origin | None = None,
    *,
    kind: str = "text-classification",
    text: str = "text",
    text_pair: str | None = None,
    label: str = "label",
    share: float = 0.1,
    seed: int = 0,
) -> tuple[Dataset, Dataset]:
    """Training and validation set.

    Args:
        train: ``.jsonl`` (one object a line), ``.csv`` or ``.tsv`` (with a header), each UTF-8; ``.parquet``; a
            dataset of the `datasets` library, whose class numbers become their names; or any rows that are mappings.
        validation: data of one of these, every label of which occurs in ``train``; None splits it off ``train``.
        kind: one of `names.TEXT_KINDS`.
        text: column of the texts; for token classification, of lists of words.
        text_pair: column of second texts, if there are any; embeddings need one, by default ``text_pair``.
        label: column of the labels: strings or whole numbers; lists of them for multi-label (in CSV ``a|b``) and, one
            per word, for token classification; finite numbers for regression. Embeddings have no labels.
        share: part of the rows (of each class) that is split off where there is no validation data, above 0 and
            below 1.
        seed: of that split.

    Raises:
        DataError: data that cannot be trained on; the message names the file or data and the line or row.
        UsageError: arguments that cannot be meant.
    """
    columns = _columns(kind, text, text_pair, label)
    rows = _read(train, kind, columns, "the training data")
    _check_learnable(rows, called(train, "the training data"))
    if validation is None:
        return split(rows, share=share, seed=seed)
    return rows, _read(validation, kind, columns, "the validation data", rows.names)


def read(
    origin: Origin,
    *,
    kind: str = "text-classification",
    text: str = "text",
    text_pair: str | None = None,
    label: str = "label",
    names: Collection[str] | None = None,
) -> Dataset:
    """One file, or other rows; the arguments are those of `load`.

    Args:
        names: of the training set that this is to be measured by: the only labels allowed, taken as the classes (for
            regression and embeddings ``()``). None reads a training set: its classes are what it holds, at least two.

    Raises:
        DataError, UsageError: see `load`.
    """
    rows = _read(origin, kind, _columns(kind, text, text_pair, label), "the data", names or ())
    if names is None or kind not in ("regression", "embeddings"):
        _check_learnable(rows, called(origin, "the data"))
    return rows


def _columns(kind: str, text: str, text_pair: str | None, label: str) -> Columns:
    roles = {"text": text}
    if check_kind(kind) == "embeddings":
        roles["text_pair"] = "text_pair" if text_pair is None else text_pair
    elif text_pair is not None:
        if kind == "token-classification":
            raise UsageError("second texts for token-classification", expected="none")
        roles["text_pair"] = text_pair
    if kind != "embeddings":
        roles["label"] = label
    return Columns(roles)


def _read(origin: Origin, kind: str, columns: Columns, name: str, names: Collection[str] = ()) -> Dataset:
    source = open_source(origin, columns, name)
    if kind == "token-classification" and source.flat:
        raise DataError(
            f"{source.name}: a table of strings holds no lists of words", expected=".jsonl, .parquet or rows in memory"
        )
    texts: list[Text] = []
    pairs: list[str] = []
    labels: list[Label] = []
    classes = ClassLabels(columns.roles.get("label", ""), names)
    for place, row in source.rows:
        texts.append(text := _text(kind, place, row, columns.roles["text"]))
        if second := columns.roles.get("text_pair"):
            pairs.append(fields.text(place, second, row[second]))
        if kind != "embeddings":
            labels.append(_label(kind, place, row[classes.column], classes, source.flat, len(text)))
    if not texts:
        raise DataError(f"{source.name} is empty", expected=f"rows with {columns}")
    return Dataset(
        kind,
        tuple(texts),
        tuple(pairs) if "text_pair" in columns.roles else None,
        tuple(labels),
        () if kind in ("regression", "embeddings") else tuple(sorted(names or _occurring(kind, labels))),
    )


def _text(kind: str, place: str, row: Row, column: str) -> Text:
    check = fields.words if kind == "token-classification" else fields.text
    return check(place, column, row[column])


def _label(kind: str, place: str, found: object, classes: ClassLabels, flat: bool, words: int) -> Label:
    if kind == "regression":
        return fields.score(place, classes.column, found, flat=flat)
    if kind == "multi-label-classification":
        return classes.several(place, found, flat=flat)
    if kind == "token-classification":
        return classes.per_word(place, found, words)
    return classes.one(place, found)


def _occurring(kind: str, labels: list[Label]) -> set[str]:
    """The classes that rows have."""
    if kind == "text-classification":
        return {str(label) for label in labels}
    return {name for label in labels if isinstance(label, tuple) for name in label}


def _check_learnable(rows: Dataset, name: str) -> None:
    """Raises DataError where every row asks for the same answer."""
    if rows.kind == "embeddings":
        if len(rows) < 2:
            raise DataError(f"{name} has one row only", expected="at least 2 pairs, to tell one from another")
    elif rows.kind == "regression":
        if len(set(rows.labels)) < 2:
            raise DataError(
                f"{name} has one target only", expected="at least 2 different numbers",
                got=f"{rows.labels[0]} in each row",
            )  # fmt: skip
    elif len(rows.names) < 2:
        where = "in each row" if rows.kind == "text-classification" else "and no other"
        found = f"{fields.shown(rows.names[0])} {where}" if rows.names else "no label in any row"
        raise DataError(f"{name} has one class only", expected="at least 2 different labels", got=found)

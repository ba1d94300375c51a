"""Labelled texts from JSON Lines or CSV, checked row by row before any training starts."""

from __future__ import annotations

import csv
import io
import json
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deltahub.errors import DataError, UsageError

_JSON_LINES = (".jsonl", ".ndjson", ".json")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Dataset:
    """Texts, each with one label.

    Attributes:
        texts: n texts, none of them blank.
        labels: n labels, aligned to ``texts``.
        names: the classes, sorted; a validation set has those of its training set.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def label_ids(self) -> list[int]:
        """Each label's position in ``names``."""
        position = {name: number for number, name in enumerate(self.names)}
        return [position[label] for label in self.labels]

    def take(self, rows: Iterable[int]) -> Dataset:
        """The given rows under the same ``names``."""
        rows = list(rows)
        return Dataset(tuple(self.texts[row] for row in rows), tuple(self.labels[row] for row in rows), self.names)


def load(
    train: str | Path,
    validation: str | Path | None = None,
    *,
    text: str = "text",
    label: str = "label",
    share: float = 0.1,
    seed: int = 0,
) -> tuple[Dataset, Dataset]:
    """Training and validation set.

    Args:
        train: ``.jsonl`` (one object a line), ``.csv`` or ``.tsv`` (with a header), UTF-8.
        validation: a file of the same kind, every label of which occurs in ``train``; None splits it off ``train``.
        text: column of the texts.
        label: column of the labels, strings or whole numbers.
        share: part of each class that is split off where there is no validation file, above 0 and below 1.
        seed: of that split.

    Raises:
        DataError: a file that cannot be trained on; the message names the file and the line.
    """
    rows = read(train, text=text, label=label)
    if validation is None:
        return split(rows, share=share, seed=seed)
    return rows, read(validation, text=text, label=label, names=rows.names)


def read(path: str | Path, *, text: str = "text", label: str = "label", names: Collection[str] = ()) -> Dataset:
    """One file.

    Args:
        names: the only labels allowed, taken as the classes; without them the classes are what the file holds,
            at least two.

    Raises:
        DataError: see `load`.
    """
    path = Path(path)
    if text == label:
        raise DataError(f"{path}: text and label are the same column {text!r}", expected="two columns")
    texts, labels = [], []
    for line, row in _rows(path, _decode(path), (text, label)):
        labels.append(found := _label(path, line, label, row[label]))
        texts.append(_text(path, line, text, row[text]))
        if names and found not in names:
            raise DataError(
                f"{path}, line {line}: label {_shown(found)} does not occur in the training data",
                expected=f"one of {', '.join(sorted(names)[:8])}{', ...' if len(names) > 8 else ''}",
            )
    if not texts:
        raise DataError(f"{path} is empty", expected=f"rows with {text!r} and {label!r}")
    classes = tuple(sorted(names or set(labels)))
    if len(classes) < 2:
        raise DataError(
            f"{path} has one class only", expected="at least 2 different labels", got=f"{_shown(labels[0])} in each row"
        )
    return Dataset(tuple(texts), tuple(labels), classes)


def split(rows: Dataset, *, share: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Two disjoint parts: of each class with two rows or more, ``share`` (one row at least) goes to the second.

    The same rows, share and seed give the same parts, in the order of ``rows``.

    Raises:
        UsageError: a share outside (0, 1).
        DataError: no class has two rows.
    """
    if not 0 < share < 1:
        raise UsageError("the validation share", expected="above 0 and below 1", got=share)
    by_class: dict[str, list[int]] = {name: [] for name in rows.names}
    for row, label in enumerate(rows.labels):
        by_class[label].append(row)
    chosen: set[int] = set()
    shuffle = random.Random(seed).shuffle  # noqa: S311 (a split, not a secret)
    for members in by_class.values():
        shuffle(members)
        chosen.update(members[: min(max(1, round(len(members) * share)), len(members) - 1)] if members else ())
    if not chosen:
        raise DataError("nothing can be split off for validation", expected="a class with 2 rows", got="1 row in each")
    return rows.take(row for row in range(len(rows)) if row not in chosen), rows.take(sorted(chosen))


def majority_share(rows: Dataset) -> float:
    """Part of the rows that the commonest label has: the accuracy of always answering it."""
    return max(Counter(rows.labels).values()) / len(rows)


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line} is not UTF-8", got=f"byte 0x{data[error.start]:02x}", hint="save the file as UTF-8"
        ) from None


def _rows(path: Path, content: str, columns: tuple[str, str]) -> Iterator[tuple[int, dict[str, object]]]:
    """Line number and row, each row with both columns."""
    suffix = path.suffix.lower()
    if suffix in _JSON_LINES:
        return _json_rows(path, content, columns)
    if suffix in _DELIMITERS:
        return _csv_rows(path, content, columns)
    raise DataError(f"{path} has no known format", expected=f"{', '.join((*_JSON_LINES, *_DELIMITERS))}", got=suffix)


def _json_rows(path: Path, content: str, columns: tuple[str, str]) -> Iterator[tuple[int, dict[str, object]]]:
    # not splitlines(): it also cuts at U+2028 and the like, which JSON allows inside a string
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=partial(_object, path, number))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number} is not valid JSON ({str(error)[:80]})", hint="write one object a line"
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}", expected="a JSON object", got=type(row).__name__)
        _check_columns(path, number, columns, row)
        yield number, row


def _csv_rows(path: Path, content: str, columns: tuple[str, str]) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=_DELIMITERS[path.suffix.lower()], strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if not row:
                continue
            if header is None:
                header = row
                _check_columns(path, reader.line_num, columns, header)
                # blank ones are no names: spreadsheets leave them behind in empty columns
                _check_unique(path, reader.line_num, [name for name in header if name.strip()])
            elif len(row) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}", expected=f"{len(header)} columns", got=len(row),
                    hint="quote a text that holds the delimiter",
                )  # fmt: skip
            else:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not valid CSV ({error})") from None


def _object(path: Path, line: int, pairs: list[tuple[str, object]]) -> dict[str, object]:
    _check_unique(path, line, [name for name, _ in pairs])
    return dict(pairs)


def _check_unique(path: Path, line: int, names: list[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{path}, line {line} has {', '.join(map(_shown, twice[:8]))} twice", expected="each name once")


def _check_columns(path: Path, line: int, columns: tuple[str, str], found: Iterable[str]) -> None:
    if missing := [name for name in columns if name not in found]:
        raise DataError(
            f"{path}, line {line} lacks {' and '.join(map(repr, missing))}", expected=" and ".join(map(repr, columns)),
            got=", ".join(map(_shown, list(found)[:8])) or "nothing", hint="name the columns that hold text and label",
        )  # fmt: skip


def _text(path: Path, line: int, column: str, found: object) -> str:
    if not isinstance(found, str) or not found.strip():
        raise DataError(f"{path}, line {line}: {column!r}", expected="a text", got=_shown(found))
    return _no_surrogates(path, line, column, found)


def _label(path: Path, line: int, column: str, found: object) -> str:
    label = str(found) if type(found) is int else found
    if not isinstance(label, str) or not label.strip() or len(label) > 1000:
        raise DataError(
            f"{path}, line {line}: {column!r}",
            expected="a string of 1 to 1000 characters or a whole number",
            got=_shown(found),
        )
    return _no_surrogates(path, line, column, label)


def _no_surrogates(path: Path, line: int, column: str, found: str) -> str:
    try:
        found.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{path}, line {line}: {column!r}", expected="valid Unicode", got="half a surrogate pair"
        ) from None
    return found


def _shown(found: object) -> str:
    text = ascii(found)
    return text if len(text) <= 40 else text[:37] + "..."

"""Where rows come from: JSON Lines, CSV, Parquet, a dataset of the `datasets` library, or any rows in memory."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deltahub.errors import DataError, UsageError
from deltahub.tuning.data.fields import shown

JSON_LINES = (".jsonl", ".ndjson", ".json")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = (".parquet",)

Row = Mapping[str, object]
Rows = Iterator[tuple[str, Row]]
Origin = str | Path | Iterable[Row]


@dataclass(frozen=True)
class Columns:
    """The columns to read, by what they hold: ``text``, ``text_pair``, ``label``."""

    roles: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.roles.values())

    def __str__(self) -> str:
        return " and ".join(map(repr, self.names))

    def check_distinct(self, name: str) -> None:
        """Raises DataError where two roles have one column."""
        roles: dict[str, str] = {}
        for role, column in self.roles.items():
            if column in roles:
                raise DataError(
                    f"{name}: {roles[column]} and {role} are the same column {column!r}",
                    expected=f"{'two' if len(self.roles) == 2 else 'three'} columns",
                )
            roles[column] = role

    def check_in(self, place: str, found: Iterable[str]) -> None:
        """Raises DataError unless all are in ``found``, each once."""
        found = list(found)
        if missing := [name for name in self.names if name not in found]:
            raise DataError(
                f"{place} lacks {' and '.join(map(repr, missing))}", expected=str(self),
                got=", ".join(map(shown, found[:8])) or "nothing",
                hint=f"name the columns that hold {' and '.join(self.roles)}",
            )  # fmt: skip
        _check_unique(place, [name for name in found if name in self.names])


@dataclass(frozen=True)
class Source:
    """Rows that have the columns asked for.

    Attributes:
        name: of the file or data.
        rows: a place such as ``train.csv, line 2`` and a row, one after the other.
        flat: whether every cell is a string, as in CSV.
    """

    name: str
    rows: Rows
    flat: bool = False


def open_source(origin: Origin, columns: Columns, name: str) -> Source:
    """The rows of a file or of data in memory, which is called ``name`` in errors.

    Raises:
        DataError: a file that cannot be read; while it is iterated over, rows that are no rows or lack a column.
        UsageError: what is neither a file nor rows, or a library that is not installed.
    """
    columns.check_distinct(called(origin, name))
    if not isinstance(origin, str | Path):
        return Source(name, _memory_rows(name, origin, columns))
    path = Path(origin)
    if os.path.exists(path) and not (path.is_file() or path.is_dir()):  # a pipe may never end, nor a device
        raise DataError(f"{path} is not a regular file")
    suffix = path.suffix.lower()
    if suffix in JSON_LINES:
        return Source(str(path), _json_rows(path, _decode(path), columns))
    if suffix in DELIMITERS:
        return Source(str(path), _csv_rows(path, _decode(path), columns), flat=True)
    if suffix in PARQUET:
        return Source(str(path), _parquet_rows(path, columns))
    known = ", ".join((*JSON_LINES, *DELIMITERS, *PARQUET))
    raise DataError(f"{path} has no known format", expected=known, got=suffix)


def called(origin: Origin, name: str) -> str:
    """What errors call the data: a file by its path, other data ``name``."""
    return str(Path(origin)) if isinstance(origin, str | Path) else name


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


def _json_rows(path: Path, content: str, columns: Columns) -> Rows:
    # not splitlines(): it also cuts at U+2028 and the like, which JSON allows inside a string
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=partial(_object, place))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place} is not valid JSON ({str(error)[:80]})", hint="write one object a line") from None
        if not isinstance(row, dict):
            raise DataError(place, expected="a JSON object", got=type(row).__name__)
        columns.check_in(place, row)
        yield place, row


def _csv_rows(path: Path, content: str, columns: Columns) -> Rows:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=DELIMITERS[path.suffix.lower()], strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if not row:
                continue
            if header is None:
                header = row
                columns.check_in(place, header)
                # blank ones are no names: spreadsheets leave them behind in empty columns
                _check_unique(place, [name for name in header if name.strip()])
            elif len(row) != len(header):
                raise DataError(
                    place, expected=f"{len(header)} columns", got=len(row),
                    hint="quote a text that holds the delimiter",
                )  # fmt: skip
            else:
                yield place, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not valid CSV ({error})") from None


def _parquet_rows(path: Path, columns: Columns) -> Rows:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UsageError(f"{path} needs pyarrow", hint="install deltahub[train], or save it as .jsonl") from None
    try:
        with ParquetFile(path) as file:
            schema = file.schema_arrow
            columns.check_in(str(path), schema.names)
            named = _names_in(_declared(path, schema.metadata or {}))
            number = 0
            for batch in file.iter_batches(columns=list(columns.names)):
                for row in batch.to_pylist():
                    number += 1
                    place = f"{path}, row {number}"
                    yield place, _with_names(place, row, named)
    except (ArrowException, OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:80]
        raise DataError(f"cannot read {path} ({reason})") from None


def _declared(path: Path, metadata: Mapping[bytes, bytes]) -> Mapping[str, Any]:
    """The columns as the `datasets` library notes them in a Parquet file that it writes."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError):
        features = None
    if not isinstance(features, dict):
        raise DataError(f"{path}: metadata of the datasets library", expected="a JSON object with features")
    return features


def _memory_rows(name: str, origin: Iterable[Row], columns: Columns) -> Rows:
    if isinstance(origin, Mapping) or not isinstance(origin, Iterable):
        raise UsageError(
            name, expected="a file or rows, each a mapping", got=type(origin).__name__,
            hint="of a collection of splits, choose one",
        )  # fmt: skip
    data: Any = origin
    features: Any = getattr(data, "features", None)
    if callable(getattr(features, "to_dict", None)):  # of the datasets library, which need not be here otherwise
        columns.check_in(name, features)
        named = _names_in(features.to_dict())
        data = data.with_format(None).select_columns(list(columns.names))
    else:
        named = {}
    for number, row in enumerate(data, start=1):
        place = f"{name}, row {number}"
        if not isinstance(row, Mapping):
            raise DataError(place, expected="a mapping of column to value", got=type(row).__name__)
        columns.check_in(place, row)
        yield place, _with_names(place, row, named)


def _names_in(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the classes per column that holds class numbers, or lists of them, by the `datasets` library's notes."""
    found = {}
    for column, declared in features.items():
        feature = declared[0] if isinstance(declared, list) and declared else declared
        if isinstance(feature, Mapping):
            feature = feature.get("feature", feature)
        if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                found[column] = names
    return found


def _with_names(place: str, row: Row, named: Mapping[str, Sequence[str]]) -> Row:
    """``row`` with names for class numbers."""
    found = {column: row[column] for column in named if column in row}
    return {**row, **{column: _name(place, column, value, named[column]) for column, value in found.items()}}


def _name(place: str, column: str, found: object, names: Sequence[str]) -> object:
    if isinstance(found, list):
        return [_name(place, column, number, names) for number in found]
    if type(found) is not int:
        return found
    if not 0 <= found < len(names):
        raise DataError(
            f"{place}: {column!r}", expected=f"a class number from 0 to {len(names) - 1}", got=found,
            hint="leave out rows without a label",
        )  # fmt: skip
    return names[found]


def _object(place: str, pairs: list[tuple[str, object]]) -> dict[str, object]:
    _check_unique(place, [name for name, _ in pairs])
    return dict(pairs)


def _check_unique(place: str, names: list[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{place} has {', '.join(map(shown, twice[:8]))} twice", expected="each name once")

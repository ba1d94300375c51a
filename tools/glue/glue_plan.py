"""What config.yaml asks for: tables, and for each task and method the settings of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from glue_tasks import TASKS

from deltahub.errors import DataError, UsageError
from deltahub.tuning.methods import METHODS
from deltahub.tuning.settings import Settings

_KEYS = {"seeds", "settings", "tasks", "methods", "tables"}
_SETTINGS = {item.name for item in fields(Settings)} - {"seed"}


@dataclass(frozen=True)
class Cell:
    """One figure of a table: a task by a method.

    Attributes:
        rates: learning rates to try.
        mask: arguments of ``Mask.build`` or ``lift_mask``; empty takes their defaults.
        settings: all others, of `Settings`.
    """

    task: str
    method: str
    rates: tuple[float, ...]
    mask: Mapping[str, Any]
    settings: Mapping[str, Any]

    def run(self, rate: float, seed: int) -> Settings:
        return Settings(**{"head_lr": rate, **self.settings, "lr": rate, "seed": seed})


@dataclass(frozen=True)
class Table:
    """What to fill: ``cells`` by task, then by method, with ``seeds`` runs each."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]


def read(path: Path, name: str, tasks: Sequence[str] = (), methods: Sequence[str] = ()) -> Table:
    """Table ``name`` of a configuration file, or the part of it that has ``tasks`` and ``methods``.

    Raises:
        DataError: a file that is no configuration.
        UsageError: a table, task or method that is not in it, or settings that cannot be meant.
    """
    found = _document(path)
    tables = _part(path, found, "tables")
    if name not in tables:
        raise UsageError(f"table {name!r}", expected=f"one of {', '.join(map(str, tables))}")
    table = _part(path, tables, name)
    rows = _chosen("task", tasks, table.get("tasks"), TASKS, path)
    columns = _chosen("method", methods, table.get("methods"), METHODS, path)
    seeds = found.get("seeds")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise DataError(f"seeds in {path}", expected="a list of whole numbers", got=seeds)
    cells = tuple(_cell(path, found, task, method) for task in rows for method in columns)
    return Table(rows, columns, tuple(seeds), cells)


def _cell(path: Path, found: Mapping[str, Any], task: str, method: str) -> Cell:
    own = dict(_part(path, _part(path, found, "methods"), method))
    rates, mask = own.pop("lr", None), own.pop("mask", {})
    if not isinstance(rates, list) or not rates:
        raise DataError(f"lr of {method} in {path}", expected="a list of learning rates", got=rates)
    settings = {**found.get("settings", {}), **_part(path, _part(path, found, "tasks"), task), **own}
    if unknown := sorted(set(settings) - _SETTINGS):
        raise DataError(f"{path} has no setting {unknown[0]!r}", expected=f"one of {', '.join(sorted(_SETTINGS))}")
    if METHODS[method].mask == "gradient":
        raise UsageError(f"method {method!r}", expected="one that needs no texts of its own, such as pafi or lift")
    if not isinstance(mask, dict) or (mask and METHODS[method].mask is None):
        raise DataError(f"mask of {method} in {path}", expected="arguments of its recipe, for methods with a mask")
    cell = Cell(task, method, tuple(rates), mask, settings)
    for rate in rates:
        cell.run(rate, 0)  # refuses what cannot be before the first of many hours
    return cell


def _chosen(what: str, wanted: Sequence[str], listed: object, known: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    if not isinstance(listed, list) or not listed or not all(name in known for name in listed):
        raise DataError(f"{what}s of a table in {path}", expected=f"a list of some of {', '.join(known)}", got=listed)
    if unknown := sorted(set(wanted) - set(listed)):
        raise UsageError(f"{what} {unknown[0]!r}", expected=f"one of the table's: {', '.join(listed)}")
    return tuple(name for name in listed if not wanted or name in wanted)


def _document(path: Path) -> Mapping[str, Any]:
    try:
        import yaml
    except ImportError:
        raise UsageError(f"{path} needs PyYAML", hint="install deltahub[train]") from None
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"cannot read {path} ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(found, dict) or set(found) != _KEYS:
        raise DataError(f"{path}", expected=f"the keys {', '.join(sorted(_KEYS))}")
    return found


def _part(path: Path, found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = found.get(name)
    if not isinstance(part, dict):
        raise DataError(f"{name} in {path}", expected="names with a value each", got=type(part).__name__)
    return part

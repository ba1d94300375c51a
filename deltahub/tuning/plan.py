"""What a YAML file of many tasks says, checked before anything is trained.

base: ./model
hub: ./hub                      # leave it away to write files only
output: ./deltas                # default: beside the file
mask: ./shared.mask             # default: the method's own
defaults: {method: pafi, epochs: 3}
tasks:
  section: {data: section/train.jsonl, validation: section/validation.jsonl, test: section/test.jsonl}
  similar: {data: pairs.csv, kind: regression, text_pair: other, lr: 3e-3, tags: [prod], values: int8}
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from deltahub.errors import DataError, UsageError
from deltahub.names import check_tag, check_task, names_like
from deltahub.rounding import check_rounding
from deltahub.tuning.data.dataset import check_kind
from deltahub.tuning.settings import Settings

_TOP = ("base", "revision", "hub", "output", "mask", "defaults", "tasks")
_SETTINGS = tuple(item.name for item in fields(Settings))
COLUMNS = ("kind", "text", "text_pair", "label")
_SHARED = ("method", *COLUMNS, "tags", "values", "head_values", *_SETTINGS)
_OWN = ("data", "validation", "test")


@dataclass(frozen=True)
class Job:
    """One task of a plan: its files, and every setting of it."""

    task: str
    files: Mapping[str, Path]
    options: Mapping[str, Any]

    @property
    def method(self) -> str:
        return str(self.options.get("method", "pafi"))

    @property
    def settings(self) -> Settings:
        return Settings(**{name: value for name, value in self.options.items() if name in _SETTINGS})


@dataclass(frozen=True)
class Plan:
    """A YAML file that was read and checked."""

    base: str
    revision: str | None
    hub: str | None
    output: Path
    mask: Path | None
    jobs: tuple[Job, ...] = field(repr=False)


def read_plan(
    path: str | Path, *, base: str | None = None, hub: str | None = None, only: Sequence[str] = ("*",)
) -> Plan:
    """Reads a YAML file; everything in it is checked before anything is trained, but for the data.

    Args:
        base, hub: in place of the file's.
        only: globs of task names.

    Raises:
        DataError: a file that is no such plan; the message names the entry.
        UsageError: ``only`` that matches no task, or settings that cannot be meant.
    """
    path = Path(path)
    document = _mapping(_parse(path), f"{path}")
    _known(document, _TOP, f"{path}")
    for name in ("base", "revision", "hub", "output", "mask"):
        if (found := document.get(name)) is not None and (not isinstance(found, str) or "\0" in found):
            raise DataError(f"{path}: {name}", expected="text", got=str(found)[:40])
    defaults = _mapping(document.get("defaults") or {}, f"{path}: defaults")
    _known(defaults, _SHARED, f"{path}: defaults")
    tasks = _mapping(document.get("tasks"), f"{path}: tasks")
    if not tasks:
        raise DataError(f"{path}: tasks", expected="at least one task", got="none")
    jobs = tuple(_job(path, str(name), entry, defaults) for name, entry in tasks.items())
    wanted = {name for pattern in only for name in names_like(pattern, [job.task for job in jobs])}
    if not wanted:
        raise UsageError(f"--only {' '.join(only)}", expected=f"some of {', '.join(job.task for job in jobs)}")
    if not (found := base or document.get("base")):
        raise DataError(f"{path} names no base", expected="base: FOLDER or model id", hint="or give --base")
    mask = document.get("mask")
    target = hub or document.get("hub")
    return Plan(
        base=str(found) if base else _place(path, str(found)),
        revision=document.get("revision"),
        hub=target if target is None or hub or "://" in str(target) else str(path.parent / str(target)),
        output=path.parent / str(document.get("output") or f"{path.stem}-deltas"),
        mask=path.parent / str(mask) if mask else None,
        jobs=tuple(job for job in jobs if job.task in wanted),
    )


def _job(path: Path, name: str, entry: object, defaults: Mapping[str, Any]) -> Job:
    from deltahub.tuning.methods import methods_named

    what = f"{path}: task {name}"
    own = _mapping(entry, what)
    _known(own, (*_OWN, *_SHARED), what)
    if not own.get("data"):
        raise DataError(what, expected="data: a file to train on", got="none")
    options = {**defaults, **{key: value for key, value in own.items() if key not in _OWN}}
    tags = options.get("tags", [])
    if not isinstance(tags, list):
        raise DataError(f"{what}: tags", expected="a list", got=tags)
    try:
        check_task(name)
        for tag in tags:
            check_tag(str(tag))
        methods_named(str(options.get("method", "pafi")))
        check_kind(options.get("kind") or "text-classification")
        for what_of in ("values", "head_values"):
            check_rounding(what_of, options.get(what_of, "exact"))
        for column in ("text", "text_pair", "label"):
            if not isinstance(options.get(column) or "", str):
                raise UsageError(column, expected="the name of a column", got=options[column])
        if odd := [key for key in _OWN if own.get(key) and (not isinstance(own[key], str) or "\0" in own[key])]:
            raise UsageError(odd[0], expected="the name of a file", got=str(own[odd[0]])[:40])
        job = Job(name, {key: path.parent / str(own[key]) for key in _OWN if own.get(key)}, options)
        _ = job.settings
    except (UsageError, TypeError) as error:
        raise DataError(f"{what}: {error}") from None
    return job


def _parse(path: Path) -> object:
    import yaml

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_strict_loader())  # noqa: S506  (a SafeLoader)
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid YAML ({' '.join(str(error).split())[:160]})") from None


def _strict_loader() -> Any:
    """yaml's SafeLoader, which here takes ``1e-3`` for a number and refuses a key that stands twice."""
    import re

    import yaml

    class Strict(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if twice := [key for at, key in enumerate(keys) if key in keys[:at]]:
                raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} stands twice", node.start_mark)
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
    Strict.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Strict


def _mapping(found: object, what: str) -> dict[str, Any]:
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise DataError(what, expected="a mapping of names", got=type(found).__name__)
    return found


def _known(found: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    for name in found:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise DataError(f"{what}: {name!r} is not known", expected=f"some of {', '.join(names)}",
                            hint=f"is it {near[0]!r}?" if near else None)  # fmt: skip


def _place(path: Path, base: str) -> str:
    """A folder beside the plan where there is one, else a model id."""
    beside = path.parent / base
    return str(beside) if beside.exists() else base

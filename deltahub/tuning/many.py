"""Many tasks from one YAML file: trained one after another, pushed, and compared in one table.

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
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.errors import DataError, DeltahubError, UsageError
from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.names import check_tag, check_task, names_like
from deltahub.records import VersionRecord
from deltahub.rounding import check_rounding, round_delta
from deltahub.tuning import data
from deltahub.tuning.callbacks import Progress, Say
from deltahub.tuning.choice import mask_for
from deltahub.tuning.data.dataset import check_kind
from deltahub.tuning.metrics import primary
from deltahub.tuning.settings import Settings
from deltahub.tuning.train import identity, train

_TOP = ("base", "revision", "hub", "output", "mask", "defaults", "tasks")
_SETTINGS = tuple(item.name for item in fields(Settings))
_COLUMNS = ("kind", "text", "text_pair", "label")
_SHARED = ("method", *_COLUMNS, "tags", "values", "head_values", *_SETTINGS)
_OWN = ("data", "validation", "test")
HEAD = ("task", "method", "score", "validation", "test", "trained", "stored bytes", "version", "seconds")


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


@dataclass(frozen=True)
class Row:
    """What became of a task; ``error`` is empty where it was trained, or had been before."""

    task: str
    method: str
    score: str = ""
    validation: float | None = None
    test: float | None = None
    trained: int | None = None
    stored: int | None = None
    version: str = ""
    seconds: float | None = None
    error: str = ""

    def cells(self) -> list[object]:
        if self.error:
            return [self.task, self.method, "failed", *[None] * (len(HEAD) - 3)]
        scores = [None if value is None else f"{value:.4f}" for value in (self.validation, self.test)]
        seconds = "done before" if self.seconds is None else f"{self.seconds:.1f}"
        return [self.task, self.method, self.score, *scores, self.trained, self.stored, self.version or None, seconds]


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


def train_many(plan: Plan, base: Base, *, device: str = "cpu", say: Say, progress: Progress | None = None) -> list[Row]:
    """Trains and pushes every task of ``plan``; what was done before under the same settings is not done again."""
    mask = Mask.load(plan.mask) if plan.mask else None
    hub = Hub.open(plan.hub) if plan.hub else None
    plan.output.mkdir(parents=True, exist_ok=True)
    rows = []
    masks: dict[str, Mask | None] = {}
    for number, job in enumerate(plan.jobs, start=1):
        say(f"[{number}/{len(plan.jobs)}] {job.task}")
        try:
            if job.method not in masks:
                masks[job.method] = mask_for(job.method, base, mask if _uses_mask(job.method) else None)
            rows.append(_run(plan, job, base, masks[job.method], hub, device, say, progress))
        except Exception as error:  # noqa: BLE001  (whatever it was, the other tasks are to be trained)
            reason = str(error) if isinstance(error, DeltahubError) else f"{type(error).__name__}: {error}"
            reason = " ".join(reason.split())[:300]
            say(f"{job.task}: failed: {reason}")
            rows.append(Row(job.task, job.method, error=reason))
    return rows


def _run(
    plan: Plan,
    job: Job,
    base: Base,
    mask: Mask | None,
    hub: Hub | None,
    device: str,
    say: Say,
    progress: Progress | None,
) -> Row:
    columns = {name: job.options[name] for name in _COLUMNS if job.options.get(name) is not None}
    settings = job.settings
    rows, validation = data.load(job.files["data"], job.files.get("validation"), **columns, seed=settings.seed)
    test = data.read(job.files["test"], **columns, names=rows.names) if "test" in job.files else None
    path = plan.output / f"{job.task}.delta"
    start = time.perf_counter()
    run = identity(base, mask, job.method, settings, rows, validation, test)
    delta = _done(path, run)
    seconds = None
    if delta is None:
        delta = train(
            base, rows, validation, test=test, task=job.task, mask=mask, method=job.method, settings=settings,
            state=plan.output / f".{job.task}.{run[:12]}.state", resume=True, device=device, say=say, progress=progress,
        ).delta  # fmt: skip
        delta.save(path)
        for state in plan.output.glob(f".{job.task}.{'?' * 12}.state"):  # this run's, and what others left behind
            shutil.rmtree(state, ignore_errors=True)
        seconds = time.perf_counter() - start
    version, stored = _push(hub, delta, mask, job)
    score = primary(rows.kind, rows.names)
    metrics = delta.manifest.metrics
    trained = delta.manifest.method.get("trained_parameters")
    return Row(
        job.task, job.method, score, metrics.get(f"validation_{score}"), metrics.get(f"test_{score}"),
        trained if isinstance(trained, int) else None, stored or path.stat().st_size, version, seconds,
    )  # fmt: skip


def _push(hub: Hub | None, delta: Delta, mask: Mask | None, job: Job) -> tuple[str, int | None]:
    """Pushes a task unless the hub has this very version; an older call's tags are not moved back."""
    if hub is None:
        return "", None
    values, head = job.options.get("values", "exact"), job.options.get("head_values", "exact")
    tags = tuple(job.options.get("tags", ()))
    wanted = round_delta(delta, values, head).digest
    number = next((version.number for version in _versions(hub, delta.task) if version.digest == wanted), None)
    if number is None:
        number = hub.push(delta, tags=tags, mask=mask, values=values, head=head).number
    else:
        for tag in set(tags) - set(hub.tags(delta.task)):
            hub.tag(delta.task, number, tag)
    return f"{delta.task}@{number}", hub.version(f"{delta.task}@{number}").stored


def _versions(hub: Hub, task: str) -> list[VersionRecord]:
    try:
        return hub.versions(task)
    except DeltahubError:  # none yet, or a damaged one: the push has its own way with both
        return []


def _done(path: Path, run: str) -> Delta | None:
    """The delta of an earlier call, if it came of the same base, mask, data and settings."""
    try:
        delta = Delta.load(path)
    except DeltahubError:
        return None
    return delta if delta.manifest.method.get("run") == run else None


def _uses_mask(method: str) -> bool:
    from deltahub.tuning.methods import recipe_of

    return recipe_of(method) is not None


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

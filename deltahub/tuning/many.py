"""Many tasks of one YAML file: trained one after another, pushed, and compared in one table."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.errors import DeltahubError
from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.records import VersionRecord
from deltahub.rounding import round_delta
from deltahub.tuning import data
from deltahub.tuning.callbacks import Progress, Say
from deltahub.tuning.choice import mask_for
from deltahub.tuning.metrics import primary
from deltahub.tuning.plan import COLUMNS, Job, Plan
from deltahub.tuning.train import identity, train

HEAD = ("task", "method", "score", "validation", "test", "trained", "stored bytes", "version", "seconds")


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
    columns = {name: job.options[name] for name in COLUMNS if job.options.get(name) is not None}
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

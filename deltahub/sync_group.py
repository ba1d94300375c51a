"""The part of a sync that copies some versions under one lease, as a push adds one."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Self

from deltahub import garbage, keys, parallel, pushing, versions
from deltahub.errors import DeltahubError, FormatError
from deltahub.hub import Hub
from deltahub.manifest import BaseRef
from deltahub.presence import Presence
from deltahub.records import Blob, MaskRecord, VersionRecord
from deltahub.stores.cached import unkept
from deltahub.sync_plan import BAD, Copy, Failure, Step, TaskPlan

Steps = Sequence[tuple[TaskPlan, Step]]
_Job = Callable[[], DeltahubError | bool]

_BYTES = 256 << 20
_VERSIONS = 256
_SECTIONS = 4096
"""One lease covers no more than this: it must not get older than the grace period of a collector."""


@dataclass
class Notes:
    """What came of it so far.

    Attributes:
        copied: as in `SyncReport`, in any order.
        tags: too.
        failed: too.
        kept: digests of bases and masks whose records the target has.
        moved: blobs that travelled, and their bytes.
        left: blobs whose turn has not come, and their bytes.
    """

    copied: list[Copy] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    moved: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Self:
        return type(self)(*(copy.copy(getattr(self, one.name)) for one in fields(self)))

    def note_copy(self, one: TaskPlan, step: Step, number: int) -> None:
        one.used.add(number)
        one.numbers[step.record.number] = number
        self.copied.append(Copy(step.record.reference, f"{one.task}@{number}", step.record.digest))


def groups(plans: Sequence[TaskPlan]) -> Iterator[Steps]:
    """All steps of ``plans``, in their order, in groups that one lease may cover."""
    group: list[tuple[TaskPlan, Step]] = []
    size = sections = 0
    for one in plans:
        for step in one.steps:
            size += step.record.stored
            sections += len(step.record.sections)
            if group and (size > _BYTES or sections > _SECTIONS or len(group) == _VERSIONS):
                yield group
                group, size, sections = [], step.record.stored, len(step.record.sections)
            group.append((one, step))
    if group:
        yield group


class GroupCopy:
    """One group of versions on its way from ``source`` to ``target``, which may be in a transaction.

    Args:
        moved: is called as each blob has arrived, or was there.
    """

    def __init__(
        self, source: Hub, target: Hub, steps: Steps, notes: Notes, *, check: bool, moved: Callable[[], object]
    ) -> None:
        self._source, self._target, self._steps, self._notes = source, target, steps, notes
        self._check, self._moved = check, moved
        self._reading = unkept(source.store)
        self._bad: dict[str, DeltahubError] = {}  # of blobs and masks, by their key
        self._lock = threading.Lock()

    def run(self) -> None:
        """Lease, blobs, each record as soon as what it needs is there, another look at all blobs."""
        store = self._target.store
        at_once = parallel.threads(self._source.store, store)
        masks = self._masks()
        described = [mask.data for mask in masks.values() if mask.data]
        described += [section.data for _, step in self._steps for section in step.record.sections]
        wanted = {keys.blob(blob.blob): blob for blob in described}
        with garbage.lease(store, {blob.blob for blob in described}):
            jobs, needs = self._jobs(wanted, masks, Presence(store, "blobs", wanted))
            parallel.in_order(jobs, needs, at_once, partial(self._note, wanted))
            created = self._created_unseen()
            looks: dict[str, Callable[[], list[str]]] = {
                "lost": lambda: self._lost(wanted),
                "free": lambda: Presence(store, "tasks", created).absent(created),
            }
            found: dict[str, list[str]] = {}
            parallel.for_each(lambda name: looks[name](), looks, min(at_once, len(looks)), found.__setitem__)
            if taken := created.keys() - found["free"]:
                self._leave([created[key] for key in sorted(taken)])
                found["lost"] = self._lost(wanted)  # a look counts only after the last record
            parallel.for_each(lambda key: self._move(wanted[key]), found["lost"], at_once)

    def _masks(self) -> dict[str, MaskRecord]:
        """Records of masks that the target lacks, by digest; notes what is wrong with others."""
        used = {step.record.manifest.mask.digest for _, step in self._steps if step.record.manifest.mask}
        found: dict[str, MaskRecord] = {}
        for digest in sorted(used - self._notes.kept):
            key = keys.mask(digest)
            there = self._target.store.stat(key) is not None
            if there and not self._check:
                self._notes.kept.add(digest)
                continue
            try:
                found[digest] = self._source._mask(key)
                if found[digest].digest != digest:
                    self._bad[key] = FormatError(f"{key} is the record of another mask")
            except BAD as error:
                if not there:
                    self._bad[key] = error
        return found

    def _jobs(
        self, wanted: Mapping[str, Blob], masks: Mapping[str, MaskRecord], seen: Presence
    ) -> tuple[dict[str, _Job], dict[str, list[str]]]:
        """What is to be done, by the key of what it is about, and what must have been done before."""
        bases = {step.record.manifest.base.digest: step.record.manifest.base for _, step in self._steps}
        jobs: dict[str, _Job] = {
            keys.base(digest): partial(self._keep_base, base)
            for digest, base in bases.items()
            if digest not in self._notes.kept
        }
        needs: dict[str, list[str]] = {}
        for digest, mask in masks.items():
            jobs[keys.mask(digest)] = partial(self._keep_mask, mask)
            needs[keys.mask(digest)] = [keys.blob(mask.data.blob)] if mask.data else []
        jobs |= {key: partial(self._bring, seen, blob) for key, blob in wanted.items()}
        before: dict[str, str] = {}
        several = Counter(one.task for one, _ in self._steps)
        for one, step in self._steps:
            record, key = step.record, keys.version(one.task, step.record.number)
            needed = _needed(record)
            jobs[key] = partial(self._create, one, step, needed, look=several[one.task] > 1)
            first = [keys.base(record.manifest.base.digest), *needed, before.get(one.task, "")]
            needs[key] = [name for name in first if name in jobs]
            before[one.task] = key
        return jobs, needs

    def _note(self, wanted: Mapping[str, Blob], key: str, result: DeltahubError | bool) -> None:
        blob = wanted.get(key)
        if isinstance(result, DeltahubError):
            self._bad[key] = result
        elif blob:
            if result:
                self._notes.moved[blob.blob] = blob.stored
            self._notes.left.pop(blob.blob, None)
            self._moved()

    def _bring(self, seen: Presence, blob: Blob) -> DeltahubError | bool:
        """Copies a blob; False where it is there whole, or what is wrong with it in the source."""
        if versions.is_whole(self._target.store, blob.blob, blob.stored, check=self._check, seen=seen):
            return False
        try:
            self._move(blob)
        except BAD as error:
            return error
        return True

    def _move(self, blob: Blob) -> None:
        stored = versions.read_stored(self._reading, blob, self._source.store.url)
        self._target.store.put(keys.blob(blob.blob), stored)

    def _lost(self, wanted: Mapping[str, Blob]) -> list[str]:
        """Keys of blobs that a collector without a grace period took from under the lease."""
        good = [key for key in wanted if key not in self._bad]
        return Presence(self._target.store, "blobs", good).absent(good)

    def _keep_base(self, base: BaseRef) -> bool:
        pushing.keep_base(self._target.store, base)
        self._notes.kept.add(base.digest)
        return True

    def _keep_mask(self, mask: MaskRecord) -> DeltahubError | bool:
        error = self._bad.get(keys.mask(mask.digest))
        if error is None and mask.data:
            error = self._bad.get(keys.blob(mask.data.blob))
        if error is not None:
            return error
        self._target.store.put_new(keys.mask(mask.digest), mask.to_bytes())
        self._notes.kept.add(mask.digest)
        return True

    def _create(self, one: TaskPlan, step: Step, needed: list[str], *, look: bool) -> bool:
        error = next((self._bad[key] for key in needed if key in self._bad), None)
        if error is not None:
            with self._lock:
                self._notes.failed.append(Failure(step.record.reference, str(error)))
        elif step.new:
            self._create_new(one, step, look=look)
        return True

    def _create_new(self, one: TaskPlan, step: Step, *, look: bool) -> None:
        earlier = [number for of, number in one.numbers.items() if of < step.record.number]
        number = max(step.number, max(earlier, default=0) + 1)
        if number > 1 and number - 1 not in one.used:
            self._target.store.put_new(keys.copied(one.task, number), b"")
        made = pushing.create_record(self._target, replace(step.record, number=number), rely_on_equal=True, look=look)
        with self._lock:
            self._notes.note_copy(one, step, made)

    def _created_unseen(self) -> dict[str, tuple[TaskPlan, Step]]:
        """Versions that were created without a look for the ``.removed`` of their number, by its key.

        Of several for a task each was looked at before the next was created, so that they keep their order.
        """
        several = Counter(one.task for one, _ in self._steps)
        return {
            keys.tombstone(one.task, one.numbers[step.record.number]): (one, step)
            for one, step in self._steps
            if several[one.task] == 1 and step.new and step.record.number in one.numbers
        }

    def _leave(self, taken: Steps) -> None:
        """Gives versions whose number another used and removed meanwhile the next one."""
        for one, step in taken:
            number = one.numbers[step.record.number]
            self._target.store.delete(keys.version(one.task, number))
            self._notes.copied.remove(Copy(step.record.reference, f"{one.task}@{number}", step.record.digest))
            self._create_new(one, step, look=True)


def _needed(record: VersionRecord) -> list[str]:
    """Keys of the blobs, and of the record of the mask, without which a version cannot be read."""
    mask = record.manifest.mask
    return [keys.blob(section.data.blob) for section in record.sections] + ([keys.mask(mask.digest)] if mask else [])

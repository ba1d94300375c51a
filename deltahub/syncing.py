"""Copying what one hub has and another lacks, blob by blob, each verified on the way."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from deltahub import card, garbage, keys, parallel, pushing, records, versions
from deltahub.errors import DeltahubError, FormatError, UsageError
from deltahub.hub import Hub
from deltahub.presence import Presence
from deltahub.records import Blob, MaskRecord
from deltahub.stores.cached import unkept
from deltahub.sync_plan import BAD, Copy, Failure, Step, SyncReport, TaskPlan, plan
from deltahub.sync_signatures import CopiedSignatures, copy_signatures
from deltahub.versions import Progress

__all__ = ["Copy", "Failure", "SyncReport", "sync"]

_GROUP_BYTES = 256 << 20
_GROUP_VERSIONS = 64
"""One lease covers no more than this: it must not get older than the grace period of a collector."""
_NOTED = ("copied", "failed", "tags", "kept", "moved", "left")
"""What a group notes, to be forgotten where it has to begin anew."""


def sync(
    source: Hub,
    target: Hub,
    tasks: Sequence[str] = (),
    *,
    newest: bool = False,
    tags: bool = True,
    check: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> SyncReport:
    """Copies versions and tags from ``source`` to ``target``, with the same numbers, bytes and digests.

    Every blob and record is verified between the two; a version appears in the target when all that it needs is there.
    A run that was cut off goes on where it stopped: what was copied is not copied again. Nothing is ever removed from
    the target. A number that other content has there is not replaced: the version gets the next one.

    What is in both hubs is told from one listing of each: a version by its number, the length of its record and its
    MD5, a tag by its time, later in the target. The MD5 is known of hubs on this machine and on S3; elsewhere other
    content with a record of the same length is not noticed. Damage in the target never is.

    Args:
        tasks: names or globs; all tasks where there is none.
        newest: only the newest version of each task, and the tags that name it.
        tags: also the tags.
        check: read what looks alike in both hubs: records, tags, and the target's blobs, and heal those.
        dry_run: only tell what would be done.
        progress: gets bytes done, those that were there included, and bytes in all.

    Raises:
        UsageError: both are one hub.
        NotFoundError: no task is of that name.
        StoreError: one of the places failed; what was copied until then stays.
    """
    if source.store.url == target.store.url:
        raise UsageError(f"{source.store.url} is both hubs", expected="two hubs")
    plans, present = plan(source, target, tasks, newest=newest, tags=tags, check=check)
    copying = _Copying(source, target, check, newest, plans, progress)
    if dry_run:
        copying.pretend()
    else:
        for group in _groups(plans):
            copying.copy(group)
    signed = copy_signatures(source, target, plans, check=check, dry_run=dry_run)  # before any tag leads to them
    copying.set_tags(dry_run)
    return copying.report(present, signed)


def _groups(plans: list[TaskPlan]) -> Iterator[list[tuple[TaskPlan, Step]]]:
    group: list[tuple[TaskPlan, Step]] = []
    size = 0
    for one in plans:
        for step in one.steps:
            if group and (size + step.record.stored > _GROUP_BYTES or len(group) == _GROUP_VERSIONS):
                yield group
                group, size = [], 0
            group.append((one, step))
            size += step.record.stored
    if group:
        yield group


@dataclass
class _Copying:
    source: Hub
    target: Hub
    check: bool
    newest: bool
    plans: list[TaskPlan]
    progress: Progress | None
    copied: list[Copy] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    moved: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.failed = [failure for one in self.plans for failure in one.failed]
        steps = [step for one in self.plans for step in one.steps]
        self.left = {section.data.blob: section.data.stored for step in steps for section in step.record.sections}
        self.total = sum(self.left.values())
        self.at_once = parallel.threads(self.source.store, self.target.store)
        self.reading = unkept(self.source.store)
        self._lock = threading.Lock()

    def report(self, present: int, signed: CopiedSignatures) -> SyncReport:
        removed = tuple(reference for one in self.plans for reference in one.removed)
        self.copied.sort(key=lambda copy: copy.source)
        return SyncReport(
            tuple(self.copied), tuple(self.tags), present, removed, (*self.failed, *signed.failed), len(self.moved),
            sum(self.moved.values()), tuple(signed.copied), tuple(signed.dropped),
        )  # fmt: skip

    def pretend(self) -> None:
        """What `copy` would do, but for damage that it would find."""
        store = self.target.store
        wanted = {s.data.blob: s.data for one in self.plans for step in one.steps for s in step.record.sections}

        def look(name: str) -> bool:
            entry = store.stat(keys.blob(name))
            return entry is not None and entry.size == wanted[name].stored

        def note(name: str, there: bool) -> None:
            if not there:
                self.moved[name] = wanted[name].stored

        parallel.for_each(look, wanted, parallel.threads(store), note)
        for one in self.plans:
            for step in one.steps:
                if step.new:
                    self._note(one, step, step.number)

    def copy(self, group: list[tuple[TaskPlan, Step]]) -> None:
        """One group of versions, in one transaction of the target."""
        self._transacted(lambda: self._copy(group), [one for one, _ in group])

    def _transacted(self, work: Callable[[], None], plans: Sequence[TaskPlan]) -> None:
        """Runs ``work`` with ``target`` in a transaction; what it noted is forgotten where it has to begin anew."""
        target = self.target
        noted: list[tuple[object, str, object]] = [(self, name, copy.copy(getattr(self, name))) for name in _NOTED]
        noted += [(one, name, copy.copy(getattr(one, name))) for one in plans for name in ("used", "numbers")]

        def begin(inside: Hub) -> None:
            self.target = inside
            for of, name, before in noted:
                setattr(of, name, copy.copy(before))
            work()
            card.update(inside, sorted({one.task for one in plans}))

        try:
            target.transacted(begin)
        finally:
            self.target = target

    def _copy(self, group: list[tuple[TaskPlan, Step]]) -> None:
        """As a push does it: lease, blobs, records, another look at the blobs."""
        masks, bad = self._masks([step for _, step in group])
        wanted = {mask.data.blob: mask.data for mask in masks.values() if mask.data}
        wanted |= {section.data.blob: section.data for _, step in group for section in step.record.sections}
        with garbage.lease(self.target.store, set(wanted)):
            bring = partial(self._bring, Presence.of_blobs(self.target.store, wanted))
            parallel.for_each(bring, wanted.values(), self.at_once, partial(self._count, bad))
            self._keep_bases_and_masks(group, masks, bad)
            by_task: dict[str, list[tuple[TaskPlan, Step]]] = {}
            for one, step in group:
                by_task.setdefault(one.task, []).append((one, step))
            parallel.for_each(
                lambda task: self._create(by_task[task], bad), by_task, parallel.threads(self.target.store)
            )
            self._leave_removed([made[0] for made in by_task.values() if len(made) == 1])
            lost = [wanted[name] for name in wanted if name not in bad]
            parallel.for_each(
                partial(self._bring_lost, Presence.of_blobs(self.target.store, wanted)), lost, self.at_once
            )

    def _masks(self, steps: list[Step]) -> tuple[dict[str, MaskRecord], dict[str, DeltahubError]]:
        """Records of masks that the target lacks, by digest, and what is wrong with others."""
        digests = {step.record.manifest.mask.digest for step in steps if step.record.manifest.mask} - self.kept
        found: dict[str, MaskRecord] = {}
        bad: dict[str, DeltahubError] = {}
        for digest in sorted(digests):
            there = self.target.store.stat(keys.mask(digest)) is not None
            if there and not self.check:
                self.kept.add(digest)
                continue
            try:
                found[digest] = self.source._mask(keys.mask(digest))
                if found[digest].digest != digest:
                    bad[digest] = FormatError(f"{keys.mask(digest)} is the record of another mask")
            except BAD as error:
                if not there:
                    bad[digest] = error
        return found, bad

    def _bring(self, seen: Presence, blob: Blob) -> DeltahubError | bool:
        """Copies a blob; False where it is there whole, or what is wrong with it in the source."""
        if versions.is_whole(self.target.store, blob.blob, blob.stored, check=self.check, seen=seen):
            return False
        try:
            stored = versions.read_stored(self.reading, blob, self.source.store.url)
        except BAD as error:
            return error
        self.target.store.put(keys.blob(blob.blob), stored)
        return True

    def _count(self, bad: dict[str, DeltahubError], blob: Blob, result: DeltahubError | bool) -> None:
        if isinstance(result, DeltahubError):
            bad[blob.blob] = result
            return
        if result:
            self.moved[blob.blob] = blob.stored
        self.left.pop(blob.blob, None)
        if self.progress:
            self.progress(self.total - sum(self.left.values()), self.total)

    def _bring_lost(self, seen: Presence, blob: Blob) -> None:
        """Again what a collector without a grace period took from under the lease."""
        if seen.entry(keys.blob(blob.blob)) is None:
            self.target.store.put(keys.blob(blob.blob), versions.read_stored(self.reading, blob, self.source.store.url))

    def _keep_bases_and_masks(
        self, group: list[tuple[TaskPlan, Step]], masks: dict[str, MaskRecord], bad: dict[str, DeltahubError]
    ) -> None:
        for base in {step.record.manifest.base.digest: step.record.manifest.base for _, step in group}.values():
            if base.digest not in self.kept:
                pushing.keep_base(self.target.store, base)
                self.kept.add(base.digest)
        for digest, mask in masks.items():
            if mask.data and mask.data.blob in bad:
                bad.setdefault(digest, bad[mask.data.blob])
            if digest not in bad:
                self.target.store.put_new(keys.mask(digest), mask.to_bytes())
                self.kept.add(digest)

    def _create(self, chosen: list[tuple[TaskPlan, Step]], bad: dict[str, DeltahubError]) -> None:
        """Records of one task, in ascending order; ``bad`` has blobs and masks by digest."""
        for one, step in chosen:
            record = step.record
            mask = record.manifest.mask
            needed = [section.data.blob for section in record.sections] + ([mask.digest] if mask else [])
            error = next((bad[name] for name in needed if name in bad), None)
            if error is not None:
                with self._lock:
                    self.failed.append(Failure(record.reference, str(error)))
            elif step.new:
                self._create_one(one, step, look=len(chosen) > 1)

    def _leave_removed(self, made: list[tuple[TaskPlan, Step]]) -> None:
        """Gives versions whose number another used and removed meanwhile the next one; one for each task.

        Of several for a task each was looked at before the next was created, so that they keep their order.
        """
        numbers = {
            keys.tombstone(one.task, one.numbers[step.record.number]): (one, step)
            for one, step in made
            if step.new and step.record.number in one.numbers
        }
        seen = Presence(self.target.store, "tasks", numbers)
        for key, (one, step) in numbers.items():
            if seen.entry(key) is not None:
                taken = one.numbers[step.record.number]
                self.target.store.delete(keys.version(one.task, taken))
                self.copied.remove(Copy(step.record.reference, f"{one.task}@{taken}", step.record.digest))
                self._create_one(one, step, look=True)

    def _create_one(self, one: TaskPlan, step: Step, *, look: bool) -> None:
        earlier = [number for of, number in one.numbers.items() if of < step.record.number]
        number = max(step.number, max(earlier, default=0) + 1)
        if number > 1 and number - 1 not in one.used:
            self.target.store.put_new(keys.copied(one.task, number), b"")
        made = pushing.create_record(self.target, replace(step.record, number=number), rely_on_equal=True, look=look)
        self._note(one, step, made)

    def _note(self, one: TaskPlan, step: Step, number: int) -> None:
        one.used.add(number)
        one.numbers[step.record.number] = number
        with self._lock:
            self.copied.append(Copy(step.record.reference, f"{one.task}@{number}", step.record.digest))

    def set_tags(self, dry_run: bool) -> None:
        chosen = [(one, tag) for one in self.plans for tag in one.tags]

        def work() -> None:
            parallel.for_each(lambda item: self._set_tag(*item, dry_run), chosen, self.at_once)

        if dry_run:
            work()
        elif chosen:
            self._transacted(work, [one for one in self.plans if one.tags])
        self.tags.sort()

    def _set_tag(self, one: TaskPlan, tag: str, dry_run: bool) -> None:
        name = f"{one.task}:{tag}"
        try:
            named = self.source._read_tag(one.task, tag)
        except BAD as error:
            return self._fail(name, str(error))
        number = one.numbers.get(named)
        if number is None:  # told already where the target removed that version
            told = self.newest or f"{one.task}@{named}" in one.removed
            return None if told else self._fail(name, f"{name} names {one.task}@{named}, which was not copied")
        if self._target_tag(one.task, tag) == number:
            return None
        if not dry_run:
            self.target.store.put(keys.tag(one.task, tag), records.tag_bytes(number))
        with self._lock:
            self.tags.append(name)
        return None

    def _fail(self, what: str, problem: str) -> None:
        with self._lock:
            self.failed.append(Failure(what, problem))

    def _target_tag(self, task: str, tag: str) -> int | None:
        try:
            return self.target._read_tag(task, tag)
        except BAD:
            return None

"""Copying what one hub has and another lacks, blob by blob, each verified on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deltahub import card, keys, parallel, records
from deltahub.errors import UsageError
from deltahub.hub import Hub
from deltahub.sync_group import GroupCopy, Notes, Steps, groups
from deltahub.sync_plan import BAD, Copy, Failure, SyncReport, TaskPlan, plan
from deltahub.sync_signatures import CopiedSignatures, copy_signatures
from deltahub.versions import Progress

__all__ = ["Copy", "Failure", "SyncReport", "sync"]


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
        for group in groups(plans):
            copying.copy(group)
    signed = copy_signatures(source, target, plans, check=check, dry_run=dry_run)  # before any tag leads to them
    copying.set_tags(dry_run)
    return copying.report(present, signed)


@dataclass
class _Copying:
    source: Hub
    target: Hub
    check: bool
    newest: bool
    plans: list[TaskPlan]
    progress: Progress | None
    notes: Notes = field(default_factory=Notes)

    def __post_init__(self) -> None:
        self.notes.failed = [failure for one in self.plans for failure in one.failed]
        steps = [step for one in self.plans for step in one.steps]
        self.notes.left = {section.data.blob: section.data.stored for step in steps for section in step.record.sections}
        self.total = sum(self.notes.left.values())
        self._lock = threading.Lock()

    def report(self, present: int, signed: CopiedSignatures) -> SyncReport:
        removed = tuple(reference for one in self.plans for reference in one.removed)
        found = self.notes
        copied = sorted(found.copied, key=lambda copy: copy.source)
        return SyncReport(
            tuple(copied), tuple(found.tags), present, removed, (*found.failed, *signed.failed), len(found.moved),
            sum(found.moved.values()), tuple(signed.copied), tuple(signed.dropped),
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
                self.notes.moved[name] = wanted[name].stored

        parallel.for_each(look, wanted, parallel.threads(store), note)
        for one in self.plans:
            for step in one.steps:
                if step.new:
                    self.notes.note_copy(one, step, step.number)

    def copy(self, group: Steps) -> None:
        """One group of versions, in one transaction of the target."""

        def work() -> None:
            GroupCopy(self.source, self.target, group, self.notes, check=self.check, moved=self._tell).run()

        self._transacted(work, [one for one, _ in group])

    def _tell(self) -> None:
        if self.progress:
            self.progress(self.total - sum(self.notes.left.values()), self.total)

    def _transacted(self, work: Callable[[], None], plans: Sequence[TaskPlan]) -> None:
        """Runs ``work`` with ``target`` in a transaction; what it noted is forgotten where it has to begin anew."""
        target, notes = self.target, self.notes
        planned = [(one, one.used.copy(), one.numbers.copy()) for one in plans]

        def begin(inside: Hub) -> None:
            self.target, self.notes = inside, notes.copy()
            for one, used, numbers in planned:
                one.used, one.numbers = used.copy(), numbers.copy()
            work()
            card.update(inside, sorted({one.task for one in plans}))

        try:
            target.transacted(begin)
        finally:
            self.target = target

    def set_tags(self, dry_run: bool) -> None:
        chosen = [(one, tag) for one in self.plans for tag in one.tags]

        def work() -> None:
            at_once = parallel.threads(self.source.store, self.target.store)
            parallel.for_each(lambda item: self._set_tag(*item, dry_run), chosen, at_once)

        if dry_run:
            work()
        elif chosen:
            self._transacted(work, [one for one in self.plans if one.tags])
        self.notes.tags.sort()

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
            self.notes.tags.append(name)
        return None

    def _fail(self, what: str, problem: str) -> None:
        with self._lock:
            self.notes.failed.append(Failure(what, problem))

    def _target_tag(self, task: str, tag: str) -> int | None:
        try:
            return self.target._read_tag(task, tag)
        except BAD:
            return None

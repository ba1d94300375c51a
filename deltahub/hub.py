"""A hub: versions, tags and masks of tasks over one store. FORMAT.md says what lies where and why."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub import garbage, keys, pushing, records, verification, versions
from deltahub.delta import Delta
from deltahub.errors import FormatError, HubError, NotFoundError, UsageError
from deltahub.garbage import GcReport
from deltahub.keys import Listing
from deltahub.manifest import MaskRef
from deltahub.names import check_tag, check_task, parse_reference
from deltahub.pushing import TaskVersion
from deltahub.records import MaskRecord, VersionRecord
from deltahub.stores import Entry, Store, open_store
from deltahub.verification import VerifyReport
from deltahub.versions import Progress

if TYPE_CHECKING:
    from deltahub.checkpoint import Base
    from deltahub.mask import Mask
    from deltahub.report import Report

__all__ = ["Hub", "TaskInfo", "TaskVersion"]


@dataclass(frozen=True)
class TaskInfo:
    """A line of `Hub.tasks`: what a listing says, without any record.

    Attributes:
        task: its name.
        newest: number of its newest version.
        versions: how many there are.
        tags: their names.
        numbers: of the versions, ascending.
        moved: when each of ``tags`` was last written, seconds since 1970 by the clock of the store.
    """

    task: str
    newest: int
    versions: int
    tags: tuple[str, ...]
    numbers: tuple[int, ...] = ()
    moved: tuple[float, ...] = ()


class Hub:
    """Opened by `Hub.open`. Reading verifies every byte; writing is safe against other writers and against dying."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @staticmethod
    def open(url: str | Path, *, create: bool = True) -> Hub:
        """Opens the hub at ``url``: a folder, ``file:///...``, ``s3://bucket/prefix``, another of fsspec, or
        ``memory://name``.

        Args:
            create: start one where there is nothing yet.

        Raises:
            UsageError: a URL of another kind.
            NotFoundError: no hub there, and ``create`` is false.
            FormatError: other files are there, or a hub of a newer format.
        """
        store = open_store(url)
        try:
            head = store.get("hub.json", 0, 4096)
        except NotFoundError:
            if not create:
                raise NotFoundError(
                    f"no hub at {url}", hint="`deltahub push` makes one; --hub or $DELTAHUB_HUB name it"
                ) from None
            found = next(store.list(), None)
            if found is not None and store.stat("hub.json") is None:  # another may be opening it at this moment
                raise FormatError(
                    f"{url} has files but is no hub", got=found.key, hint="choose an empty folder"
                ) from None
            store.put_new("hub.json", records.HUB)
            head = store.get("hub.json", 0, 4096)
        if head != records.HUB:
            raise FormatError(
                f"hub.json at {url}", expected=records.HUB.decode(), got=ascii(head[:80]),
                hint="a newer deltahub made this hub: upgrade; or it is damaged",
            )  # fmt: skip
        return Hub(store)

    def push(
        self,
        delta: Delta,
        tags: Sequence[str] = (),
        *,
        mask: Mask | None = None,
        values: str = "exact",
        head: str = "exact",
        check: bool = False,
        progress: Progress | None = None,
    ) -> TaskVersion:
        """Stores ``delta`` as the next version of its task; a delta equal to the newest version is that version.

        Blobs that are lost or damaged, here or in an older version with the same content, are healed by the way. On a
        remote store those that are there are not read: one is taken for right by its size, and by its MD5 where the
        store tells it. `verify` reads everything.

        Args:
            check: read what is there also on a remote store, so that any damage is healed.
            tags: names to move to it.
            mask: must be given once where no recipe can rebuild it.
            values: ``bf16``, ``int8`` or ``int4`` rounds values, dense tensors and adapter factors, the latter two in
                groups of 256; what they become is then the task.
            head: the same for the head.

        Raises:
            UsageError: another rounding, or a tag that is no name.
            StoreError: the place failed; what was there before is whole, and nothing half-made can be seen.
            NotFoundError: the mask is needed and not in the hub.
            HubError: the task has no version numbers left.
        """
        return pushing.push(self, delta, tags, mask=mask, values=values, head=head, check=check, progress=progress)

    def pull(self, reference: str, progress: Progress | None = None) -> Delta:
        """The delta of ``"task"`` (newest), ``"task@3"`` or ``"task:tag"``, every digest checked.

        Raises:
            NotFoundError: no such task, version or tag; the message names what there is.
            FormatError, IntegrityError: something is damaged; the message names it.
        """
        return versions.read(self.store, self.version(reference), progress)

    def version(self, reference: str) -> VersionRecord:
        """The record that ``reference`` means, without its values."""
        task, which = parse_reference(reference)
        found = self._existing(task)
        if isinstance(which, str):
            if which not in found.tags:
                raise NotFoundError(f"{task} has no tag {which}", got=", ".join(sorted(found.tags)) or "no tags at all")
            which = self._read_tag(task, which)
        number = found.live[-1] if which is None else which
        _check_number(found, task, number)
        return self._record(task, number)

    def tasks(self) -> list[TaskInfo]:
        """Every task that has a version, by name; reads no records, so that thousands list at once."""
        return _infos(self.store.list("tasks"))

    def task(self, name: str) -> TaskInfo | None:
        """The line of one task; None where it has no version. Costs the same however many tasks there are."""
        return next(iter(_infos(self.store.list(f"tasks/{check_task(name)}"))), None)

    def versions(self, task: str) -> list[VersionRecord]:
        """Records of a task's live versions, oldest first."""
        return [self._record(task, number) for number in self._existing(check_task(task)).live]

    def tags(self, task: str) -> dict[str, int]:
        """Tags of a task and the versions that they name."""
        return {tag: self._read_tag(task, tag) for tag in sorted(self._listing(check_task(task)).tags)}

    def tag(self, task: str, number: int, tag: str) -> None:
        """Makes ``tag`` name version ``number``; moves it if it named another."""
        check_tag(tag)
        self.version(f"{task}@{number}")
        self.store.put(keys.tag(task, tag), records.tag_bytes(number))

    def untag(self, task: str, tag: str) -> None:
        """Raises NotFoundError where there is no such tag."""
        if check_tag(tag) not in self._listing(check_task(task)).tags:
            raise NotFoundError(f"{task} has no tag {tag}")
        self.store.delete(keys.tag(task, tag))

    def remove(self, reference: str, *, force: bool = False) -> list[str]:
        """Removes ``task@3``, or with ``task`` all its versions and tags. Numbers are never used again.

        Returns:
            The versions removed, ``["task@1", ...]``; `gc` gives their space back.

        Raises:
            HubError: a tag names a version, and ``force`` is false; nothing was removed.
        """
        task, which = parse_reference(reference)
        if isinstance(which, str):
            raise UsageError(
                f"remove {reference}", expected="TASK or TASK@N", hint="`deltahub tag --delete` drops a tag"
            )
        found = self._existing(task)
        if which is None:
            chosen, named = found.live, sorted(found.tags)
        else:  # the record is not read: a damaged one must be removable
            _check_number(found, task, which)
            chosen, named = [which], [tag for tag, number in self.tags(task).items() if number == which]
        if named and not force:
            raise HubError(f"{reference} is named by {', '.join(named)}", hint="move the tags, or use --force")
        for tag in named:
            self.store.delete(keys.tag(task, tag))
        for number in chosen:
            self.store.put_new(keys.tombstone(task, number), b"")
            self.store.delete(keys.version(task, number))
        return [f"{task}@{number}" for number in chosen]

    def push_mask(self, mask: Mask) -> None:
        """Keeps a mask; its positions only where no recipe can rebuild them. One that is damaged is healed."""
        pushing.push_mask(self, mask)

    def masks(self) -> list[MaskRecord]:
        """Records of all masks, by digest."""
        found = sorted(entry.key for entry in self.store.list("masks") if keys.digest_of(entry.key))
        return [self._mask(key) for key in found]

    def mask(self, digest: str) -> Mask | MaskRef:
        """The mask of that digest, verified; where only its recipe is kept, what `Mask.rebuild` needs."""
        record = self._mask(keys.mask(digest))
        return versions.read_mask(self.store, record) or MaskRef(record.digest, record.k, record.n, record.recipe)

    def gc(self, *, dry_run: bool = False, grace_seconds: float = 3600.0) -> GcReport:
        """Deletes blobs that no version or mask reaches, and what writers that died left; see `garbage.collect`."""
        return garbage.collect(self, dry_run=dry_run, grace_seconds=grace_seconds)

    def verify(self, progress: Progress | None = None) -> VerifyReport:
        """Reads, re-hashes and decodes everything; see `verification.verify`."""
        return verification.verify(self, progress)

    def report(self, base: Base | None = None) -> Report:
        """What the hub takes and saves; see `report.report`."""
        from deltahub.report import report

        return report(self, base)

    def _listing(self, task: str) -> Listing:
        return keys.listings(entry.key for entry in self.store.list(f"tasks/{task}")).get(task, Listing())

    def _existing(self, task: str) -> Listing:
        """Raises NotFoundError unless the task has a version."""
        found = self._listing(task)
        if not found.live:
            near = difflib.get_close_matches(task, [info.task for info in self.tasks()], 3, 0.5)
            raise NotFoundError(
                f"no task {task} in {self.store.url}",
                hint=f"did you mean {', '.join(near)}?" if near else "`deltahub list` shows what there is",
            )
        return found

    def _record(self, task: str, number: int) -> VersionRecord:
        key = keys.version(task, number)
        record = VersionRecord.from_bytes(self.store.get(key, 0, records.MOST_BYTES + 1), key)
        if (record.task, record.number) != (task, number):
            raise FormatError(key, expected=f"the record of {task}@{number}", got=record.reference)
        return record

    def _read_tag(self, task: str, tag: str) -> int:
        return records.read_tag(self.store.get(keys.tag(task, tag), 0, 4096), keys.tag(task, tag))

    def _mask(self, key: str) -> MaskRecord:
        try:
            return MaskRecord.from_bytes(self.store.get(key, 0, records.MOST_BYTES + 1), key)
        except NotFoundError:
            known = (keys.digest_of(entry.key) for entry in self.store.list("masks"))
            raise NotFoundError(
                f"no mask {key[6:22]} in the hub", got=_shown(digest[:16] for digest in known if digest)
            ) from None


def _infos(entries: Iterable[Entry]) -> list[TaskInfo]:
    """The line of every task that has a version, by name."""
    written = {entry.key: entry.modified for entry in entries}
    infos = []
    for task, listing in sorted(keys.listings(written).items()):
        if numbers := tuple(listing.live):
            tags = tuple(sorted(listing.tags))
            moved = tuple(written[keys.tag(task, tag)] for tag in tags)
            infos.append(TaskInfo(task, numbers[-1], len(numbers), tags, numbers, moved))
    return infos


def _check_number(found: Listing, task: str, number: int) -> None:
    if number not in found.live:
        raise NotFoundError(
            f"{task} has no version {number}", got=_shown(found.live), hint="it was never pushed, or removed"
        )


def _shown(items: Iterable[object]) -> str:
    found = [str(item) for item in items]
    return (", ".join(found[:12]) + (f", ... {len(found)} in all" if len(found) > 12 else "")) or "none"

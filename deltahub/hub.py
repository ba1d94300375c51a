"""A hub: versions, tags and masks of tasks over one store. FORMAT.md says what lies where and why."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from deltahub import changes, formats, garbage, keys, pushing, records, signatures, verification, versions
from deltahub.delta import Delta
from deltahub.errors import FormatError, NotFoundError
from deltahub.garbage import GcReport
from deltahub.keys import Listing, TaskInfo
from deltahub.manifest import MaskRef
from deltahub.names import check_task, parse_reference
from deltahub.presence import Remembered
from deltahub.pushing import TaskVersion
from deltahub.records import MaskRecord, VersionRecord
from deltahub.signatures import Signature
from deltahub.stores import Store, open_store
from deltahub.stores.base import transacted
from deltahub.stores.cached import BlobCache, wrapped
from deltahub.stores.paced import Pace
from deltahub.verification import VerifyReport
from deltahub.versions import Progress

if TYPE_CHECKING:
    from deltahub.checkpoint import Base
    from deltahub.mask import Mask
    from deltahub.report import Report
    from deltahub.signing import SigningKey, VerifyKey

__all__ = ["Hub", "TaskInfo", "TaskVersion"]

Result = TypeVar("Result")


class Hub:
    """Opened by `Hub.open`. Reading verifies every byte; writing is safe against other writers and against dying."""

    def __init__(self, store: Store, required: tuple[VerifyKey, ...] = ()) -> None:
        self.store = store
        self.required = required
        self.remembered = Remembered(store)

    @staticmethod
    def open(url: str | Path, *, create: bool = True, cache: BlobCache | None = None, pace: Pace | None = None) -> Hub:
        """Opens the hub at ``url``: a folder, ``file:///...``, ``s3://bucket/prefix``, ``hf://org/repo``, another
        of fsspec, or ``memory://name``.

        Args:
            create: start one where there is nothing yet.
            cache: what blobs are read through if the hub is remote.
            pace: a limit on bytes per second and on requests at once.

        Raises:
            UsageError: a URL of another kind.
            NotFoundError: no hub there, and ``create`` is false.
            FormatError: other files are there, hub.json is damaged, or (NewerFormatError) of a later deltahub.
        """
        store = wrapped(open_store(url), cache, pace)
        try:
            head = store.get("hub.json", 0, 4096)
        except NotFoundError as error:
            if not create:
                hint = error.hint or "`deltahub push` makes one; --hub or $DELTAHUB_HUB name it"
                raise NotFoundError(f"no hub at {url}", hint=hint) from None
            _start(store, url)
            head = store.get("hub.json", 0, 4096)
        formats.check_head(head, records.HUB, str(url))
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
        sign: SigningKey | None = None,
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
            sign: signs the version with this key, also one that is there already.

        Raises:
            UsageError: another rounding, or a tag that is no name.
            StoreError: the place failed; what was there before is whole, and nothing half-made can be seen.
            NotFoundError: the mask is needed and not in the hub.
            HubError: the task has no version numbers left.
        """
        return pushing.push(
            self, delta, tags, mask=mask, values=values, head=head, check=check, sign=sign, progress=progress
        )

    def pull(
        self, reference: str, progress: Progress | None = None, *, require: Sequence[VerifyKey] | None = None
    ) -> Delta:
        """The delta of ``"task"`` (newest), ``"task@3"`` or ``"task:tag"``, every digest checked.

        Args:
            require: public keys; one of them must have signed the version.

        Raises:
            NotFoundError: no such task, version or tag; the message names what there is.
            SignatureError: none of ``require`` signed it.
            FormatError, IntegrityError: something is damaged; the message names it.
        """
        trusted = self if require is None else self.requiring(require)
        return versions.read(self.store, trusted.version(reference), progress)

    def requiring(self, wanted: Sequence[VerifyKey]) -> Hub:
        """This hub, but `version` and `pull` refuse with SignatureError what none of the ``wanted`` keys signed.

        A signature says who made a version, not that it is the newest one: tags and removals are not signed.
        """
        return Hub(self.store, signatures.wanted_keys(wanted))

    def sign(self, reference: str, key: SigningKey) -> Signature:
        """Signs a version, after all of it was read and verified. Raises as `pull`."""
        record = self.version(reference)
        versions.read(self.store, record)
        return signatures.sign(self.store, record, key)

    def signatures(self, reference: str) -> list[Signature]:
        """Who signed a version, good or not, by key id."""
        record = self.version(reference)
        ids = self._listing(record.task).signatures.get(record.number, ())
        return signatures.of_record(self.store, record, ids)

    def version(self, reference: str) -> VersionRecord:
        """The record that ``reference`` means, without its values."""
        task, which = parse_reference(reference)
        found = self._existing(task)
        if isinstance(which, str):
            if which not in found.tags:
                raise NotFoundError(f"{task} has no tag {which}", got=", ".join(sorted(found.tags)) or "no tags at all")
            which = self._read_tag(task, which)
        number = found.live[-1] if which is None else which
        self._check_number(found, task, number)
        record = self._record(task, number)
        if self.required:
            signatures.check(self.store, record, found.signatures.get(number, ()), self.required)
        return record

    def tasks(self) -> list[TaskInfo]:
        """Every task that has a version, by name; reads no records, so that thousands list at once."""
        return keys.infos(self.store.list("tasks"))

    def task(self, name: str) -> TaskInfo | None:
        """The line of one task; None where it has no version. Costs the same however many tasks there are."""
        return next(iter(keys.infos(self.store.list(f"tasks/{check_task(name)}"))), None)

    def versions(self, task: str) -> list[VersionRecord]:
        """Records of a task's live versions, oldest first."""
        return [self._record(task, number) for number in self._existing(check_task(task)).live]

    def tags(self, task: str) -> dict[str, int]:
        """Tags of a task and the versions that they name."""
        return {tag: self._read_tag(task, tag) for tag in sorted(self._listing(check_task(task)).tags)}

    def tag(self, task: str, number: int, tag: str) -> None:
        """Makes ``tag`` name version ``number``; moves it if it named another."""
        changes.tag(self, task, number, tag)

    def untag(self, task: str, tag: str) -> None:
        """Raises NotFoundError where there is no such tag."""
        changes.untag(self, task, tag)

    def remove(self, reference: str, *, force: bool = False) -> list[str]:
        """Removes ``task@3``, or with ``task`` all its versions and tags. Numbers are never used again.

        Returns:
            The versions removed, ``["task@1", ...]``; `gc` gives their space back.

        Raises:
            HubError: a tag names a version, and ``force`` is false; nothing was removed.
        """
        return changes.remove(self, reference, force)

    def transacted(self, work: Callable[[Hub], Result]) -> Result:
        """What ``work`` gives on a hub like this one, whose writes become visible together at its end where the store
        can do that. It is run again from its start where another writer was first.

        Raises:
            ConflictError: others were first a dozen times; nothing was written.
        """
        return transacted(self.store, lambda inside: work(self if inside is self.store else Hub(inside, self.required)))

    def push_mask(self, mask: Mask) -> None:
        """Keeps a mask; its positions only where no recipe can rebuild them. One that is damaged is healed."""
        self.transacted(lambda inside: pushing.push_mask(inside, mask))

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
        return self.transacted(lambda inside: garbage.collect(inside, dry_run=dry_run, grace_seconds=grace_seconds))

    def verify(self, progress: Progress | None = None, *, repair: Hub | None = None) -> VerifyReport:
        """Reads, re-hashes and decodes everything; ``repair`` is a hub to mend it from. See `verification.verify`."""
        return verification.verify(self, progress, repair=repair)

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

    @staticmethod
    def _check_number(found: Listing, task: str, number: int) -> None:
        if number not in found.live:
            raise NotFoundError(
                f"{task} has no version {number}", got=_shown(found.live), hint="it was never pushed, or removed"
            )

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


def _start(store: Store, url: str | Path) -> None:
    """Makes a hub where there is nothing yet."""
    found = None
    with contextlib.suppress(NotFoundError):  # not even the repo
        found = next(store.list(), None)
    if found is not None and store.stat("hub.json") is None:  # another may be opening it at this moment
        raise FormatError(f"{url} has files but is no hub", got=found.key, hint="choose an empty folder")
    store.put_new("hub.json", records.HUB)


def _shown(items: Iterable[object]) -> str:
    found = [str(item) for item in items]
    return (", ".join(found[:12]) + (f", ... {len(found)} in all" if len(found) > 12 else "")) or "none"

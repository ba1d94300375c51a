"""Reading a whole hub again: every digest, every reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from deltahub import digest, keys, records, versions
from deltahub.digest import is_digest
from deltahub.errors import DeltahubError, HubError, NotFoundError
from deltahub.records import VersionRecord

if TYPE_CHECKING:
    from deltahub.hub import Hub

_MOST = records.MOST_BYTES + 1
_PIECE = 8 << 20  # a loose blob may have any size


@dataclass(frozen=True)
class Problem:
    """A bad object: its key, what is wrong in one line, and the versions or masks that need it."""

    key: str
    problem: str
    needed_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` read, and what it found bad; an empty ``problems`` is a sound hub.

    ``loose`` are keys of blobs that nothing needs and of unfinished writes: no harm, and `collect` deletes them.
    """

    versions: int
    masks: int
    blobs: int
    bytes: int
    problems: tuple[Problem, ...]
    loose: tuple[str, ...] = ()


def verify(hub: Hub, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Reads, re-hashes and decodes every object and follows every reference; bad content is reported, not raised.

    Nothing else reads all: a push and a sync take what a remote store has for right by its size.
    """
    check = _Check(hub, progress)
    check.guard("hub.json", check.head)
    below = [entry.key for entry in hub.store.list("tasks")]
    for key in below:
        task, kind, what = keys.parse(key)
        if kind == "tag":
            check.tag(task, what)
        elif kind == "version" and hub.store.stat(keys.tombstone_of(key)) is None:
            check.version(key)
        elif keys.past_numbers(key):
            check.report(key, HubError(f"{key} has a number that no version can have", hint="delete that file"))
    check.gaps(below)
    for folder, job in (("masks", check.mask), ("bases", check.base)):
        for entry in hub.store.list(folder):
            if keys.digest_of(entry.key):
                job(entry.key)
    check.named_bases()
    loose = [*check.loose_blobs(), *(entry.key for entry in hub.store.unfinished())]
    return VerifyReport(check.versions, check.masks, len(check.seen), check.bytes, tuple(check.problems), tuple(loose))


class _Check:
    def __init__(self, hub: Hub, progress: Callable[[int, int], None] | None) -> None:
        self.hub = hub
        self.progress = progress
        self.sizes = {e.key: e.size for e in hub.store.list("blobs") if is_digest(e.key.rpartition("/")[2])}
        self.total = sum(self.sizes.values())
        self.seen: set[str] = set()
        self.bases: dict[str, list[str]] = {}
        self.problems: list[Problem] = []
        self.versions = self.masks = self.bytes = 0

    def guard(self, key: str, job: Callable[[], object], owner: str = "") -> bool:
        """Runs ``job``; what it raises becomes a problem of ``key``."""
        try:
            job()
        except DeltahubError as error:
            self.report(key, error, *([owner] if owner else []))
            return False
        return True

    def report(self, key: str, error: DeltahubError, *owners: str) -> None:
        self.problems.append(Problem(key, str(error), owners))

    def base(self, key: str) -> None:
        self.guard(key, lambda: records.read_base(self.hub.store.get(key, 0, _MOST), key))

    def named_bases(self) -> None:
        """Nothing is read through the record of a base, but nobody else could tell people which base it was."""
        for name, owners in sorted(self.bases.items()):
            key = keys.base(name)
            if self.hub.store.stat(key) is None:
                self.report(key, NotFoundError(f"{key} is missing", hint="push a task of that base again"), *owners)

    def gaps(self, below: list[str]) -> None:
        """Numbers below the last one that have neither record nor ``.removed``; whoever deletes by hand leaves them.

        A version that a sync copied with its number says so beside its record: what is missing below it never was here.
        """
        copied = set(below)
        for task, found in sorted(keys.listings(below).items()):
            numbers = found.records | found.removed
            if len(numbers) < max(numbers, default=0):  # a removal may have come between the parts of one listing
                again = self.hub._listing(task)
                numbers |= again.records | again.removed
            last = 0
            for number in sorted(numbers):
                if number > last + 1 and keys.copied(task, number) not in copied:
                    span = f"{last + 1}" + (f" to {number - 1}" if number > last + 2 else "")
                    key = keys.version(task, last + 1)
                    hint = f"restore the file, or create the empty {keys.tombstone_of(key)}"
                    self.report(key, NotFoundError(f"{task} has lost version {span}, never removed", hint=hint))
                last = number

    def head(self) -> None:
        digest.check("hub.json", digest.of_bytes(records.HUB), digest.of_bytes(self.hub.store.get("hub.json", 0, 4096)))

    def tag(self, task: str, tag: str) -> None:
        self.guard(keys.tag(task, tag), lambda: self.hub.version(f"{task}:{tag}"))

    def version(self, key: str) -> None:
        found: list[VersionRecord] = []

        def read() -> None:
            record = VersionRecord.from_bytes(self.hub.store.get(key, 0, _MOST), key)
            if keys.version(record.task, record.number) != key:
                raise HubError(f"{key} is the record of {record.reference}", hint="it was copied or renamed")
            found.append(record)

        if not self.guard(key, read):
            return
        [record] = found
        self.versions += 1
        for section in record.sections:
            self.count(keys.blob(section.data.blob))
        self.bases.setdefault(record.manifest.base.digest, []).append(record.reference)
        mask = record.manifest.mask
        if mask is not None:
            self.guard(key, lambda: self.hub._mask(keys.mask(mask.digest)), record.reference)
        bad = [s.data.blob for s in record.sections if not self._blob(s.data, record.reference)]
        if not bad:
            self.guard(key, lambda: versions.read(self.hub.store, record), record.reference)

    def mask(self, key: str) -> None:
        def read() -> None:
            record = self.hub._mask(key)
            if key != keys.mask(record.digest):
                raise HubError(f"{key} is the record of mask {record.digest[:16]}", hint="it was copied or renamed")
            if record.data is not None:
                self.count(keys.blob(record.data.blob))
            versions.read_mask(self.hub.store, record)

        self.masks += 1
        self.guard(key, read)

    def _blob(self, blob: records.Blob, owner: str) -> bool:
        key = keys.blob(blob.blob)
        return self.guard(key, lambda: versions.decode(self.hub.store, blob, owner), owner)

    def count(self, key: str) -> None:
        if key not in self.seen:
            self.seen.add(key)
            self.bytes += self.sizes.get(key, 0)
            if self.progress:
                self.progress(self.bytes, self.total)

    def loose_blobs(self) -> list[str]:
        """Blobs that nothing needs; they are read too, since a later push may come to rely on them."""
        loose = sorted(self.sizes.keys() - self.seen)
        for key in loose:
            self.count(key)
            self.guard(key, partial(self._rehash, key))
        return loose

    def _rehash(self, key: str) -> None:
        pieces = (self.hub.store.get(key, start, _PIECE) for start in range(0, max(1, self.sizes[key]), _PIECE))
        digest.check(key, key.rpartition("/")[2], digest.of_stream(pieces))

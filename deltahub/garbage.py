"""Looking after a hub: reading everything again, and deleting what nothing can reach."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from deltahub import digest, keys, records, versions
from deltahub.digest import is_digest
from deltahub.errors import DeltahubError, HubError, NotFoundError
from deltahub.records import MaskRecord, VersionRecord
from deltahub.stores import Entry, Store

if TYPE_CHECKING:
    from deltahub.hub import Hub

_MOST = records.MOST_BYTES + 1


@dataclass(frozen=True)
class GcReport:
    """Keys ``deleted`` (or, in a dry run, due to be), their ``bytes``, and how many were ``spared`` for their youth."""

    deleted: tuple[str, ...]
    bytes: int
    spared: int


@dataclass(frozen=True)
class Problem:
    """A bad object: its key, what is wrong in one line, and the versions or masks that need it."""

    key: str
    problem: str
    needed_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` read, and what it found bad; an empty ``problems`` is a sound hub."""

    versions: int
    masks: int
    blobs: int
    bytes: int
    problems: tuple[Problem, ...]


def collect(hub: Hub, *, dry_run: bool, grace_seconds: float) -> GcReport:
    """Deletes blobs that no version, mask or push under way reaches, old leases, and what dead writers left.

    Nothing younger than ``grace_seconds`` by the store's own clock goes. The order makes it safe beside pushes: blobs
    are listed first and leases and records read after, so whatever a push announced before it looked is seen here.

    Raises:
        FormatError, IntegrityError: a record that cannot be read; nothing is deleted, it may reach anything.
    """
    store = hub.store
    now = _store_time(store)

    def old(entry: Entry) -> bool:
        return now - entry.modified >= grace_seconds

    blobs = [entry for entry in store.list("blobs") if is_digest(entry.key.rpartition("/")[2])]
    leases = list(store.list("pushing"))
    reached = _reached(store)
    for lease in leases:
        if not old(lease):
            reached |= _lease(store, lease.key)
    orphans = [entry for entry in blobs if entry.key.rpartition("/")[2] not in reached]
    loose = orphans + leases + list(store.unfinished())
    chosen = [entry for entry in loose if old(entry)]
    deleted = []
    for entry in chosen:
        if not dry_run:
            again = store.stat(entry.key) if entry in orphans else entry
            if again is None or not old(again):  # a push has written it anew since it was listed
                continue
            store.delete(entry.key)
        deleted.append(entry)
    return GcReport(tuple(entry.key for entry in deleted), sum(e.size for e in deleted), len(loose) - len(chosen))


def _store_time(store: Store) -> float:
    """The store's clock, read off an object just written: only it can be compared with other objects' times."""
    key = f"pushing/clock-{time.time_ns():x}.json"
    store.put(key, records.lease_bytes(set()), durable=False)
    found = store.stat(key)
    store.delete(key)
    return found.modified if found else time.time()


def _reached(store: Store) -> set[str]:
    found = set()
    for key in _records(store):
        try:
            data = store.get(key, 0, _MOST)
        except NotFoundError:
            continue  # removed since it was listed
        if key.startswith("masks/"):
            mask = MaskRecord.from_bytes(data, key)
            found |= {mask.data.blob} if mask.data else set()
        else:
            found |= {section.data.blob for section in VersionRecord.from_bytes(data, key).sections}
    return found


def _records(store: Store) -> Iterator[str]:
    yield from (entry.key for entry in store.list("tasks") if keys.parse(entry.key)[0] == "version")
    yield from (entry.key for entry in store.list("masks") if entry.key.endswith(".json"))


def _lease(store: Store, key: str) -> set[str]:
    try:
        return records.read_lease(store.get(key, 0, _MOST), key)
    except (NotFoundError, DeltahubError):
        return set()  # just dropped, or torn by a power cut: then its push is dead too


def verify(hub: Hub, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Reads, re-hashes and decodes every object and follows every reference; bad content is reported, not raised."""
    check = _Check(hub, progress)
    infos = hub.tasks()
    for info in infos:
        for entry in hub.store.list(f"tasks/{info.task}"):
            check.task_file(info.task, entry.key)
    for entry in hub.store.list("masks"):
        check.mask(entry.key)
    for entry in hub.store.list("bases"):
        check.base(entry.key)
    check.loose_blobs()
    return VerifyReport(check.versions, check.masks, len(check.seen), check.bytes, tuple(check.problems))


class _Check:
    def __init__(self, hub: Hub, progress: Callable[[int, int], None] | None) -> None:
        self.hub = hub
        self.progress = progress
        self.sizes = {entry.key: entry.size for entry in hub.store.list("blobs")}
        self.seen: set[str] = set()
        self.problems: list[Problem] = []
        self.versions = self.masks = self.bytes = 0

    def guard(self, key: str, job: Callable[[], object], owner: str = "") -> bool:
        """Runs ``job``; what it raises becomes a problem of ``key``."""
        try:
            job()
        except DeltahubError as error:
            self.problems.append(Problem(key, str(error), (owner,) if owner else ()))
            return False
        return True

    def base(self, key: str) -> None:
        self.guard(key, lambda: records.read_base(self.hub.store.get(key, 0, _MOST), key))

    def task_file(self, task: str, key: str) -> None:
        kind, what = keys.parse(key)
        if kind == "tag":
            self.guard(key, lambda: self.hub.version(f"{task}:{what}"))
        elif kind == "version":
            self.version(task, key)

    def version(self, task: str, key: str) -> None:
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
                self.progress(self.bytes, sum(self.sizes.values()))

    def loose_blobs(self) -> None:
        """Blobs that nothing needs are read too: a later push may come to rely on them."""
        for key in sorted(self.sizes.keys() - self.seen):
            self.count(key)
            self.guard(key, partial(self._rehash, key))

    def _rehash(self, key: str) -> None:
        digest.check(key, key.rpartition("/")[2], digest.of_bytes(self.hub.store.get(key)))

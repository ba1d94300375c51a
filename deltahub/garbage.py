"""Looking after a hub: reading everything again, and deleting what nothing can reach."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from deltahub import digest, keys, records, versions
from deltahub.digest import is_digest
from deltahub.errors import DeltahubError, FormatError, HubError, IntegrityError, NotFoundError, StoreError
from deltahub.records import MaskRecord, VersionRecord
from deltahub.stores import Entry, Store

if TYPE_CHECKING:
    from deltahub.hub import Hub

_MOST = records.MOST_BYTES + 1
_MARK_SECONDS = 60.0
"""No push waits longer for a collector, and none for one whose mark is older: it died."""
_DELETE_SECONDS = 20.0
"""How long a collector deletes under one mark; far below the former, since its last request may take a while."""
_POLL_SECONDS = 0.05


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
    """What `verify` read, and what it found bad; an empty ``problems`` is a sound hub.

    ``loose`` are keys of blobs that nothing needs and of unfinished writes: no harm, and `collect` deletes them.
    """

    versions: int
    masks: int
    blobs: int
    bytes: int
    problems: tuple[Problem, ...]
    loose: tuple[str, ...] = ()


@contextlib.contextmanager
def lease(store: Store, blobs: set[str]) -> Iterator[None]:
    """Tells collectors which blobs a push under way writes or relies upon; dropped when it ends, stale if it dies.

    A collector that marked itself before the lease could be seen may be deleting such a blob right now. It is waited
    for, so a blob that is there once the lease is held stays there.
    """
    key = keys.lease(secrets.token_hex(8))
    store.put(key, records.lease_bytes(blobs), durable=False)
    try:
        _await_collectors(store, key)
        yield
    finally:
        with contextlib.suppress(StoreError):  # collectors take a stale one; why the push failed matters more
            store.delete(key)


def _await_collectors(store: Store, lease_key: str) -> None:
    marks = list(store.list("collecting"))
    mine = store.stat(lease_key) if marks else None
    if mine is not None:
        marks = [mark for mark in marks if mine.modified - mark.modified < _MARK_SECONDS]
    waiting = [mark.key for mark in marks]
    deadline = time.monotonic() + _MARK_SECONDS
    while waiting and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        waiting = [key for key in waiting if store.stat(key) is not None]


def collect(hub: Hub, *, dry_run: bool, grace_seconds: float) -> GcReport:
    """Deletes blobs that no version, mask or push under way reaches, and what writers that died left behind.

    Nothing younger than ``grace_seconds`` by the store's own clock goes; a lease older than that counts no more, so
    0 is only for a hub that nobody pushes to meanwhile. It is safe beside pushes because it marks itself before it
    reads leases, and a push looks for marks after it wrote its lease: one of the two sees the other.

    Raises:
        FormatError, IntegrityError: a record that cannot be read; nothing is deleted, it may reach anything.
    """
    store = hub.store
    known: dict[str, set[str]] = {}
    if dry_run:
        chosen, spared = _survey(store, time.time(), grace_seconds, known)
        return GcReport(tuple(entry.key for entry in chosen), sum(entry.size for entry in chosen), spared)
    _reached(store, known)  # most of the reading, while no push has to wait
    deleted: list[Entry] = []
    while True:
        with _mark(store) as (now, deadline):
            chosen, spared = _survey(store, now, grace_seconds, known)
            if _delete(store, chosen, now - grace_seconds, deadline, deleted):
                return GcReport(tuple(entry.key for entry in deleted), sum(e.size for e in deleted), spared)


@contextlib.contextmanager
def _mark(store: Store) -> Iterator[tuple[float, float]]:
    """Keeps pushes waiting; gives the store's time, and when to stop deleting by `time.monotonic`."""
    deadline = time.monotonic() + _DELETE_SECONDS
    key = keys.mark(secrets.token_hex(8))
    store.put(key, records.lease_bytes(set()), durable=False)
    try:
        found = store.stat(key)
        yield (found.modified if found else time.time()), deadline
    finally:
        store.delete(key)


def _survey(store: Store, now: float, grace: float, known: dict[str, set[str]]) -> tuple[list[Entry], int]:
    """What may be deleted, and how many loose objects are too young for it.

    Leases are read before records, since a push drops its lease after it created its record.
    """
    blobs = [entry for entry in store.list("blobs") if is_digest(entry.key.rpartition("/")[2])]
    leases = list(store.list("pushing"))
    needed = set().union(*(_lease_blobs(store, entry.key) for entry in leases if now - entry.modified < grace))
    needed |= _reached(store, known)
    loose = [entry for entry in blobs if entry.key.rpartition("/")[2] not in needed]
    loose += leases + list(store.unfinished()) + _half_removed(store)
    loose += [entry for entry in store.list("collecting") if now - entry.modified >= _MARK_SECONDS]
    chosen = [entry for entry in loose if now - entry.modified >= grace]
    return chosen, len(loose) - len(chosen)


def _delete(store: Store, chosen: list[Entry], before: float, deadline: float, deleted: list[Entry]) -> bool:
    """False when the time was up before the work was done."""
    for entry in chosen:
        if time.monotonic() > deadline:
            return False
        if entry.key.startswith("blobs/"):
            again = store.stat(entry.key)
            if again is None or again.modified > before:  # written anew by a push whose lease is stale
                continue
        store.delete(entry.key)
        deleted.append(entry)
    return True


def _reached(store: Store, known: dict[str, set[str]]) -> set[str]:
    """Blobs of all records; ``known`` keeps what was read, since records never change."""
    found: set[str] = set()
    for key in _records(store):
        if key not in known:
            try:
                known[key] = _blobs_of(key, store.get(key, 0, _MOST))
            except NotFoundError:
                continue  # removed since it was listed
        found |= known[key]
    return found


def _blobs_of(key: str, data: bytes) -> set[str]:
    if key.startswith("masks/"):
        mask = MaskRecord.from_bytes(data, key)
        return {mask.data.blob} if mask.data else set()
    return {section.data.blob for section in VersionRecord.from_bytes(data, key).sections}


def _records(store: Store) -> list[str]:
    """Keys of the records of masks and of live versions."""
    below = {entry.key for entry in store.list("tasks")}
    live = [key for key in below if keys.parse(key)[1] == "version" and _tombstone(key) not in below]
    return live + [entry.key for entry in store.list("masks") if entry.key.endswith(".json")]


def _half_removed(store: Store) -> list[Entry]:
    """Records beside their tombstone: whoever removed them died in between."""
    below = {entry.key: entry for entry in store.list("tasks")}
    return [entry for key, entry in below.items() if keys.parse(key)[1] == "version" and _tombstone(key) in below]


def _tombstone(version_key: str) -> str:
    return version_key.removesuffix("json") + "removed"


def _lease_blobs(store: Store, key: str) -> set[str]:
    try:
        return records.read_lease(store.get(key, 0, _MOST), key)
    except (NotFoundError, FormatError, IntegrityError):
        return set()  # just dropped, or torn by a power cut: then its push is dead too


def verify(hub: Hub, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Reads, re-hashes and decodes every object and follows every reference; bad content is reported, not raised."""
    check = _Check(hub, progress)
    check.guard("hub.json", check.head)
    for entry in hub.store.list("tasks"):
        task, kind, what = keys.parse(entry.key)
        if kind == "tag":
            check.tag(task, what)
        elif kind == "version" and hub.store.stat(_tombstone(entry.key)) is None:
            check.version(entry.key)
    for entry in hub.store.list("masks"):
        check.mask(entry.key)
    for entry in hub.store.list("bases"):
        check.base(entry.key)
    loose = [*check.loose_blobs(), *(entry.key for entry in hub.store.unfinished())]
    return VerifyReport(check.versions, check.masks, len(check.seen), check.bytes, tuple(check.problems), tuple(loose))


class _Check:
    def __init__(self, hub: Hub, progress: Callable[[int, int], None] | None) -> None:
        self.hub = hub
        self.progress = progress
        self.sizes = {e.key: e.size for e in hub.store.list("blobs") if is_digest(e.key.rpartition("/")[2])}
        self.total = sum(self.sizes.values())
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
        digest.check(key, key.rpartition("/")[2], digest.of_bytes(self.hub.store.get(key)))

"""Deleting what nothing in a hub can reach, beside pushes that go on meanwhile."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltahub import keys, records
from deltahub.errors import FormatError, IntegrityError, NotFoundError, StoreError
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
    marks = [entry for entry in store.list("collecting") if keys.is_mark(entry.key)]
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
        StoreError: the place failed, or has no room even for the mark.
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
        with _mark(store, grace_seconds, deleted) as (now, deadline):
            chosen, spared = _survey(store, now, grace_seconds, known)
            if _delete(store, chosen, now - grace_seconds, deadline, deleted):
                return GcReport(tuple(entry.key for entry in deleted), sum(e.size for e in deleted), spared)


@contextlib.contextmanager
def _mark(store: Store, grace: float, deleted: list[Entry]) -> Iterator[tuple[float, float]]:
    """Keeps pushes waiting; gives the store's time, and when to stop deleting by `time.monotonic`."""
    deadline = time.monotonic() + _DELETE_SECONDS
    key = keys.mark(secrets.token_hex(8))
    _put_mark(store, key, grace, deleted)
    try:
        found = store.stat(key)
        yield (found.modified if found else time.time()), deadline
    finally:
        store.delete(key)


def _put_mark(store: Store, key: str, grace: float, deleted: list[Entry]) -> None:
    """On a full disk what writers that died left behind makes room: no record and no push relies on it."""
    mark = records.lease_bytes(set())
    try:
        store.put(key, mark, durable=False)
        return
    except StoreError:
        for entry in [entry for entry in store.unfinished() if time.time() - entry.modified >= grace]:
            store.delete(entry.key)
            deleted.append(entry)
    try:
        store.put(key, mark, durable=False)
    except StoreError as error:
        hint = "a collector must leave a mark first: free some bytes elsewhere on that disk, then run gc again"
        raise StoreError(error.problem, expected=f"room for {len(mark)} bytes", hint=hint) from error


def _survey(store: Store, now: float, grace: float, known: dict[str, set[str]]) -> tuple[list[Entry], int]:
    """What may be deleted, and how many loose objects are too young for it.

    Leases are read before records, since a push drops its lease after it created its record.
    """
    blobs = [entry for entry in store.list("blobs") if keys.is_blob(entry.key)]
    leases = [entry for entry in store.list("pushing") if keys.is_lease(entry.key)]
    needed = set().union(*(_lease_blobs(store, entry.key) for entry in leases if now - entry.modified < grace))
    needed |= _reached(store, known)
    loose = [entry for entry in blobs if entry.key.rpartition("/")[2] not in needed]
    loose += leases + list(store.unfinished()) + _half_removed(store)
    marks = [entry for entry in store.list("collecting") if keys.is_mark(entry.key)]
    loose += [entry for entry in marks if now - entry.modified >= _MARK_SECONDS]
    chosen = [entry for entry in loose if now - entry.modified >= grace]
    if not known and any(keys.is_blob(entry.key) for entry in chosen):
        _check_listed(store)
    return chosen, len(loose) - len(chosen)


def _check_listed(store: Store) -> None:
    """Asks in another way whether there is no record at all: an answer without anything may be no answer."""
    if _live({entry.key for entry in store.list()}):
        raise StoreError(
            f"{store.url} lists no record in its folders, and has some, so nothing is deleted",
            hint="check what answers there, then run gc again",
        )


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
    return _live({entry.key for folder in ("tasks", "masks") for entry in store.list(folder)})


def _live(found: set[str]) -> list[str]:
    versions = [key for key in found if keys.parse(key)[1] == "version" and keys.tombstone_of(key) not in found]
    return versions + [key for key in found if key.startswith("masks/") and keys.digest_of(key)]


def _half_removed(store: Store) -> list[Entry]:
    """Records and signatures beside their tombstone: whoever removed them died in between."""
    below = {entry.key: entry for entry in store.list("tasks")}
    kinds = ("version", "signature")
    return [entry for key, entry in below.items() if keys.parse(key)[1] in kinds and keys.tombstone_of(key) in below]


def _lease_blobs(store: Store, key: str) -> set[str]:
    try:
        return records.read_lease(store.get(key, 0, _MOST), key)
    except (NotFoundError, FormatError, IntegrityError):
        return set()  # just dropped, or torn by a power cut: then its push is dead too

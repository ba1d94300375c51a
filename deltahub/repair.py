"""Mending what is bad in a hub with good copies from another. Nothing that is good is ever replaced."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from deltahub import card, digest, formats, garbage, keys, pushing, records, signatures, versions
from deltahub.errors import (
    DeltahubError,
    FormatError,
    HubError,
    IntegrityError,
    NewerFormatError,
    NotFoundError,
    StoreError,
)
from deltahub.records import Blob, VersionRecord
from deltahub.stores.cached import uncached
from deltahub.verified import Problem, Repaired, lost_numbers, read_base, read_mask, read_version

if TYPE_CHECKING:
    from deltahub.hub import Hub

_BAD = (HubError, FormatError, IntegrityError)
_MOST = records.MOST_BYTES + 1
_PIECE = 8 << 20
_ANY_DIGEST = re.compile(rb"[0-9a-f]{64}")
_ORDER = ("head", "base", "mask", "blob", "version", "tag", "signature")


def mend(hub: Hub, other: Hub, problems: Iterable[Problem]) -> tuple[tuple[Repaired, ...], dict[str, str]]:
    """Fetches good copies of what ``problems`` name from ``other``, verifies them, and puts them into ``hub``.

    - A blob, mask or base is known by the digest that is its name.
    - A version record must be of the same delta as what can still be read of the damaged one. Where nothing can, it is
      taken if the versions that both hubs have under one number are the same, and `Repaired` says so. Its blobs come
      with it, and the whole delta is rebuilt and compared with its digest before the record is put.
    - A lost version is one that was neither removed nor never here: below others, or named by a tag.
    - A tag is taken if the version that it names is the same in both hubs.
    - What a newer deltahub wrote is not damaged, and what was removed here stays removed.

    Returns:
        What was mended, and by key why other things were not.

    Raises:
        StoreError: a place is out of reach altogether; what was mended until then stays.
    """
    chosen = sorted((problem.key for problem in problems), key=lambda key: _ORDER.index(_kind(key)))

    def work(inside: Hub) -> _Mending:
        mending = _Mending(inside, other)
        for key in chosen:
            mending.mend(key)
        card.update(inside, sorted({task for one in mending.repaired if (task := keys.parse(one.key)[0])}))
        return mending

    done = hub.transacted(work)
    return tuple(done.repaired), done.unmended


def _kind(key: str) -> str:
    if key == "hub.json":
        return "head"
    if keys.is_blob(key):
        return "blob"
    if keys.digest_of(key):
        return "mask" if key.startswith("masks/") else "base"
    return keys.parse(key)[1] if keys.parse(key)[1] in _ORDER else "tag"


class _Mending:
    def __init__(self, hub: Hub, other: Hub) -> None:
        self.hub, self.other = hub, other
        self.store, self.source = uncached(hub.store), other.store
        self.repaired: list[Repaired] = []
        self.unmended: dict[str, str] = {}
        self.jobs: dict[str, Callable[[str], None]] = {
            "head": self._head, "base": self._base, "mask": self._mask, "blob": self._blob,
            "version": self._version, "tag": self._tag, "signature": self._signature,
        }  # fmt: skip

    def mend(self, key: str) -> None:
        try:
            self.jobs[_kind(key)](key)
        except DeltahubError as error:
            if isinstance(error, StoreError):  # of one object only, if these come through
                self.store.stat("hub.json")
                self.source.stat("hub.json")
            self.unmended[key] = str(error)

    def _done(self, key: str, how: str) -> None:
        self.repaired.append(Repaired(key, how))

    def _head(self, key: str) -> None:
        url = self.store.url
        self._refuse_good(key, lambda: formats.check_head(self.store.get(key, 0, 4096), records.HUB, url))
        self.store.put(key, records.HUB)
        self._done(key, "written again: its bytes are always the same")

    def _base(self, key: str) -> None:
        self._refuse_good(key, lambda: read_base(self.store.get(key, 0, _MOST), key))
        data = self.source.get(key, 0, _MOST)
        read_base(data, key)
        self.store.put(key, data)
        self._done(key, "fetched, of that base")

    def _mask(self, key: str) -> None:
        self._refuse_good(key, lambda: versions.read_mask(self.store, read_mask(self.store.get(key, 0, _MOST), key)))
        data = self.source.get(key, 0, _MOST)
        record = read_mask(data, key)
        versions.read_mask(self.source, record)
        blobs = [record.data] if record.data else []
        with garbage.lease(self.store, {blob.blob for blob in blobs}):
            self._bring(blobs)
            self.store.put(key, data)
        self._done(key, "fetched, its positions have the mask's digest" if blobs else "fetched, of that mask")

    def _blob(self, key: str) -> None:
        name = key.rpartition("/")[2]
        self._refuse_good(key, lambda: digest.check(key, name, self._hash(key)))
        data = self.source.get(key)
        digest.check(f"{key} of {self.source.url}", name, digest.of_bytes(data))
        with garbage.lease(self.store, {name}):
            self.store.put(key, data)
        self._done(key, "fetched, its sha256 is its name")

    def _version(self, key: str) -> None:
        task, _, number = keys.parse(key)
        if self.store.stat(key) is None:
            self._lost(task)
            return
        left = self._left_of(key)
        record, data = self._fetch_record(key)
        agreed = _agree(left, record, data)
        if agreed is False:
            raise IntegrityError(
                f"{record.reference} of {self.source.url} is another version than what is left of the record here",
                hint="restore the file, or remove the version",
            )
        if agreed is None:
            self._check_numbers(task, int(number))
        self._put_record(key, record, data)
        how = "of the same delta" if agreed else "nothing was left here to compare it with"
        self._done(key, f"fetched with its blobs, {how}")

    def _left_of(self, key: str) -> bytes:
        """What a damaged record still says; nothing where it is the record of another version."""
        left = self.store.get(key, 0, _MOST)
        self._refuse_good(key, lambda: versions.read(self.store, read_version(left, key)))
        try:
            record = VersionRecord.from_bytes(left, key)
        except (FormatError, IntegrityError):
            return left
        return left if keys.version(record.task, record.number) == key else b""

    def _lost(self, task: str) -> None:
        """Brings the versions of ``task`` back that are neither here nor removed."""
        ours = [entry.key for entry in self.store.list(f"tasks/{task}")]
        theirs = self.other._listing(task)
        for span in lost_numbers(task, ours):
            found = sorted(number for number in theirs.records | theirs.removed if number in span)
            for number in found:
                try:
                    self._bring_back(task, number, removed=number in theirs.removed)
                except _BAD as error:
                    self.unmended[keys.version(task, number)] = str(error)
            first = next((number for number in span if number not in found), None)
            if first is not None:
                self.unmended[keys.version(task, first)] = f"{self.source.url} has no {task}@{first} either"

    def _bring_back(self, task: str, number: int, *, removed: bool) -> None:
        key = keys.version(task, number)
        if removed:
            self.store.put_new(keys.tombstone(task, number), b"")
            self._done(key, f"marked as removed, which it is in {self.source.url}")
            return
        record, data = self._fetch_record(key)
        self._check_numbers(task, number)
        self._put_record(key, record, data)
        self._done(key, "fetched with its blobs, nothing was left here to compare it with")

    def _tag(self, key: str) -> None:
        task, kind, tag = keys.parse(key)
        if kind != "tag":
            raise HubError(f"{key} is nothing that another hub has")
        try:
            number = self.hub._read_tag(task, tag)
        except (NotFoundError, FormatError, IntegrityError):
            self._fetch_tag(key, task, tag)
            return
        listing = self.hub._listing(task)
        if number in listing.records | listing.removed:
            what = "was removed" if number in listing.removed else "cannot be read"
            raise HubError(f"it names {task}@{number}, which {what}", hint="move the tag")
        self._bring_back(task, number, removed=number in self.other._listing(task).removed)
        self._lost(task)

    def _fetch_tag(self, key: str, task: str, tag: str) -> None:
        number = self.other._read_tag(task, tag)
        if self.hub._record(task, number).digest != self.other._record(task, number).digest:
            raise HubError(f"{task}@{number}, which it names in {self.source.url}, is another version here")
        self.store.put(key, records.tag_bytes(number))
        self._done(key, f"names {task}@{number}, as in {self.source.url}")

    def _signature(self, key: str) -> None:
        task, _, what = keys.parse(key)
        number, _, signer = what.partition(".")
        record = self.hub._record(task, int(number))
        [found] = signatures.of_record(self.source, record, [signer])
        if found.problem:
            raise IntegrityError(found.problem)
        self.store.put(key, self.source.get(key, 0, _MOST))
        self._done(key, "fetched, of that record")

    def _refuse_good(self, key: str, read: Callable[[], object]) -> None:
        """Raises HubError where ``read`` comes through: the object was mended meanwhile, or what needs it is wrong."""
        try:
            read()
        except NewerFormatError:
            raise
        except DeltahubError:
            return
        raise HubError(f"{key} itself is good", hint="run verify again; what needs it may be what is wrong")

    def _hash(self, key: str) -> str:
        entry = self.store.stat(key)
        if entry is None:
            raise NotFoundError(f"{key} is missing")
        return digest.of_stream(self.store.get(key, at, _PIECE) for at in range(0, max(1, entry.size), _PIECE))

    def _fetch_record(self, key: str) -> tuple[VersionRecord, bytes]:
        data = self.source.get(key, 0, _MOST)
        return read_version(data, key), data

    def _check_numbers(self, task: str, but: int) -> None:
        """Raises HubError where another number of the task means another version in the other hub."""
        ours, theirs = self.hub._listing(task), self.other._listing(task)
        for number in sorted(set(ours.live) & set(theirs.live) - {but}):
            try:
                same = self.hub._record(task, number).digest == self.other._record(task, number).digest
            except _BAD:
                continue  # told elsewhere, and no reason against this one
            if not same:
                raise HubError(
                    f"{task}@{number} is another version in {self.source.url}, so {task}@{but} may be as well",
                    hint="compare them, and copy the file yourself if it is the right one",
                )

    def _put_record(self, key: str, record: VersionRecord, data: bytes) -> None:
        """As a sync does it: lease, blobs, record, another look at the blobs and at who removed it meanwhile."""
        mask = record.manifest.mask
        if mask and self.store.stat(keys.mask(mask.digest)) is None:
            self._mask(keys.mask(mask.digest))
        pushing.keep_base(self.store, record.manifest.base)
        blobs = [section.data for section in record.sections]
        with garbage.lease(self.store, {blob.blob for blob in blobs}):
            self._bring(blobs)
            versions.read(self.store, record)
            self.store.put(key, data)
            self._bring(blobs)
        if self.store.stat(keys.tombstone_of(key)) is not None:
            self.store.delete(key)
            raise HubError(f"{record.reference} was removed meanwhile")

    def _bring(self, blobs: Iterable[Blob]) -> None:
        for blob in blobs:
            if not versions.is_whole(self.store, blob.blob, blob.stored, check=True):
                self.store.put(keys.blob(blob.blob), versions.read_stored(self.source, blob, self.source.url))


def _agree(left: bytes, record: VersionRecord, data: bytes) -> bool | None:
    """Whether what is left of a damaged record is of ``record``, whose bytes are ``data``; None where nothing tells.

    Its own checksum, the delta's digest, or the names of all its blobs are each enough: one of them may be what is
    damaged.
    """
    seal = data[len(b'{"check":"') :][:64]
    blobs = [section.data.blob.encode() for section in record.sections]
    if seal in left or record.digest.encode() in left or (blobs and all(blob in left for blob in blobs)):
        return True
    return False if _ANY_DIGEST.search(left) else None

"""What was read from remote hubs, kept on this machine: blobs by their sha256, shared by hubs and by processes."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deltahub import digest
from deltahub.stores import partial
from deltahub.stores.base import Store
from deltahub.stores.paced import Pace, PacedStore
from deltahub.stores.partial import Partial
from deltahub.stores.wrapped import WrappedStore

PIECE = 8 << 20
"""Bytes asked for at a time: so much is lost when a download breaks off, and asked for again."""
_KEY = re.compile(r"blobs/([0-9a-f]{2})/(\1[0-9a-f]{62})")
_SHARE = 16
"""A process looks at the folder again when it added this part of the limit; others may have added too."""

Get = Callable[[int, int], bytes]
"""Bytes ``[start, start + size)`` of a blob from where it really is."""


@dataclass(frozen=True)
class CacheUsage:
    """What a cache holds: whole blobs and unfinished downloads, and ``bytes`` of both, of ``limit_bytes``."""

    folder: str
    entries: int
    unfinished: int
    bytes: int
    limit_bytes: int


class BlobCache:
    """A folder of blobs, each hashed again whenever it is read; a damaged one is dropped and fetched anew.

    Threads and processes that want the same blob fetch it once: one downloads into ``<sha256>.part``, the others wait.
    What a process that died had received is continued by the next that wants the blob, in whatever process.

    A folder that cannot be written, or a full disk, is told once through ``warn``; then all goes on without.

    Args:
        folder: made when the first blob comes.
        limit_bytes: beyond it, those not read for the longest time go. It may be exceeded by a sixteenth for each
            process that writes, since none looks at the whole folder for every blob.
        warn: gets one line.
        patience: seconds without a byte after which a download of another is waited for no longer.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int,
        *,
        warn: Callable[[str], object] = warnings.warn,
        patience: float = 60.0,
    ) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._warn, self._patience = warn, patience
        self._lock = threading.Lock()
        self._room = 0
        self._writable = True

    def read(self, name: str) -> bytes | None:
        """The blob whose sha256 is ``name``; None where it is not there, or not right."""
        path = self._path(name)
        with contextlib.suppress(OSError):
            with open(path, "rb", buffering=0, opener=_no_link) as file:
                data = file.read()
                if digest.of_bytes(data) == name:
                    with contextlib.suppress(OSError):  # another's file: it only looks older than it is
                        os.utime(file.fileno())
                    return data
            path.unlink()
        return None

    def fetch(self, name: str, get: Get, size: int | None = None, *, keep: bool = True, piece: int = PIECE) -> bytes:
        """The blob ``name``, or its first ``size`` bytes: from here, or by ``get``, ``piece`` bytes at a time.

        What does not hash to ``name`` is given back as it came, and not kept: the caller knows what to call it.

        Args:
            keep: False leaves nothing here when the download is done.
        """
        part = self._hold(name)
        try:
            found = self.read(name)  # another may have brought it while this one waited
            if found is not None:
                return found[:size]
            data = self._download(part, get, size, piece)
            if part:
                good = digest.of_bytes(data) == name
                if part.resumed and not good:
                    part.clear()
                    data = self._download(part, get, size, piece)
                    good = digest.of_bytes(data) == name
                self._settle(part, name, len(data), keep=keep and good)
            return data
        finally:
            if part:
                part.close()
                if part.failure:
                    self._give_up(part.failure)

    def usage(self) -> CacheUsage:
        found = list(self._scan())
        parts = sum(path.suffix == ".part" for path, _ in found)
        size = sum(stat.st_size for _, stat in found)
        return CacheUsage(str(self.folder), len(found) - parts, parts, size, self.limit_bytes)

    def clear(self) -> CacheUsage:
        """Removes all but downloads under way; gives what was there."""
        before = self.usage()
        for path, _ in self._scan():
            _remove(path)
        return before

    def _path(self, name: str) -> Path:
        return self.folder / "blobs" / name[:2] / name

    def _hold(self, name: str) -> Partial | None:
        if not self._writable:
            return None
        path = self._path(f"{name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return partial.hold(path, self._patience)
        except OSError as error:
            self._give_up(error)
            return None

    def _download(self, part: Partial | None, get: Get, size: int | None, piece: int) -> bytes:
        if part and (part.have > self.limit_bytes or (size is not None and part.have > size)):
            part.clear()
        pieces = [part.content()] if part and part.have else []
        have = sum(map(len, pieces))
        while size is None or have < size:
            wanted = piece if size is None else min(piece, size - have)
            received = get(have, wanted)
            pieces.append(received)
            have += len(received)
            if part:
                if have > self.limit_bytes:
                    part.drop()
                part.append(received)
            if len(received) < wanted:
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _settle(self, part: Partial, name: str, size: int, *, keep: bool) -> None:
        if not keep:
            part.drop()
        elif part.finish(self._path(name)):
            self._added(size)

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            told, self._writable = not self._writable, False
        if not told:
            self._warn(f"the cache in {self.folder} cannot be used ({error.strerror or error}); going on without it")

    def _added(self, size: int) -> None:
        with self._lock:
            self._room -= size
            if self._room < 0:
                self._room = self._evict()

    def _evict(self) -> int:
        """Removes what was not read for the longest time; gives how many bytes may come until the next look."""
        found = sorted(self._scan(), key=lambda item: item[1].st_mtime_ns)
        total = sum(stat.st_size for _, stat in found)
        least = self.limit_bytes // _SHARE
        if total > self.limit_bytes:
            for path, stat in found:
                if total <= self.limit_bytes - least:
                    break
                if _remove(path):
                    total -= stat.st_size
        return min(self.limit_bytes - total, least)

    def _scan(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Every file of the cache; others' files are none of it, and stay."""
        for path in self.folder.glob("blobs/??/*"):
            if _KEY.fullmatch(f"blobs/{path.parent.name}/{path.name.removesuffix('.part')}"):
                with contextlib.suppress(OSError):  # removed meanwhile
                    yield path, path.lstat()


class CachedStore(WrappedStore):
    """A remote store whose blobs are read through a cache; nothing that is written goes there.

    Only blobs: their name is the digest of what they hold, so that no copy can be out of date. Records and tags are
    always asked for, since they come, move and go.

    Args:
        keep: False has broken downloads of large blobs continued, and keeps no copy.
        piece: bytes asked for at a time.
    """

    def __init__(self, inner: Store, cache: BlobCache, *, keep: bool = True, piece: int = PIECE) -> None:
        super().__init__(inner)
        self.cache, self.keep, self.piece = cache, keep, piece

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        match = _KEY.fullmatch(key)
        if match is None or size == 0:
            return self.inner.get(key, start, size)
        name = match[2]
        found = self.cache.read(name)
        if found is not None:
            return found[start:] if size is None else found[start : start + size]
        if start or (not self.keep and size is not None and size <= self.piece):
            return self.inner.get(key, start, size)

        def get(first: int, count: int) -> bytes:
            return self.inner.get(key, first, count)

        return self.cache.fetch(name, get, size, keep=self.keep, piece=self.piece)


def wrapped(store: Store, cache: BlobCache | None, pace: Pace | None) -> Store:
    """``store`` at that pace, and read through ``cache`` if it is remote."""
    if pace is not None:
        store = PacedStore(store, pace)
    if cache is not None and store.remote:
        store = CachedStore(store, cache, piece=min(PIECE, pace.step) if pace else PIECE)
    return store


def uncached(store: Store) -> Store:
    """What is really at the place: for whoever checks it."""
    return store.inner if isinstance(store, CachedStore) else store


def unkept(store: Store) -> Store:
    """For one who copies: a blob that is here is used, none is added, and large ones go on where they broke off."""
    if isinstance(store, CachedStore):
        return CachedStore(store.inner, store.cache, keep=False, piece=store.piece)
    return store


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _remove(path: Path) -> bool:
    try:
        if path.suffix == ".part":
            return partial.remove(path)
        path.unlink()
        return True
    except OSError:
        return False

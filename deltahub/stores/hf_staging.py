"""One state of a repo, and what is written on top of it until both become the next state."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltahub.digest import BytesLike
from deltahub.errors import NotFoundError
from deltahub.stores.base import AT_ONCE, Entry, check_folder, check_key

if TYPE_CHECKING:
    from deltahub.stores.hf import HfStore

_SINGLE = 4
"""So many objects of a folder are asked for one by one; then the folder is listed."""


class Snapshot:
    """A commit, read lazily; nothing in it changes, so nothing is asked for twice."""

    def __init__(self, store: HfStore, commit: str) -> None:
        self.commit = commit
        self._store = store
        self._lock = threading.Lock()
        self._listed: dict[str, dict[str, Entry]] = {}
        self._single: dict[str, Entry | None] = {}

    def folder(self, folder: str) -> dict[str, Entry]:
        """Every object in ``folder``, which is ``""`` for all, by key."""
        prefix = check_folder(folder)
        for listed, entries in list(self._listed.items()):
            if prefix.startswith(check_folder(listed)):
                return {key: entry for key, entry in entries.items() if key.startswith(prefix)}
        found = {entry.key: entry for entry in self._store.entries(folder, self.commit)}
        self._listed[folder] = found
        return found

    def stat(self, key: str) -> Entry | None:
        top, _, _ = check_key(key).rpartition("/")
        top = top.partition("/")[0] if key.startswith("blobs/") else top
        for listed, entries in list(self._listed.items()):
            if key.startswith(check_folder(listed)):
                return entries.get(key)
        if key not in self._single and top:
            with self._lock:  # of several threads one lists
                if top not in self._listed and self._asked(top) >= _SINGLE:
                    self.folder(top)
            if top in self._listed:
                return self._listed[top].get(key)
        if key not in self._single:
            self._single[key] = self._store.entry(key, self.commit)
        return self._single[key]

    def get(self, key: str, start: int, size: int | None) -> bytes:
        return self._store.read(key, start, size, self.commit)

    def _asked(self, folder: str) -> int:
        return sum(key.startswith(f"{folder}/") for key in list(self._single))


class Staging:
    """The store within a transaction; ``written`` has what is to be committed, None for what is to be deleted."""

    remote = True
    at_once = AT_ONCE

    def __init__(self, store: HfStore, snapshot: Snapshot) -> None:
        self.written: dict[str, bytes | None] = {}
        self.snapshot = snapshot
        self._store = store
        self._times: dict[str, float] = {}
        self._lock = threading.RLock()

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def page(self) -> str | None:
        return self._store.page

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Staging]:
        yield self

    def list(self, folder: str = "") -> Iterator[Entry]:
        found = dict(self.snapshot.folder(folder))
        prefix = check_folder(folder)
        with self._lock:
            written = [key for key in self.written if key.startswith(prefix) and not self._store.is_hidden(key)]
            for key in written:
                entry = self._written(key)
                found.pop(key, None)
                if entry:
                    found[key] = entry
        return iter(found.values())

    def stat(self, key: str) -> Entry | None:
        with self._lock:
            if check_key(key) in self.written:
                return self._written(key)
        return self.snapshot.stat(key)

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        check_key(key)
        with self._lock:
            written, data = key in self.written, self.written.get(key)
        if not written:
            return self.snapshot.get(key, start, size)
        if data is None:
            raise NotFoundError(f"{self.url} has no {key}")
        return data[start:] if size is None else data[start : start + size]

    def put(self, key: str, data: BytesLike, *, durable: bool = True) -> None:
        check_key(key)
        self._store.check_writable()
        with self._lock:
            self.written[key], self._times[key] = bytes(data), time.time()

    def put_new(self, key: str, data: BytesLike) -> bool:
        there = self.snapshot.stat(key) is not None
        with self._lock:
            if self.written.get(key) is not None or (there and key not in self.written):
                return False
            self.put(key, data)
            return True

    def delete(self, key: str) -> None:
        there = self.snapshot.stat(key) is not None
        with self._lock:
            if there:
                self._store.check_writable()
                self.written[key] = None
            else:
                self.written.pop(key, None)

    def unfinished(self) -> Iterator[Entry]:
        return iter(())

    def _written(self, key: str) -> Entry | None:
        data = self.written[key]
        return None if data is None else Entry(key, len(data), self._times[key])

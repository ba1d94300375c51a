"""A store in this process's memory, for tests and for programs that need no disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from deltahub.digest import BytesLike
from deltahub.errors import NotFoundError
from deltahub.stores.base import Entry, WriteByWrite, check_folder, check_key


class MemoryStore(WriteByWrite):
    """Lives as long as the object does; `stores.open_store` keeps the named ones until the process ends."""

    remote = False
    at_once = 1

    def __init__(self, name: str = "unnamed") -> None:
        self._name = name
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"memory://{self._name}"

    def list(self, folder: str = "") -> Iterator[Entry]:
        prefix = check_folder(folder)
        with self._lock:
            found = [(key, *entry) for key, entry in self._objects.items() if key.startswith(prefix)]
        yield from (Entry(key, len(data), modified) for key, data, modified in found)

    def stat(self, key: str) -> Entry | None:
        with self._lock:
            found = self._objects.get(check_key(key))
        return None if found is None else Entry(key, len(found[0]), found[1])

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        with self._lock:
            found = self._objects.get(check_key(key))
        if found is None:
            raise NotFoundError(f"{self.url} has no {key}")
        return found[0][start:] if size is None else found[0][start : start + size]

    def put(self, key: str, data: BytesLike, *, durable: bool = True) -> None:
        with self._lock:
            self._objects[check_key(key)] = (bytes(data), time.time())

    def put_new(self, key: str, data: BytesLike) -> bool:
        with self._lock:
            if check_key(key) in self._objects:
                return False
            self._objects[key] = (bytes(data), time.time())
            return True

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(check_key(key), None)

    def unfinished(self) -> Iterator[Entry]:
        return iter(())

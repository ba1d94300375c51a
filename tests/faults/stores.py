"""Stores that fail, die, hang, forget and lie, each around one in memory."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator

from deltahub.digest import BytesLike
from deltahub.errors import StoreError
from deltahub.hub import Hub
from deltahub.stores import Entry, MemoryStore, Store
from deltahub.stores.wrapped import WrappedStore

SOAK = bool(os.environ.get("DELTAHUB_SOAK"))
"""Every moment and thousands of rounds, instead of a sample of them."""
YOUNG = 3600.0
"""A grace that makes what `copy_of` aged old, and what is written during the test young."""
Before = Callable[[int, str, str], None]


class Killed(BaseException):
    """No `except Exception` may stop it, as none stops a power cut."""


class Watched(WrappedStore):
    """Calls ``before(number, method, key)`` ahead of every operation; threads take turns."""

    def __init__(self, inner: Store, before: Before, *, remote: bool = False) -> None:
        super().__init__(inner)
        self.before, self.count, self._remote = before, 0, remote
        self._turn = threading.RLock()

    @property
    def remote(self) -> bool:
        return self._remote

    @property
    def at_once(self) -> int:
        return 8 if self._remote else 1

    def _do(self, method: str, *arguments: object, **options: object) -> object:
        with self._turn:
            self.before(self.count, method, str(arguments[0]) if arguments else "")
            self.count += 1
            return getattr(self.inner, method)(*arguments, **options)

    def list(self, folder: str = "") -> Iterator[Entry]:
        return self._do("list", folder)

    def stat(self, key: str) -> Entry | None:
        return self._do("stat", key)

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        return self._do("get", key, start, size)

    def put(self, key: str, data: BytesLike, *, durable: bool = True) -> None:
        self._do("put", key, data, durable=durable)

    def put_new(self, key: str, data: BytesLike) -> bool:
        return self._do("put_new", key, data)

    def delete(self, key: str) -> None:
        self._do("delete", key)

    def unfinished(self) -> Iterator[Entry]:
        return self._do("unfinished")


class Lying(WrappedStore):
    """Gives ``wrong(data)`` for the object of the ``last``-th read, once or for ever."""

    def __init__(self, inner: Store, last: int, wrong: Callable[[bytes], bytes], *, once: bool) -> None:
        super().__init__(inner)
        self.last, self.wrong, self.once, self.count, self.key = last, wrong, once, 0, ""

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        data = self.inner.get(key, start, size)
        self.count += 1
        if self.count - 1 == self.last:
            self.key = key
            return self.wrong(data)
        return self.wrong(data) if key == self.key and not self.once else data


class Stale(WrappedStore):
    """Lists what was there when it was made: not what came since, and still what went."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self._then = list(inner.list())

    def list(self, folder: str = "") -> Iterator[Entry]:
        return (entry for entry in self._then if entry.key.startswith(f"{folder}/" if folder else ""))


class Skewed(WrappedStore):
    """A store whose clock is ``ahead`` of this machine's, in seconds."""

    def __init__(self, inner: Store, ahead: float) -> None:
        super().__init__(inner)
        self.ahead = ahead

    def _shift(self, entry: Entry) -> Entry:
        return Entry(entry.key, entry.size, entry.modified + self.ahead, entry.md5)

    def list(self, folder: str = "") -> Iterator[Entry]:
        return map(self._shift, self.inner.list(folder))

    def stat(self, key: str) -> Entry | None:
        found = self.inner.stat(key)
        return found and self._shift(found)


class Lockless(WrappedStore):
    """Forgets leases and marks as soon as they are written: no push and no collector sees another."""

    def put(self, key: str, data: BytesLike, *, durable: bool = True) -> None:
        if not key.startswith(("pushing/", "collecting/")):
            self.inner.put(key, data, durable=durable)


def dying_at(last: int) -> Before:
    def before(number: int, *_: str) -> None:
        if number >= last:
            raise Killed

    return before


def failing_at(last: int) -> Before:
    def before(number: int, *_: str) -> None:
        if number == last:
            raise StoreError("no room")

    return before


def silent_from(last: int) -> Before:
    """The place does not answer any more, so that nothing can be cleaned up either."""

    def before(number: int, *_: str) -> None:
        if number >= last:
            raise StoreError("unreachable")

    return before


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """As long as ``data``."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :] if data else data


def other(data: bytes) -> bytes:
    """As long as ``data``, and nothing of it."""
    return random.Random(len(data)).randbytes(len(data))


def copy_of(store: MemoryStore, aged: float = 0.0, name: str = "copy") -> MemoryStore:
    """The same objects, ``aged`` seconds older."""
    made = MemoryStore(name)
    made._objects = {key: (data, modified - aged) for key, (data, modified) in store._objects.items()}
    return made


def some(count: int, few: int = 5) -> list[int]:
    """Of the numbers below ``count`` all in the long form, else the first, the last and the same ``few`` others."""
    if SOAK or count <= few + 2:
        return list(range(count))
    return sorted({0, count - 1, *random.Random(count).sample(range(1, count - 1), few)})


def every_operation(
    store: MemoryStore,
    job: Callable[[Hub], object],
    at: Callable[[int], Before],
    *,
    remote: bool = False,
    few: int = 5,
) -> Iterator[tuple[MemoryStore, BaseException | None]]:
    """Runs ``job`` on copies of ``store``, each disturbed at another operation; the last copy not at all."""
    watched = Watched(copy_of(store), lambda *_: None, remote=remote)
    job(Hub(watched))
    assert watched.count > 1
    for number in some(watched.count, few):
        inner = copy_of(store)
        try:
            job(Hub(Watched(inner, at(number), remote=remote)))
        except (Killed, StoreError) as error:
            yield inner, error
        else:
            yield inner, None
    yield watched.inner, None

"""A store that looks like a remote one, and tells what was asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from deltahub.digest import BytesLike, of_bytes
from deltahub.stores import Entry, Store
from deltahub.stores.wrapped import WrappedStore


class RemoteStore(WrappedStore):
    """``asked`` has (method, key) of every call, ``moved`` the bytes that came; ``before_get`` is called first."""

    def __init__(self, inner: Store, before_get: Callable[[int], object] = lambda count: None) -> None:
        super().__init__(inner)
        self.asked: list[tuple[str, str]] = []
        self.moved = 0
        self.before_get = before_get

    @property
    def remote(self) -> bool:
        return True

    @property
    def at_once(self) -> int:
        return 4

    def list(self, folder: str = "") -> Iterator[Entry]:
        self.asked.append(("list", folder))
        return self.inner.list(folder)

    def stat(self, key: str) -> Entry | None:
        self.asked.append(("stat", key))
        return self.inner.stat(key)

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        self.asked.append(("get", key))
        self.before_get(sum(method == "get" for method, _ in self.asked))
        data = self.inner.get(key, start, size)
        self.moved += len(data)
        return data

    def put(self, key: str, data: BytesLike, *, durable: bool = True) -> None:
        self.asked.append(("put", key))
        self.inner.put(key, data, durable=durable)


def put_blob(store: Store, data: bytes) -> str:
    """Its key."""
    name = of_bytes(data)
    key = f"blobs/{name[:2]}/{name}"
    store.put(key, data)
    return key

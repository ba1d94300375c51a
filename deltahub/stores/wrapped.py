"""A store around another: what a cache, a limit or a watcher has in common."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Self

from deltahub.digest import BytesLike
from deltahub.stores.base import Entry, Store


class WrappedStore:
    """Hands everything on to ``inner``; a subclass changes what it is for."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def remote(self) -> bool:
        return self.inner.remote

    @property
    def at_once(self) -> int:
        return self.inner.at_once

    @property
    def page(self) -> str | None:
        return self.inner.page

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Store]:
        """The store within is wrapped as this one is, and shares what this one has."""
        with self.inner.transaction() as inside:
            yield self if inside is self.inner else self._around(inside)

    def list(self, folder: str = "") -> Iterator[Entry]:
        return self.inner.list(folder)

    def stat(self, key: str) -> Entry | None:
        return self.inner.stat(key)

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        return self.inner.get(key, start, size)

    def put(self, key: str, data: BytesLike, *, durable: bool = True) -> None:
        self.inner.put(key, data, durable=durable)

    def put_new(self, key: str, data: BytesLike) -> bool:
        return self.inner.put_new(key, data)

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def unfinished(self) -> Iterator[Entry]:
        return self.inner.unfinished()

    def _around(self, inner: Store) -> Self:
        made = copy.copy(self)
        made.inner = inner
        return made

"""The one interface between a hub and the place where it lives: no more than an object store gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from deltahub.digest import BytesLike
from deltahub.errors import UsageError

_KEY = re.compile(r"(?!\.\.?(?:/|$))[A-Za-z0-9._-]+(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._-]+)*")


@dataclass(frozen=True)
class Entry:
    """One stored object.

    Attributes:
        key: names joined by ``/``.
        size: bytes.
        modified: seconds since 1970 by the clock of the store, which need not be that of this machine.
        md5: of the content, in hex, where the store tells it without the content being read. Some servers tell another
            number there, so a difference is a reason to look closer, and no proof.
    """

    key: str
    size: int
    modified: float
    md5: str | None = field(default=None, compare=False)


class Store(Protocol):
    """Objects of bytes under keys. Every write is there whole or not at all, and visible to all who read after it.

    There is no rename, no append and no lock: a hub asks for nothing that S3 does not give. All methods may be called
    from several threads.

    Raises (every method):
        UsageError: a key that `check_key` refuses.
        StoreError: the place failed (permission, no room, unreachable).
    """

    @property
    def url(self) -> str:
        """What `open_store` would open this store by."""
        ...

    @property
    def remote(self) -> bool:
        """Whether bytes come over a network.

        What is there already is then compared by `stat` alone, where a local object is read and compared byte by byte;
        and several requests are made at once.
        """
        ...

    def list(self, folder: str = "") -> Iterator[Entry]:
        """Every object under ``folder/`` at any depth, in no order; nothing where there is none."""
        ...

    def stat(self, key: str) -> Entry | None:
        """None where there is no such object."""
        ...

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        """Bytes ``[start, start + size)`` or to the end, fewer where the object ends before.

        Raises:
            NotFoundError: there is no such object.
        """
        ...

    def put(self, key: str, data: BytesLike, *, durable: bool = True) -> None:
        """Creates or replaces. Not ``durable``: a power cut may take it back, which spares a disk its flushes."""
        ...

    def put_new(self, key: str, data: BytesLike) -> bool:
        """Creates; False, and nothing changed, where the key exists. Of several callers at once one gets True."""
        ...

    def delete(self, key: str) -> None:
        """Removes the object; nothing happens where there is none."""
        ...

    def unfinished(self) -> Iterator[Entry]:
        """What writers that died left behind. `list` does not show it; `delete` removes it."""
        ...


def check_key(key: str) -> str:
    """Returns ``key``; raises UsageError unless it is names of ``A-Z a-z 0-9 . _ -`` joined by ``/``."""
    if not _KEY.fullmatch(key) or len(key) > 900:
        raise UsageError(f"key {key[:100]!a}", expected="names of A-Z a-z 0-9 . _ - joined by /")
    return key


def check_folder(folder: str) -> str:
    """The prefix of every key in ``folder``, which is ``""`` for all."""
    return f"{check_key(folder)}/" if folder else ""

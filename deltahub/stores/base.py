"""The one interface between a hub and the place where it lives: no more than an object store gives."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol, Self, TypeVar

from deltahub.digest import BytesLike
from deltahub.errors import ConflictError, UsageError

LONGEST_KEY = 900
"""Characters; S3 takes 1024 bytes with the prefix, and a disk 4096 with the path."""
AT_ONCE = 8
"""Requests under way at a remote store, where nothing else is asked for."""
_MOST_ATTEMPTS = 12
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
_KEY = re.compile(r"(?!\.\.?(?:/|$))[A-Za-z0-9._-]+(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._-]+)*")


Result = TypeVar("Result")


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

        What is there already is then compared by `stat` alone, where a local object is read and compared byte by byte.
        """
        ...

    @property
    def at_once(self) -> int:
        """How many requests should be under way at once: 1 on this machine, where none is waited for."""
        ...

    @property
    def page(self) -> str | None:
        """Key of the page about the hub that the place shows to people; None where it shows none."""
        ...

    def transaction(self) -> AbstractContextManager[Store]:
        """A store of the same objects, whose writes become visible all together when the ``with`` ends.

        Where the place can do that, reads in it see one state of the place and what was written in it, and an
        exception leaves nothing behind; elsewhere it is this store itself. One in another joins it. `transacted` runs
        a whole operation in one.

        Raises:
            ConflictError: at the end, another wrote there meanwhile; nothing was.
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


class WriteByWrite:
    """What a store is that makes every write visible by itself, and that shows people no page."""

    page: str | None = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Self]:
        yield self


def transacted(store: Store, work: Callable[[Store], Result]) -> Result:
    """What ``work`` gives, done in one transaction of ``store``, and again from its start where another was first.

    Raises:
        ConflictError: others were first a dozen times.
    """
    for attempt in count(1):
        try:
            with store.transaction() as inside:
                return work(inside)
        except ConflictError:
            if attempt == _MOST_ATTEMPTS:
                raise
        wait = min(_FIRST_WAIT * 2 ** (attempt - 1), _LONGEST_WAIT)
        time.sleep(wait * random.uniform(0.2, 1))  # noqa: S311 - spreads writers, hides nothing
    raise AssertionError("the loop has no end")


def is_key(text: str) -> bool:
    """Whether ``text`` is names of ``A-Z a-z 0-9 . _ -`` joined by ``/``; a store lists nothing else."""
    return len(text) <= LONGEST_KEY and _KEY.fullmatch(text) is not None


def check_key(key: str) -> str:
    """Returns ``key``; raises UsageError unless it `is_key`."""
    if not is_key(key):
        raise UsageError(f"key {key[:100]!a}", expected="names of A-Z a-z 0-9 . _ - joined by /")
    return key


def check_folder(folder: str) -> str:
    """The prefix of every key in ``folder``, which is ``""`` for all."""
    return f"{check_key(folder)}/" if folder else ""

"""Which objects a store has, asked for in as few requests as it takes."""

from __future__ import annotations

import time
from collections.abc import Iterable

from deltahub import keys, parallel
from deltahub.stores import Entry, Store

_PAGE = 1000
"""Objects that a remote store lists in one request."""
_ASKED_PER_PAGE = 16
"""A page takes as long as so many single questions, several of which are under way at once."""
_REMEMBERED_SECONDS = 60.0


class Remembered:
    """Keys that a remote store had less than a minute ago, of objects that nothing in a hub deletes.

    It spares a long row of pushes the same questions. A store on this machine is asked each time, which costs nothing.
    """

    def __init__(self, store: Store) -> None:
        self._remote = store.remote
        self._until: dict[str, float] = {}

    def __contains__(self, key: str) -> bool:
        return time.monotonic() < self._until.get(key, 0.0)

    def add(self, key: str) -> None:
        if self._remote:
            self._until[key] = time.monotonic() + _REMEMBERED_SECONDS


class Presence:
    """What there is of ``wanted`` now: told by a listing, or, where they are few or the hub is large, one by one.

    Args:
        folder: where all of ``wanted``, which are keys, lie.
    """

    def __init__(self, store: Store, folder: str, wanted: Iterable[str]) -> None:
        self._store = store
        self._listed = _listed(store, folder, set(wanted)) if store.remote else None

    @staticmethod
    def of_blobs(store: Store, names: Iterable[str]) -> Presence:
        return Presence(store, "blobs", map(keys.blob, names))

    def entry(self, key: str) -> Entry | None:
        return self._store.stat(key) if self._listed is None else self._listed.get(key)

    def absent(self, some: Iterable[str]) -> list[str]:
        """Those of ``some`` of the wanted keys that are not there."""
        if self._listed is not None:
            return [key for key in some if key not in self._listed]
        found: dict[str, Entry | None] = {}
        parallel.for_each(self.entry, some, parallel.threads(self._store), found.__setitem__)
        return [key for key, entry in found.items() if entry is None]


def _listed(store: Store, folder: str, wanted: set[str]) -> dict[str, Entry] | None:
    """None where the listing has more pages than the questions that it would spare are worth."""
    most = len(wanted) // _ASKED_PER_PAGE * _PAGE
    if not most:
        return None
    found: dict[str, Entry] = {}
    for number, entry in enumerate(store.list(folder)):
        if number == most:
            return None
        if entry.key in wanted:
            found[entry.key] = entry
    return found

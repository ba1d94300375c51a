"""Which objects a store has, asked for in as few requests as it takes."""

from __future__ import annotations

from collections.abc import Iterable

from deltahub import keys
from deltahub.stores import Entry, Store

_PAGE = 1000
"""Objects that a remote store lists in one request."""
_ASKED_PER_PAGE = 16
"""A page takes as long as so many single questions, several of which are under way at once."""


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

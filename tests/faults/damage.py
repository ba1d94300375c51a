"""Damage of every kind that a repair can mend, and who is touched by it."""

from __future__ import annotations

from collections.abc import Iterator

from deltahub import keys
from deltahub.hub import Hub
from deltahub.stores import MemoryStore
from tests.faults.stores import copy_of, flipped, truncated


def mendable(store: MemoryStore) -> Iterator[tuple[str, bytes | None]]:
    """Keys of objects that another hub can give again, with what is there instead; None for nothing at all."""
    for key, (data, _) in sorted(store._objects.items()):
        kind = keys.parse(key)[1]
        if kind != "removed" and key != "hub.json":
            for bad in (flipped(data), truncated(data), b"", None):
                if bad is not None or kind not in ("version", "tag"):
                    yield key, bad
            if kind == "version" and key.endswith("v00000001.json") and keys.version("a", 1) == key:
                yield key, None  # below another version, so that it is missed


def damaged(store: MemoryStore) -> MemoryStore:
    """A copy with something bad in every kind of object, and `b` unhurt but for its tag."""
    made = copy_of(store)
    record = keys.version("a", 1)
    made.delete(record)
    made.put(keys.version("a", 2), flipped(store.get(keys.version("a", 2))))
    made.put(keys.tag("b", "prod"), truncated(store.get(keys.tag("b", "prod"))))
    for section in Hub(store).version("a@2").sections[:1]:
        made.delete(keys.blob(section.data.blob))
    for folder in ("masks", "bases"):
        for entry in store.list(folder):
            made.delete(entry.key)
    return made

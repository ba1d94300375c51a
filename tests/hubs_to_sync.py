"""A hub with something of everything, and what to compare of two hubs."""

from __future__ import annotations

import numpy as np

from deltahub.checkpoint import Base
from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.stores import MemoryStore
from tests.deltas import random_delta
from tests.faults.stores import copy_of
from tests.test_hub import dump, tiny

LONG = 1000.0
"""Seconds: older than any difference of clocks that a sync allows for."""


def filled(base: Base) -> MemoryStore:
    """Three tasks: versions, one removed, one equal to an older one, tags, a mask with a blob, a shared head."""
    hub = Hub(MemoryStore("source"))
    hub.store.put("hub.json", b"")
    for seed in (0, 1, 0, 2):
        hub.push(tiny("a", seed))
    hub.remove("a@2")
    hub.tag("a", 1, "prod")
    mask = Mask.of_indices(base, np.arange(0, 3000, 7))
    hub.push(random_delta(base, mask, 1, task="b", classes=2), ["best", "prod"], mask=mask)
    hub.push(tiny("c", 5))
    return copy_of(hub.store, aged=LONG)


def empty(name: str = "target") -> Hub:
    store = MemoryStore(name)
    Hub(store).store.put("hub.json", b'{"format":"deltahub","format_version":1}')
    return Hub(store)


def content(hub: Hub) -> dict[str, bytes]:
    return {r.reference: dump(hub.pull(r.reference)) for info in hub.tasks() for r in hub.versions(info.task)}


def tags(hub: Hub) -> dict[str, dict[str, int]]:
    return {info.task: hub.tags(info.task) for info in hub.tasks()}

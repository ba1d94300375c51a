"""Any commands in any order, each on a store that may fail or die in it."""

from __future__ import annotations

import contextlib
import random

import pytest

from deltahub.errors import StoreError
from deltahub.hub import Hub
from deltahub.stores import MemoryStore
from deltahub.syncing import sync
from tests.faults.soundness import MARK, assert_sound
from tests.faults.stores import SOAK, Killed, Watched, copy_of, dying_at, failing_at, flipped, silent_from
from tests.test_hub import dump, tiny

ROUNDS = 1000 if SOAK else 6
STEPS = 8


@pytest.mark.parametrize("remote", [False, True])
def test_any_commands_in_any_order_on_a_store_that_fails_lose_nothing(full, remote):
    store, expected = full
    for seed in range(ROUNDS):
        round_ = _Round(store, expected, random.Random(seed), remote)
        for _ in range(STEPS):
            round_.step()
        assert_sound(Hub(round_.inner), round_.acknowledged, round_.pending)


class _Round:
    """A hub, a copy of it elsewhere, and what must and what may be in the hub."""

    def __init__(self, store: MemoryStore, expected: dict[str, bytes], chance: random.Random, remote: bool) -> None:
        self.inner, self.backup = copy_of(store), copy_of(store, name="backup")
        self.acknowledged, self.pending = dict(expected), set()
        self.chance, self.remote = chance, remote

    def step(self) -> None:
        """One command, disturbed somewhere or not at all; a minute passes."""
        at = self.chance.choice([dying_at, failing_at, silent_from])
        before = at(self.chance.randrange(60))
        with contextlib.suppress(Killed, StoreError):
            self.chance.choice([self.push, self.push, self.remove, self.tag, self.gc, self.sync, self.repair])(
                Hub(Watched(self.inner, before, remote=self.remote))
            )
        self.inner = copy_of(self.inner, aged=MARK)

    def push(self, hub: Hub) -> None:
        delta = tiny(self.chance.choice("acd"), self.chance.randrange(20))
        self.pending.add(dump(delta))
        number = hub.push(delta, self.chance.choice([[], ["new"]])).number
        self.acknowledged[f"{delta.task}@{number}"] = dump(delta)

    def remove(self, hub: Hub) -> None:
        if self.acknowledged:
            name = self.chance.choice(sorted(self.acknowledged))
            self.pending.add(self.acknowledged.pop(name))
            hub.remove(name, force=True)

    def tag(self, hub: Hub) -> None:
        if self.acknowledged:
            task, _, number = self.chance.choice(sorted(self.acknowledged)).partition("@")
            hub.tag(task, int(number), "moved")

    def gc(self, hub: Hub) -> None:
        hub.gc(grace_seconds=0)

    def sync(self, hub: Hub) -> None:
        sync(hub, Hub(self.backup))

    def repair(self, hub: Hub) -> None:
        """Something that the other hub has is damaged; a repair that is cut off is run again."""
        sync(Hub(self.inner), Hub(self.backup))
        shared = sorted(key for key in self.inner._objects.keys() & self.backup._objects.keys() if "/v" in key)
        shared += sorted(key for key in self.inner._objects.keys() & self.backup._objects.keys() if "blobs/" in key)
        live = [key for key in shared if self.inner._objects[key][0]]
        key = self.chance.choice(live)
        self.inner.put(key, flipped(self.inner.get(key)))
        try:
            hub.verify(repair=Hub(self.backup))
        finally:
            self.inner = copy_of(self.inner, aged=MARK)
            assert Hub(self.inner).verify(repair=Hub(self.backup)).problems == ()

"""Commands whose store dies or fails at any operation: what was acknowledged stays, and nothing half-made is seen."""

from __future__ import annotations

import numpy as np
import pytest

from deltahub import keys
from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.signing import SigningKey
from deltahub.stores import MemoryStore
from deltahub.syncing import sync
from tests.deltas import random_delta
from tests.faults.damage import damaged
from tests.faults.soundness import assert_sound, visible
from tests.faults.stores import copy_of, dying_at, every_operation, failing_at, silent_from
from tests.test_hub import blobs, dump, tiny

AT = [dying_at, failing_at, silent_from]


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("kind", ["new", "file-mask", "equal", "same-content", "signed"])
def test_a_push_that_dies_anywhere_is_invisible_or_whole(full, base_of, at, kind, remote):
    store, expected = full
    base = base_of("bert")
    mask = Mask.of_indices(base, np.arange(1, 3000, 7)) if kind == "file-mask" else None
    key = SigningKey.generate() if kind == "signed" else None
    delta = {
        "new": tiny("c", 9), "file-mask": random_delta(base, mask, 3, task="c"), "equal": tiny("a", 3),
        "same-content": tiny("c", 0), "signed": tiny("c", 9),
    }[kind]  # fmt: skip

    def push(hub: Hub) -> object:
        return hub.push(delta, ["new"], mask=mask, sign=key)

    for inner, error in every_operation(store, push, at, remote=remote, few=3):
        hub = Hub(inner)
        now = dict(expected)
        if "c" in [info.task for info in hub.tasks()]:
            now["c@1"] = dump(delta)
        else:
            assert error or delta.task == "a"
        assert_sound(hub, now)
        assert hub.tags("a")["prod"] == 2
        hub.gc(grace_seconds=0)
        assert_sound(hub, now)
        needed = {s.data.blob for ref in now for s in hub.version(ref).sections}
        needed |= {record.data.blob for record in hub.masks() if record.data}
        assert blobs(hub).keys() == {keys.blob(name) for name in needed}
        assert list(inner.list("pushing")) == []
        found = push(hub)
        assert dump(hub.pull(f"{delta.task}:new", require=[key.verify_key] if key else None)) == dump(delta)
        assert found.number == (2 if delta.task == "a" else 1)
        assert hub.verify().problems == ()


@pytest.mark.parametrize("at", AT)
def test_a_removal_that_dies_anywhere_removes_a_version_or_leaves_it(full, at):
    store, expected = full
    for inner, error in every_operation(store, lambda hub: hub.remove("a", force=True), at):
        hub = Hub(inner)
        left = {f"a@{r.number}" for r in hub.versions("a")} if "a" in {t.task for t in hub.tasks()} else set()
        assert error or not left
        now = {ref: data for ref, data in expected.items() if ref in left or ref == "b@1"}
        assert_sound(hub, now)
        hub.gc(grace_seconds=0)
        assert_sound(hub, now)
        for number in (1, 2):
            assert not {keys.tombstone("a", number), keys.version("a", number)} <= inner._objects.keys()
        assert hub.push(tiny("a", 1)).number == 3
        assert hub.report().total > 0


@pytest.mark.parametrize("at", AT)
def test_a_collection_that_dies_anywhere_loses_nothing(full, at):
    store, expected = full
    for inner, _ in every_operation(store, lambda hub: hub.gc(grace_seconds=0), at):
        hub = Hub(inner)
        assert_sound(hub, expected)
        hub.gc(grace_seconds=0)
        assert_sound(hub, expected)
        assert len(blobs(hub)) == len({s.data.blob for r in expected for s in hub.version(r).sections}) + 1


@pytest.mark.parametrize("at", AT)
def test_a_tag_that_dies_anywhere_names_the_old_version_or_the_new(full, at):
    store, expected = full
    for inner, error in every_operation(store, lambda hub: hub.tag("a", 1, "prod"), at):
        assert_sound(Hub(inner), expected)
        assert Hub(inner).tags("a")["prod"] in ((1, 2) if error else (1,))


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("at", AT)
def test_a_sync_that_dies_anywhere_shows_only_whole_versions(full, at, remote):
    store, expected = full
    source, empty = Hub(store), MemoryStore("target")
    empty.put("hub.json", store.get("hub.json"))
    for inner, error in every_operation(empty, lambda hub: sync(source, hub), at, remote=remote):
        target = Hub(inner)
        assert_sound(target, {} if error else expected, expected.values())
        sync(source, target)
        target.gc(grace_seconds=0)
        assert_sound(target, expected)
        assert target.tags("a") == source.tags("a")


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("at", AT)
def test_a_repair_that_dies_anywhere_makes_nothing_worse_and_goes_on(full, at, remote):
    store, expected = full
    broken = damaged(store)
    good = {name: data for name, data in visible(Hub(broken)).items() if data is not None}
    for inner, error in every_operation(broken, lambda hub: hub.verify(repair=Hub(store)), at, remote=remote):
        hub = Hub(inner)
        assert good.items() <= visible(hub).items()
        assert hub.verify(repair=Hub(copy_of(store))).problems == () or error is None
        assert_sound(hub, expected)
        assert hub.tags("a") == Hub(store).tags("a")

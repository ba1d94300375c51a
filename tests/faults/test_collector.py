"""A collector beside pushes, and what it may and may not take."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from deltahub import keys, records
from deltahub.digest import of_bytes
from deltahub.errors import FormatError, IntegrityError, StoreError
from deltahub.hub import Hub
from deltahub.stores import Entry, MemoryStore
from deltahub.stores.wrapped import WrappedStore
from tests.faults.soundness import assert_sound, count_run
from tests.faults.stores import YOUNG, Watched, copy_of, some
from tests.test_hub import blobs, dump, tiny


@pytest.mark.parametrize("room", ["after the dead are gone", "never"])
def test_a_full_disk_is_no_reason_to_keep_its_garbage(tmp_path, room):
    """Half-written files of the dead make room for the mark that a collector must leave; young ones stay."""
    hub = Hub.open(tmp_path)
    hub.push(tiny("a", 0))
    hub.push(tiny("gone", 7))
    hub.remove("gone")
    old, young = (tmp_path / "blobs" / f".{name}.part" for name in ("old", "young"))
    for path in (old, young, *(tmp_path / key for key in blobs(hub))):
        path.write_bytes(path.read_bytes() if path.exists() else b"x")
        os.utime(path, (1e9, 1e9) if path != young else None)

    def before(_: int, method: str, key: str) -> None:
        if method == "put" and (room == "never" or old.exists()):
            raise StoreError("no space left", hint="check that it has room")

    watched = Hub(Watched(hub.store, before))
    if room == "never":
        with pytest.raises(StoreError, match=r"no space left: expected room for .* free some bytes elsewhere"):
            watched.gc(grace_seconds=YOUNG)
    else:
        deleted = watched.gc(grace_seconds=YOUNG).deleted
        assert "blobs/.old.part" in deleted
        assert len(deleted) == 3  # and the two blobs of the version that is gone
    assert (old.exists(), young.exists()) == (False, True)
    assert_sound(hub, {"a@1": dump(tiny("a", 0))})


def test_a_collector_that_cannot_read_a_record_deletes_nothing(full):
    store, _ = full
    for key in [key for key in store._objects if keys.parse(key)[1] == "version" or key.startswith("masks/")]:
        for broken in (b"", b"{}", store.get(key)[:-1], store.get(key).replace(b":1", b":2", 1)):
            inner = copy_of(store)
            inner.put(key, broken)
            before = dict(inner._objects)
            for dry_run in (True, False):
                with pytest.raises((FormatError, IntegrityError), match=key):
                    Hub(inner).gc(grace_seconds=0, dry_run=dry_run)
                assert inner._objects == before
                count_run()


def test_a_dry_run_changes_nothing_and_tells_what_would_go(full):
    store, expected = full
    inner = copy_of(store)
    inner.put("pushing/dead.json", records.lease_bytes({of_bytes(b"x")}))
    before = dict(inner._objects)
    hub = Hub(
        Watched(inner, lambda _, method, key: None if method in ("list", "stat", "get", "unfinished") else fail(key))
    )
    planned = hub.gc(dry_run=True, grace_seconds=0)
    assert inner._objects == before
    assert Hub(inner).gc(grace_seconds=0) == planned
    assert before.keys() - inner._objects.keys() == set(planned.deleted)
    assert "pushing/dead.json" in planned.deleted
    assert sum(len(before[key][0]) for key in planned.deleted) == planned.bytes
    assert_sound(Hub(inner), expected)


class Blank(WrappedStore):
    """Lists nothing in ``tasks``, as a page of a proxy in place of a listing may seem to."""

    def list(self, folder: str = "") -> Iterator[Entry]:
        return iter(()) if folder == "tasks" else self.inner.list(folder)


def test_a_place_that_lists_no_task_keeps_its_blobs(full):
    inner = copy_of(full[0])
    for key in [entry.key for entry in inner.list("masks")]:
        inner.delete(key)
    before = set(inner._objects)
    for dry_run in (True, False):
        with pytest.raises(StoreError, match="so nothing is deleted"):
            Hub(Blank(inner)).gc(dry_run=dry_run, grace_seconds=0)
    assert set(inner._objects) == before
    count_run()


def fail(what: str) -> None:
    raise AssertionError(what)


def test_grace_spares_the_young(full):
    store, expected = full
    inner = copy_of(store, aged=100)
    hub = Hub(inner)
    spared = hub.gc(grace_seconds=200)
    assert (spared.deleted, spared.bytes) == ((), 0)
    assert hub.gc(grace_seconds=50, dry_run=True).deleted == hub.gc(grace_seconds=50).deleted != ()
    assert spared.spared > 0
    assert_sound(hub, expected)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("grace", [0.0, YOUNG])
def test_a_collection_at_any_moment_of_a_push_takes_nothing_from_it(full, grace, remote):
    """The push finds its blobs there, old and needed by nothing: what a collector is about to delete."""
    store, expected = full
    delta = tiny("new", 7)
    idle = Watched(copy_of(store, aged=2 * YOUNG), lambda *_: None, remote=remote)
    Hub(idle).push(delta, ["prod"])
    for number in some(idle.count):
        inner = copy_of(store, aged=2 * YOUNG)
        taken: list[str] = []
        guarded: list[str] = []

        def before(count: int, *_: str, last=number, place=inner, taken=taken, guarded=guarded) -> None:
            if count == last:
                guarded += [entry.key for entry in place.list("pushing")]
                taken += Hub(place).gc(grace_seconds=grace).deleted

        assert Hub(Watched(inner, before, remote=remote)).push(delta, ["prod"]).number == 1
        assert_sound(Hub(inner), expected | {"new@1": dump(delta)})
        own = {keys.blob(section.data.blob) for section in Hub(inner).version("new").sections}
        if guarded and grace:
            assert own.isdisjoint(taken)
        elif number == 0:
            assert not own.isdisjoint(taken)
    assert idle.count > 8


@pytest.mark.parametrize("remote", [False, True])
def test_a_push_at_any_moment_of_a_collection_loses_nothing(full, remote):
    store, expected = full
    delta = tiny("new", 7)
    idle = Watched(copy_of(store, aged=2 * YOUNG), lambda *_: None)
    Hub(idle).gc(grace_seconds=YOUNG)
    with ThreadPoolExecutor(1) as pool:
        for number in some(idle.count):
            inner = copy_of(store, aged=2 * YOUNG)
            waits, pushes = threading.Event(), []

            def notice(_: int, method: str, key: str, waits=waits) -> None:
                if method == "stat" and key.startswith("collecting/"):
                    waits.set()  # it waits for the collector: let that go on

            def push(place=inner, notice=notice, waits=waits) -> None:
                try:
                    Hub(Watched(place, notice, remote=remote)).push(delta)
                finally:
                    waits.set()

            def before(count: int, *_: str, last=number, push=push, waits=waits, pushes=pushes) -> None:
                if count == last:
                    pushes.append(pool.submit(push))
                    assert waits.wait(30)

            Hub(Watched(inner, before)).gc(grace_seconds=YOUNG)
            [pushed] = pushes
            pushed.result()
            assert_sound(Hub(inner), expected | {"new@1": dump(delta)})
    assert idle.count > 10


def test_a_dead_collector_keeps_no_push_waiting_for_ever(full):
    store, expected = full
    inner = MemoryStore()
    inner._objects = dict(store._objects)
    inner.put(keys.mark("dead"), b"")
    inner._objects = copy_of(inner, aged=61)._objects
    watched = Watched(inner, lambda _, method, key: fail(key) if (method, key) == ("stat", keys.mark("dead")) else None)
    Hub(watched).push(tiny("c", 9))
    assert_sound(Hub(inner), expected | {"c@1": dump(tiny("c", 9))})
    assert keys.mark("dead") in Hub(inner).gc(grace_seconds=0).deleted


def test_a_lease_that_cannot_be_dropped_is_no_reason_to_fail(full):
    store, expected = full
    inner = copy_of(store)

    def before(_: int, method: str, key: str) -> None:
        if method == "delete" and key.startswith("pushing/"):
            raise StoreError("unreachable")

    assert Hub(Watched(inner, before)).push(tiny("c", 9)).number == 1
    assert_sound(Hub(inner), expected | {"c@1": dump(tiny("c", 9))})
    Hub(inner).gc(grace_seconds=0)
    assert list(inner.list("pushing")) == []


def test_a_number_that_came_and_went_meanwhile_is_not_used(full):
    """Another pushes and removes the next version after we looked which is free."""
    store, expected = full
    inner = copy_of(store)
    others = iter([tiny("a", 11)])

    def before(_: int, method: str, key: str) -> None:
        if method == "put_new" and key == keys.version("a", 3) and (other := next(others, None)):
            assert Hub(inner).push(other).number == 3
            Hub(inner).remove("a@3")

    assert Hub(Watched(inner, before)).push(tiny("a", 12)).number == 4
    assert_sound(Hub(inner), expected | {"a@4": dump(tiny("a", 12))})
    assert keys.version("a", 3) not in inner._objects


def test_a_hub_whose_tasks_are_all_removed_gives_its_blobs_back():
    hub = Hub(MemoryStore("emptied"))
    hub.store.put("hub.json", records.HUB)
    hub.push(tiny("a", 0))
    hub.remove("a")
    assert any(key.startswith("blobs/") for key in hub.gc(grace_seconds=0).deleted)
    assert list(hub.store.list("blobs")) == []
    assert_sound(hub, {})

"""Stores that hang, cut short, lie, forget what they listed, have another clock, or keep no locks."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from deltahub import keys
from deltahub.errors import DeltahubError, StoreError
from deltahub.hub import Hub
from deltahub.stores import MemoryStore
from deltahub.syncing import sync
from tests.faults.soundness import assert_sound, count_run, visible
from tests.faults.stores import (
    YOUNG,
    Lockless,
    Lying,
    Skewed,
    Stale,
    Watched,
    copy_of,
    flipped,
    other,
    some,
    truncated,
)
from tests.test_hub import dump, tiny

HOUR = 3600.0


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("wrong", [truncated, flipped, other, lambda _: b""])
@pytest.mark.parametrize("job", ["pull", "push", "sync", "gc"])
def test_wrong_bytes_at_any_read_are_never_passed_on(full, job, wrong, once):
    """A pull gives the right bytes or an error; what a push, sync or collector leaves is sound."""
    store, expected = full
    jobs = {
        "pull": lambda hub: dump(hub.pull("a")) == expected["a@2"] or pytest.fail("other bytes"),
        "push": lambda hub: hub.push(tiny("a", 3), ["prod"]), "gc": lambda hub: hub.gc(grace_seconds=0),
        "sync": lambda hub: sync(hub, Hub(target)),
    }  # fmt: skip
    target = _empty(store)
    reads = Lying(copy_of(store), -1, wrong, once=once)
    jobs[job](Hub(reads))
    for number in some(reads.count, 1):
        inner, target = copy_of(store), _empty(store)
        with contextlib.suppress(DeltahubError):
            jobs[job](Hub(Lying(inner, number, wrong, once=once)))
        hub = Hub(target if job == "sync" else inner)
        assert_sound(hub, {} if job == "sync" else expected, expected.values())


def _empty(store: MemoryStore) -> MemoryStore:
    made = MemoryStore("target")
    made.put("hub.json", store.get("hub.json"))
    return made


def test_a_store_that_hangs_in_any_operation_hinders_nobody_else(full):
    """The push that hangs is told that the line broke; another one comes and goes meanwhile."""
    store, expected = full
    idle = Watched(copy_of(store), lambda *_: None)
    Hub(idle).push(tiny("c", 9))
    with ThreadPoolExecutor(1) as pool:
        for number in some(idle.count):
            inner, hangs, ends = copy_of(store), threading.Event(), threading.Event()

            def before(count: int, *_: str, last=number, hangs=hangs, ends=ends) -> None:
                if count == last:
                    hangs.set()
                    assert ends.wait(60)
                    raise StoreError("timed out")

            hanging = pool.submit(Hub(Watched(inner, before)).push, tiny("c", 9))
            assert hangs.wait(60)
            assert Hub(inner).push(tiny("d", 5)).number == 1
            ends.set()
            last = number == idle.count - 1  # its lease, which need not be dropped
            assert (hanging.exception(60) is None) == last
            assert_sound(Hub(inner), expected | {"d@1": dump(tiny("d", 5))}, [dump(tiny("c", 9))])


def test_stale_lists_lose_nothing_that_was_acknowledged(full):
    """Lists of an hour ago: pushes find their numbers, nothing is replaced, and what is young is spared."""
    store, expected = full
    inner = copy_of(store, aged=2 * HOUR)
    stale = Hub(Stale(inner))
    numbers = [stale.push(tiny("a", seed)).number for seed in (20, 21, 22)]
    assert numbers == [3, 4, 5]
    stale.tag("a", 2, "old")
    stale.gc(grace_seconds=YOUNG)
    now = expected | {f"a@{number}": dump(tiny("a", 17 + number)) for number in numbers}
    assert_sound(Hub(inner), now)
    assert Hub(inner).tags("a") == {"old": 2, "prod": 2}


def test_two_pushers_and_a_collector_without_locks_lose_nothing_young(full):
    """No leases, no marks. What a push wrote itself is young, and no collector with a grace period takes it."""
    store, expected = full
    for turn in some(200, 6):
        inner = copy_of(store, aged=2 * YOUNG)
        start = threading.Barrier(3)

        def run(job, start=start) -> object:
            start.wait(60)
            return job()

        hub = Hub(Lockless(inner))
        jobs = [
            partial(hub.push, tiny("a", 100 + turn)),
            partial(hub.push, tiny("a", 400)),
            partial(hub.gc, grace_seconds=YOUNG),
        ]
        with ThreadPoolExecutor(3) as pool:
            first, second, _ = [future.result() for future in [pool.submit(run, job) for job in jobs]]
        pushed = {first.number: dump(tiny("a", 100 + turn)), second.number: dump(tiny("a", 400))}
        assert_sound(Hub(inner), expected | {f"a@{number}": data for number, data in pushed.items()})


def test_without_locks_old_garbage_that_a_push_relied_on_may_go_and_is_named_and_healed(full):
    """The one thing that leases are for: a blob that was there already, old, and needed by nothing."""
    store, expected = full
    delta, lost = tiny("new", 7), 0
    idle = Watched(Lockless(copy_of(store, aged=2 * YOUNG)), lambda *_: None)
    Hub(idle).gc(grace_seconds=YOUNG)
    for number in some(idle.count):
        inner = copy_of(store, aged=2 * YOUNG)

        def before(count: int, *_: str, last=number, place=inner) -> None:
            if count == last:
                Hub(Lockless(place)).push(delta)

        Hub(Watched(Lockless(inner), before)).gc(grace_seconds=YOUNG)
        problems = Hub(inner).verify().problems
        lost += bool(problems)
        assert {owner for problem in problems for owner in problem.needed_by} <= {"new@1"}
        Hub(inner).push(delta)
        assert_sound(Hub(inner), expected | {"new@1": dump(delta)}, [dump(delta)])
    assert lost


@pytest.mark.parametrize("ahead", [-5 * HOUR, 5 * HOUR])
def test_clocks_hours_apart_lose_nothing(full, ahead):
    """Ages are told by the store's clock alone."""
    store, expected = full
    inner = copy_of(store, aged=2 * YOUNG)
    hub = Hub(Skewed(inner, ahead))
    hub.push(tiny("c", 9), ["prod"])
    young = keys.blob("ab" * 32)
    inner.put(young, b"young")
    assert young not in hub.gc(grace_seconds=YOUNG).deleted
    inner.delete(young)
    assert_sound(Hub(inner), expected | {"c@1": dump(tiny("c", 9))})
    target = Hub(_empty(store))
    assert sync(hub, target).failed == ()
    assert_sound(target, visible(hub))


def test_ten_thousand_tasks_cost_a_push_and_a_pull_no_more_requests(full):
    store, _ = full
    counts = []
    for many in (10, 10_000):
        inner = copy_of(store)
        record = store.get(keys.version("a", 1))
        inner._objects |= {f"tasks/t{number}/v00000001.json": (record, 0.0) for number in range(many)}
        watched = Watched(inner, lambda *_: None)
        hub = Hub(watched)
        assert hub.push(tiny("new", 9), ["prod"]).number == 1
        assert dump(hub.pull("new:prod")) == dump(tiny("new", 9))
        hub.tag("new", 1, "best")
        counts.append(watched.count)
        assert len(hub.tasks()) == many + 3
        hub.remove("new", force=True)
        assert len(hub.tasks()) == many + 2
        hub.gc(grace_seconds=0)
        assert dump(hub.pull("a@1")) == dump(tiny("a", 0))
        count_run()
    assert counts[0] == counts[1]

"""A sync while something is damaged, dies, or is done by others at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from deltahub import keys, sync_group
from deltahub.errors import IntegrityError, StoreError
from deltahub.hub import Hub
from deltahub.parallel import for_each, in_order
from deltahub.stores import MemoryStore
from deltahub.syncing import sync
from tests.faults.soundness import assert_sound as sound
from tests.faults.stores import YOUNG, Killed, Watched, copy_of, dying_at, failing_at
from tests.hubs_to_sync import content, empty, filled, tags
from tests.test_hub import blobs, dump, tiny


@pytest.fixture(scope="module")
def full(base_of) -> MemoryStore:
    return filled(base_of("bert"))


@pytest.mark.parametrize("damage", ["flip", "lose", "cut"])
def test_damage_in_the_source_is_named_and_keeps_out_only_its_own(full, damage):
    expected = content(Hub(full))
    needed = {
        reference: {keys.blob(section.data.blob) for section in Hub(full).version(reference).sections}
        for reference in expected
    }
    [mask] = [record for record in Hub(full).masks() if record.data]
    needed["b@1"].add(keys.blob(mask.data.blob))
    for key in set().union(*needed.values()):
        inner, target = copy_of(full), empty()
        data, modified = inner._objects[key]
        bad = {"flip": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-1]}.get(damage)
        inner._objects.pop(key) if bad is None else inner._objects.update({key: (bad, modified)})
        report = sync(Hub(inner), target)
        hurt = {reference for reference, own in needed.items() if key in own}
        failed = {failure.what: failure.problem for failure in report.failed if "@" in failure.what}
        assert failed.keys() == hurt
        assert all(key.rpartition("/")[2][:16] in problem for problem in failed.values())
        sound(target, {reference: data for reference, data in expected.items() if reference not in hurt})
        assert key not in blobs(target)
        again = sync(Hub(full), target)
        assert {copy.target for copy in again.copied} == hurt
        assert again.failed == ()
        assert tags(target) == tags(Hub(full))
        sound(target, expected)


def test_a_damaged_record_or_tag_keeps_out_only_its_own(full):
    for key, hurt in (("tasks/c/v00000001.json", "c@1"), ("tasks/b/tag.best.json", "b:best")):
        inner, target = copy_of(full), empty()
        inner.put(key, full.get(key)[:-1])
        report = sync(Hub(inner), target)
        assert [failure.what for failure in report.failed] == [hurt]
        sound(target, {ref: data for ref, data in content(Hub(full)).items() if ref != hurt})


@pytest.mark.parametrize(
    ("side", "at", "remote"),
    [
        ("source", dying_at, False),
        ("source", failing_at, True),
        ("target", dying_at, True),
        ("target", failing_at, False),
    ],
)
def test_a_sync_that_dies_anywhere_shows_only_whole_versions_and_goes_on(full, side, at, remote):
    expected, ended, number = content(Hub(full)), False, 0
    while not ended:
        place = MemoryStore("place")
        place._objects = dict(empty().store._objects)
        inner = {"source": copy_of(full), "target": place}
        hubs = {
            name: Hub(Watched(store, at(number) if name == side else lambda *_: None, remote=remote))
            for name, store in inner.items()
        }
        try:
            sync(hubs["source"], hubs["target"])
        except (Killed, StoreError):
            pass
        else:
            assert content(Hub(place)) == expected
            ended = hubs[side].store.count <= number
        target = Hub(place)
        assert target.verify().problems == ()
        assert content(target).items() <= expected.items()
        there = blobs(target)
        report = sync(Hub(full), target)
        assert report.blobs == len(blobs(target)) - len(there)
        assert report.failed == ()
        assert tags(target) == tags(Hub(full))
        target.gc(grace_seconds=0)
        sound(target, expected)
        number += 1
    assert number > 8


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("grace", [0.0, YOUNG])
def test_a_collection_at_any_moment_of_a_sync_takes_nothing_from_it(full, grace, remote):
    """The target has all the blobs already, old and needed by nothing."""
    expected, ended, number, begun = content(Hub(full)), False, 0, 0
    while not ended:
        place = MemoryStore("place")
        old = {key: value for key, value in full._objects.items() if key.startswith("blobs/")}
        place._objects = {**empty().store._objects, **old}
        place = copy_of(place, aged=2 * YOUNG, name="place")

        taken: list[str] = []
        guarded: list[str] = []

        def before(count: int, *_: str, last=number, place=place, taken=taken, guarded=guarded) -> None:
            if count == last:
                guarded += [entry.key for entry in place.list("pushing")]
                taken += Hub(place).gc(grace_seconds=grace).deleted

        watched = Watched(place, before, remote=remote)
        assert sync(Hub(full), Hub(watched)).failed == ()
        ended = watched.count <= number
        sound(Hub(place), expected)
        begun += bool(guarded)
        if guarded and grace:
            assert blobs(Hub(place)).keys().isdisjoint(taken)
        number += 1
    assert begun > 5
    assert number > 8


@pytest.mark.parametrize("other", ["nothing", "own versions"])
def test_two_syncs_at_once_copy_every_version_once(full, tmp_path, other):
    for turn in range(4):
        target = Hub.open(tmp_path / f"{other}{turn}")
        if other == "own versions":
            target.push(tiny("a", 7))
        barrier = threading.Barrier(2)

        def run(path=tmp_path / f"{other}{turn}", barrier=barrier) -> None:
            barrier.wait()
            assert sync(Hub(full), Hub.open(path)).failed == ()

        with ThreadPoolExecutor(2) as pool:
            for running in [pool.submit(run) for _ in range(2)]:
                running.result()
        found = content(target)
        assert len(found) == 5 + (other != "nothing")
        assert set(content(Hub(full)).values()) <= set(found.values())
        assert dump(target.pull("a:prod")) == dump(Hub(full).pull("a:prod"))
        assert target.verify().problems == ()


def test_a_pusher_between_listing_and_record_loses_nothing(full):
    target = empty()
    others = iter([tiny("a", 11)])

    def before(_: int, method: str, key: str) -> None:
        if method == "put_new" and key == keys.version("a", 1) and (other := next(others, None)):
            assert target.push(other).number == 1

    report = sync(Hub(full), Hub(Watched(target.store, before)))
    assert ("a@1", "a@2") in [(copy.source, copy.target) for copy in report.copied]
    assert dump(target.pull("a@1")) == dump(tiny("a", 11))
    assert dump(target.pull("a")) == dump(Hub(full).pull("a"))
    assert target.verify().problems == ()


def test_of_several_jobs_the_first_failure_ends_the_others():
    begun, go = [], threading.Event()

    def job(number: int) -> int:
        begun.append(number)
        if number == 0:
            raise IntegrityError("bad")
        go.wait(0.2)
        return number

    with pytest.raises(IntegrityError, match="bad"):
        for_each(job, range(100), 4)
    assert len(begun) < 20
    assert threading.active_count() < 50


@pytest.mark.parametrize("at_once", [1, 4])
def test_jobs_in_order_begin_after_what_they_need_and_before_what_waits(at_once):
    needs = {f"record {number}": [f"blob {number}", "base"] for number in range(50)}
    names = ["base", *(f"blob {number}" for number in range(50)), *needs]
    told: list[str] = []

    def job(name: str) -> str:
        assert set(needs.get(name, ())) <= set(told)
        return name.upper()

    def done(name: str, result: str) -> None:
        assert result == name.upper()
        told.append(name)

    in_order({name: partial(job, name) for name in names}, needs, at_once, done)
    assert sorted(told) == sorted(names)
    assert told.index("record 0") < told.index("blob 49")


def test_of_jobs_in_order_the_first_failure_ends_the_others():
    begun: list[int] = []

    def job(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise IntegrityError("bad")

    jobs = {str(number): partial(job, number) for number in range(100)}
    needs = {str(number): [str(number - 1)] for number in range(1, 100)}
    with pytest.raises(IntegrityError, match="bad"):
        in_order(jobs, needs, 4, lambda *_: None)
    assert begun == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", ["_VERSIONS", "_SECTIONS", "_BYTES"])
def test_no_lease_covers_more_than_a_group_may_hold(full, limit, monkeypatch):
    monkeypatch.setattr(sync_group, limit, 1)
    target, leases = empty(), []
    watched = Watched(target.store, lambda _, method, key: leases.append(key) if method == "put" else None)
    assert len(sync(Hub(full), Hub(watched)).copied) == 5
    assert sum(keys.is_lease(key) for key in leases) == 5
    assert content(target) == content(Hub(full))


def test_a_version_is_there_as_soon_as_what_it_needs_is(full):
    """Not only when all blobs of all versions are: what a sync that dies later has copied counts."""
    target = empty()
    methods: list[str] = []
    watched = Watched(target.store, lambda _, method, key: methods.append(f"{method} {key}"))
    sync(Hub(full), Hub(watched))
    records = [index for index, one in enumerate(methods) if one.startswith("put_new tasks/")]
    blobs_put = [index for index, one in enumerate(methods) if one.startswith("put blobs/")]
    looks = [index for index, one in enumerate(methods) if one.startswith(("stat blobs/", "get blobs/"))]
    assert records[0] < blobs_put[-1]
    assert max(looks) > records[-1]
    sound(target, content(Hub(full)))

"""From hub to hub: the same bytes under the same numbers, whatever is cut off, damaged, taken or done at once."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deltahub import keys
from deltahub.cli import main
from deltahub.errors import IntegrityError, NotFoundError, StoreError, UsageError
from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.parallel import for_each
from deltahub.stores import MemoryStore
from deltahub.syncing import Copy, sync
from tests.deltas import random_delta
from tests.test_hub import blobs, dump, tiny
from tests.test_hub_faults import YOUNG, Killed, Watched, copy_of, dying_at, failing_at, sound

LONG = 1000.0
"""Seconds: older than any difference of clocks that a sync allows for."""


@pytest.fixture(scope="module")
def full(base_of) -> MemoryStore:
    """Three tasks: versions, one removed, one equal to an older one, tags, a mask with a blob, a shared head."""
    base = base_of("bert")
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


@pytest.mark.parametrize("remote", [False, True])
def test_everything_arrives_once_with_numbers_digests_tags_and_masks(full, remote):
    source, target, seen = Hub(full), empty(), []
    report = sync(
        Hub(Watched(full, lambda *_: None, remote=remote)), Hub(Watched(target.store, lambda *_: None, remote=remote)),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert content(target) == content(source)
    assert tags(target) == tags(source)
    assert [copy.source for copy in report.copied] == ["a@1", "a@3", "a@4", "b@1", "c@1"]
    assert all(copy.source == copy.target for copy in report.copied)
    assert report.tags == ("a:prod", "b:best", "b:prod")
    assert (report.present, report.removed, report.failed) == (0, (), ())
    assert {key: blobs(target)[key] for key in blobs(target)}.items() <= blobs(source).items()
    assert (report.blobs, report.bytes) == (len(blobs(target)), sum(blobs(target).values()))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    sound(target, content(source))
    assert [mask.digest for mask in target.masks()] == [mask.digest for mask in source.masks()]
    target.gc(grace_seconds=0)
    sound(target, content(source))
    assert target.push(tiny("a", 9)).number == 5


def test_a_second_sync_of_remote_hubs_lists_and_nothing_else(full):
    target = empty()
    sync(Hub(full), target)
    done: list[str] = []

    def watched(store: MemoryStore) -> Hub:
        return Hub(Watched(store, lambda _, method, key: done.append(f"{method} {key}"), remote=True))

    report = sync(watched(full), watched(target.store))
    assert done == ["list tasks", "list tasks"]
    assert (report.copied, report.tags, report.present, report.blobs) == ((), (), 5, 0)


def test_one_new_task_costs_the_same_in_a_hub_of_a_thousand(full):
    counts = []
    for many in (10, 1000):
        source, target = Hub(copy_of(full)), empty()
        record, tag = full.get("tasks/b/v00000001.json"), full.get("tasks/b/tag.prod.json")
        for number in range(many):
            source.store.put(f"tasks/task{number}/v00000001.json", record)
            source.store.put(f"tasks/task{number}/tag.prod.json", tag)
        source = Hub(copy_of(source.store, aged=LONG))
        target.store._objects |= dict(copy_of(source.store, aged=-LONG)._objects)
        source.push(tiny("new", 3), ["prod"])
        done: Counter[str] = Counter()

        def watched(name: str, store: MemoryStore, done=done) -> Hub:
            return Hub(Watched(store, lambda _, method, key: done.update([f"{name} {method}"]), remote=True))

        report = sync(watched("source", source.store), watched("target", target.store))
        assert [copy.target for copy in report.copied] == ["new@1"]
        assert report.tags == ("new:prod",)
        assert dump(target.pull("new:prod")) == dump(tiny("new", 3))
        counts.append(done)
    assert counts[0] == counts[1]
    assert sum(counts[1].values()) < 30


def test_a_number_that_is_taken_gives_the_next_and_is_told(full):
    target = empty()
    target.push(tiny("a", 7))
    report = sync(Hub(full), target)
    first, third, fourth = (tiny("a", seed) for seed in (0, 0, 2))
    assert report.copied[:3] == (
        Copy("a@1", "a@2", first.digest), Copy("a@3", "a@3", third.digest), Copy("a@4", "a@4", fourth.digest),
    )  # fmt: skip
    assert [dump(target.pull(f"a@{n}")) for n in (1, 2, 3, 4)] == [dump(tiny("a", seed)) for seed in (7, 0, 0, 2)]
    assert target.tags("a") == {"prod": 2}
    again = sync(Hub(full), target)
    assert (again.copied, again.tags, again.present) == ((), (), 5)
    assert target.verify().problems == ()


def test_what_is_newest_stays_newest(full):
    """Both hubs went their own way; the order of the source's versions is kept above what the target has."""
    target = empty()
    for seed in (0, 7, 8):
        target.push(tiny("a", seed))
    source = Hub(copy_of(full))
    report = sync(source, target, ["a"])
    assert [(copy.source, copy.target) for copy in report.copied] == [("a@3", "a@4"), ("a@4", "a@5")]
    assert dump(target.pull("a")) == dump(source.pull("a"))
    source.push(tiny("a", 0))
    assert [(c.source, c.target) for c in sync(source, target).copied if c.source[0] == "a"] == [("a@5", "a@6")]
    assert dump(target.pull("a")) == dump(tiny("a", 0))


def test_what_the_target_removed_stays_removed(full):
    target = empty()
    sync(Hub(full), target)
    target.remove("a@4")
    report = sync(Hub(full), target)
    assert (report.copied, report.removed) == ((), ("a@4",))
    assert [record.number for record in target.versions("a")] == [1, 3]


def test_removals_in_the_source_remove_nothing(full):
    source, target = Hub(copy_of(full)), empty()
    sync(source, target)
    source.remove("a", force=True)
    source.untag("b", "best")
    assert sync(source, target).copied == ()
    assert [record.number for record in target.versions("a")] == [1, 3, 4]
    assert target.tags("b") == {"best": 1, "prod": 1}


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


def test_a_tag_that_the_target_moved_later_stays_unless_checked(full):
    target = empty()
    sync(Hub(full), target)
    target.tag("a", 4, "prod")
    assert sync(Hub(full), target).tags == ()
    assert target.tags("a") == {"prod": 4}
    assert sync(Hub(full), target, check=True).tags == ("a:prod",)
    assert target.tags("a") == {"prod": 1}
    source = Hub(copy_of(full))
    source.tag("a", 3, "prod")
    assert sync(source, target, tags=False).tags == ()
    assert sync(source, target).tags == ("a:prod",)
    assert target.tags("a") == {"prod": 3}


def test_what_only_looks_alike_is_seen_by_check(full):
    """The same number and length of the record, in places that do not tell an MD5; what differs is the content."""
    source, target = empty("one"), empty("two")
    source.push(tiny("a", 1))
    other = next(
        seed for seed in range(2, 200)
        if pushed_size(tiny("a", seed)) == source.store.stat("tasks/a/v00000001.json").size
    )  # fmt: skip
    target.push(tiny("a", other))
    remote = Hub(Watched(source.store, lambda *_: None, remote=True))
    assert sync(remote, target).copied == ()
    assert sync(remote, target, check=True, dry_run=True).copied != ()
    report = sync(source, target)
    assert [(copy.source, copy.target) for copy in report.copied] == [("a@1", "a@2")]


def pushed_size(delta) -> int:
    hub = empty()
    hub.push(delta)
    return hub.store.stat("tasks/a/v00000001.json").size


def test_check_heals_the_target(full):
    target = empty()
    sync(Hub(full), target)
    for key in list(blobs(target)):
        data = target.store.get(key)
        for bad in (data[:-1] + bytes([data[-1] ^ 1]), None):
            target.store.delete(key) if bad is None else target.store.put(key, bad)
            assert sync(Hub(full), Hub(Watched(target.store, lambda *_: None, remote=True))).blobs == 0
            watched = Hub(Watched(target.store, lambda *_: None, remote=True))
            assert sync(Hub(full), watched, check=True).blobs == 1
            assert target.verify().problems == ()


def test_the_newest_only(full):
    source, target = Hub(copy_of(full)), empty()
    report = sync(source, target, ["a"], newest=True)
    assert [(copy.source, copy.target) for copy in report.copied] == [("a@4", "a@4")]
    assert (report.tags, report.failed) == ((), ())
    sound(target, {"a@4": dump(source.pull("a"))})
    source.push(tiny("a", 0))
    assert sync(source, target, ["a"], newest=True).copied[0].target == "a@5"
    assert sync(source, target, ["a"], newest=True).copied == ()
    assert [copy.target for copy in sync(source, target, ["a"]).copied] == ["a@1", "a@3"]
    assert {n: dump(target.pull(f"a@{n}")) for n in (1, 3, 4, 5)} == {
        n: dump(source.pull(f"a@{n}")) for n in (1, 3, 4, 5)
    }
    assert target.verify().problems == ()


def test_globs_choose_tasks(full):
    target = empty()
    sync(Hub(full), target, ["b*", "c"])
    assert [info.task for info in target.tasks()] == ["b", "c"]
    with pytest.raises(NotFoundError, match=r"no task matches 'x\*'"):
        sync(Hub(full), target, ["a", "x*"])
    assert [info.task for info in target.tasks()] == ["b", "c"]
    with pytest.raises(UsageError, match="is both hubs"):
        sync(target, target)


def test_a_dry_run_writes_nothing_and_tells_what_would_be_done(full):
    target = empty()
    target.push(tiny("a", 7))
    before = dict(target.store._objects)
    planned = sync(Hub(full), target, dry_run=True)
    assert target.store._objects == before
    done = sync(Hub(full), target)
    assert (planned.copied, planned.tags, planned.present) == (done.copied, done.tags, done.present)


def test_the_command(full, tmp_path, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["sync", *map(str, arguments)])
        return code, *capsys.readouterr()

    source, target = Hub.open(tmp_path / "from"), tmp_path / "to"
    sync(Hub(full), source)
    code, out, err = run(source.store.root, target, "--dry-run")
    assert (code, target.exists(), out.count("\n")) == (0, False, 8)
    assert "5 versions and 3 tags would be copied" in err
    code, out, err = run(source.store.root, target)
    assert (code, out.splitlines()[0]) == (0, f"a@1 {tiny('a', 0).digest}")
    assert content(Hub.open(target)) == content(source)
    Hub.open(target).push(tiny("d", 1))
    source.push(tiny("d", 2))
    code, out, _ = run(source.store.root, target, "--json", "--task", "d", "--check")
    assert (code, json.loads(out)["copied"][0]["target"]) == (0, "d@2")
    source.push(tiny("e", 3))
    key = keys.blob(source.version("e").sections[-1].data.blob)
    source.store.put(key, source.store.get(key)[::-1])
    source.push(tiny("f", 4))
    code, out, err = run(source.store.root, target)
    assert (code, out.partition(" ")[0]) == (1, "f@1")
    assert "e@1 is left out: blob" in err
    assert "1 left out, all others are there" in err
    assert run(tmp_path / "nowhere", target)[0] == 1
    assert run(target, target)[0] == 2


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

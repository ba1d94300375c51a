"""From hub to hub: the same bytes under the same numbers, whatever is cut off, damaged, taken or done at once."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from deltahub import keys
from deltahub.cli import main
from deltahub.errors import NotFoundError, UsageError
from deltahub.hub import Hub
from deltahub.stores import MemoryStore
from deltahub.syncing import Copy, sync
from tests.faults.soundness import assert_sound as sound
from tests.faults.stores import Watched, copy_of
from tests.hubs_to_sync import LONG, content, empty, filled, tags
from tests.test_hub import blobs, dump, tiny


@pytest.fixture(scope="module")
def full(base_of) -> MemoryStore:
    return filled(base_of("bert"))


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

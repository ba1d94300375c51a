"""Writers that die, bytes that change, collectors and pushers beside each other: what was pushed stays, or is named."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deltahub import keys, records, verification
from deltahub.delta import Delta
from deltahub.digest import BytesLike, of_bytes
from deltahub.errors import DeltahubError, FormatError, IntegrityError, NotFoundError, StoreError
from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.records import VersionRecord
from deltahub.stores import Entry, MemoryStore
from tests.deltas import random_delta
from tests.stores.test_contract import forked
from tests.test_hub import blobs, dump, tiny

YOUNG = 3600.0
"""A grace that makes what `aged` touched old, and what is written during the test young."""


class Killed(BaseException):
    """No `except Exception` may stop it, as none stops a power cut."""


class Watched:
    """A store that calls ``before(number, method, key)`` ahead of every operation; threads take turns."""

    def __init__(self, inner: MemoryStore, before: Callable[[int, str, str], None], *, remote: bool = False) -> None:
        self.inner, self.before, self.count = inner, before, 0
        self.url, self.remote = inner.url, remote
        self._turn = threading.RLock()

    def _do(self, method: str, *arguments: object, **options: object) -> object:
        with self._turn:
            self.before(self.count, method, str(arguments[0]) if arguments else "")
            self.count += 1
            return getattr(self.inner, method)(*arguments, **options)

    def list(self, folder: str = "") -> Iterator[Entry]:
        return self._do("list", folder)

    def stat(self, key: str) -> Entry | None:
        return self._do("stat", key)

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        return self._do("get", key, start, size)

    def put(self, key: str, data: BytesLike, *, durable: bool = True) -> None:
        self._do("put", key, data, durable=durable)

    def put_new(self, key: str, data: BytesLike) -> bool:
        return self._do("put_new", key, data)

    def delete(self, key: str) -> None:
        self._do("delete", key)

    def unfinished(self) -> Iterator[Entry]:
        return self._do("unfinished")


def dying_at(last: int) -> Callable[[int, str, str], None]:
    def before(number: int, *_: str) -> None:
        if number >= last:
            raise Killed

    return before


def failing_at(last: int) -> Callable[[int, str, str], None]:
    def before(number: int, *_: str) -> None:
        if number == last:
            raise StoreError("no room")

    return before


def copy_of(store: MemoryStore, aged: float = 0.0, name: str = "copy") -> MemoryStore:
    """The same objects, ``aged`` seconds older."""
    made = MemoryStore(name)
    made._objects = {key: (data, modified - aged) for key, (data, modified) in store._objects.items()}
    return made


@pytest.fixture(scope="module")
def file_mask(base_of) -> Mask:
    base = base_of("bert")
    return Mask.of_indices(base, np.arange(0, 3000, 7))


@pytest.fixture(scope="module")
def full(base_of, file_mask) -> tuple[MemoryStore, dict[str, bytes]]:
    """A store with three versions, a tag, two masks, an orphan blob, and the bytes of what was pushed."""
    base = base_of("bert")
    hub = Hub.open("memory://test-faults")
    deltas = [tiny("a", 0), random_delta(base, file_mask, 1, task="b", classes=2), tiny("a", 3)]
    for delta in deltas:
        hub.push(delta, ["prod"], mask=file_mask if delta.task == "b" else None)
    hub.push(tiny("gone", 7))
    hub.remove("gone", force=True)
    return hub.store, {"a@1": dump(deltas[0]), "b@1": dump(deltas[1]), "a@2": dump(deltas[2])}


def sound(hub: Hub, expected: dict[str, bytes]) -> None:
    assert hub.verify().problems == ()
    assert {f"{r.task}@{r.number}" for task in hub.tasks() for r in hub.versions(task.task)} == expected.keys()
    assert {reference: dump(hub.pull(reference)) for reference in expected} == expected


def every_operation(
    store: MemoryStore,
    job: Callable[[Hub], object],
    at: Callable[[int], Callable[[int, str, str], None]],
    *,
    remote: bool = False,
) -> Iterator[tuple[MemoryStore, BaseException | None]]:
    """Runs ``job`` on copies of ``store``, each disturbed one operation later, until one comes through."""
    for number in range(1000):
        inner = copy_of(store)
        watched = Watched(inner, at(number), remote=remote)
        try:
            job(Hub(watched))
        except (Killed, StoreError) as error:
            yield inner, error
        else:
            yield inner, None
            if watched.count <= number:
                assert number > 3
                return
    raise AssertionError("it never ended")


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("at", [dying_at, failing_at])
@pytest.mark.parametrize("kind", ["new", "file-mask", "equal", "same-content"])
def test_a_push_that_dies_anywhere_is_invisible_or_whole(full, base_of, at, kind, remote):
    store, expected = full
    base = base_of("bert")
    mask = Mask.of_indices(base, np.arange(1, 3000, 7)) if kind == "file-mask" else None
    delta = {
        "new": tiny("c", 9), "file-mask": random_delta(base, mask, 3, task="c"), "equal": tiny("a", 3),
        "same-content": tiny("c", 0),
    }[kind]  # fmt: skip
    for inner, error in every_operation(store, lambda hub: hub.push(delta, ["new"], mask=mask), at, remote=remote):
        hub = Hub(inner)
        now = dict(expected)
        if "c" in [info.task for info in hub.tasks()]:
            now["c@1"] = dump(delta)
        elif error is None:
            assert delta.task == "a"
        sound(hub, now)
        assert hub.tags("a")["prod"] == 2
        hub.gc(grace_seconds=0)
        sound(hub, now)
        needed = {s.data.blob for ref in now for s in hub.version(ref).sections} | {
            m.data.blob for m in hub.masks() if m.data
        }
        assert blobs(hub).keys() == {keys.blob(name) for name in needed}
        assert list(inner.list("pushing")) == []
        found = hub.push(delta, ["new"], mask=mask)
        assert dump(hub.pull(f"{delta.task}:new")) == dump(delta)
        assert found.number == (2 if delta.task == "a" else 1)
        assert hub.verify().problems == ()


@pytest.mark.parametrize("at", [dying_at, failing_at])
def test_a_removal_that_dies_anywhere_removes_a_version_or_leaves_it(full, at):
    store, expected = full
    for inner, error in every_operation(store, lambda hub: hub.remove("a", force=True), at):
        hub = Hub(inner)
        left = {f"a@{r.number}" for r in hub.versions("a")} if "a" in {t.task for t in hub.tasks()} else set()
        assert error or not left
        now = {ref: data for ref, data in expected.items() if ref in left or ref == "b@1"}
        sound(hub, now)
        hub.gc(grace_seconds=0)
        sound(hub, now)
        assert not any(
            keys.tombstone("a", n) in inner._objects and keys.version("a", n) in inner._objects for n in (1, 2)
        )
        assert hub.push(tiny("a", 1)).number == 3
        assert hub.report().total > 0


@pytest.mark.parametrize("at", [dying_at, failing_at])
def test_a_collection_that_dies_anywhere_loses_nothing(full, at):
    store, expected = full
    for inner, _ in every_operation(store, lambda hub: hub.gc(grace_seconds=0), at):
        hub = Hub(inner)
        sound(hub, expected)
        hub.gc(grace_seconds=0)
        sound(hub, expected)
        assert len(blobs(hub)) == len({s.data.blob for r in expected for s in hub.version(r).sections}) + 1


def test_a_process_killed_at_any_call_leaves_a_sound_hub(tmp_path):
    """A child is ended by `os._exit` just before and just after each of its system calls that change the folder."""
    hub = Hub.open(tmp_path / "hub")
    first, second = tiny("a", 0), tiny("a", 1)
    hub.push(first)
    expected = {"a@1": dump(first)}
    step, died, number = 0, True, 1
    while died:
        died = forked(lambda last=step: (end_at(last), Hub.open(tmp_path / "hub").push(second, ["prod"]))) == 99
        step += 1
        for info in hub.versions("a")[len(expected) :]:
            number = info.number
            expected[info.reference] = dump(second)
        if died:
            sound(Hub.open(tmp_path / "hub", create=False), expected)
        if len(expected) > 1:  # visible: start anew, so that every step is a whole push
            hub.untag("a", "prod") if hub.tags("a") else None
            hub.remove(f"a@{number}")
            expected.pop(f"a@{number}")
            hub.gc(grace_seconds=0)
            assert list(hub.store.unfinished()) == list(hub.store.list("pushing")) == []
            sound(hub, expected)
    assert step > 20
    assert hub.push(second).number == number + 1
    assert len(blobs(hub)) == 4


def test_a_process_killed_while_it_makes_the_hub(tmp_path):
    step, died = 0, True
    while died:
        folder = tmp_path / str(step)
        died = forked(lambda last=step, place=folder: (end_at(last), Hub.open(place))) == 99
        Hub.open(folder).push(tiny("a", 0))
        sound(Hub.open(folder), {"a@1": dump(tiny("a", 0))})
        step += 1
    assert step > 5


def end_at(last: int) -> None:
    """Ends this process at the ``last`` of the calls that a local store changes its folder by; only for children."""
    calls = [0]

    def ending(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            for done in (False, True):
                if calls[0] == last:
                    os._exit(99)
                calls[0] += 1
                if not done:
                    result = real(*arguments, **options)
            return result

        return call

    for name in ("write", "fsync", "link", "replace", "unlink", "mkdir"):
        setattr(os, name, ending(getattr(os, name)))


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_flipped_bit_in_any_file_is_found_and_touches_only_its_own(full, place):
    store, expected = full
    for key, (data, modified) in store._objects.items():
        if not data or keys.parse(key)[1] == "removed":
            continue
        inner = copy_of(store)
        at = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[place]
        inner._objects[key] = (data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :], modified)
        hub = Hub(inner)
        problems = hub.verify().problems
        assert any(named(key, problem) for problem in problems), key
        affected = needing(store, key)
        if not key.startswith("masks/"):  # a version whose mask's record is damaged is named, and can be had
            assert {reference for problem in problems for reference in problem.needed_by} <= affected
        check_pulls(hub, expected, affected)
        heal(hub, expected, key)


def test_every_lost_blob_is_named_by_verify_and_pull(full):
    store, expected = full
    for key in blobs(Hub(store)):
        affected = needing(store, key)
        inner = copy_of(store)
        inner.delete(key)
        hub = Hub(inner)
        problems = hub.verify().problems
        masked = any(m.data and keys.blob(m.data.blob) == key for m in hub.masks())
        assert bool(problems) == (bool(affected) or masked)
        assert all(named(key, problem) and "missing" in problem.problem for problem in problems)
        assert {reference for problem in problems for reference in problem.needed_by} == affected
        check_pulls(hub, expected, affected, match=key.rpartition("/")[2][:16])
        heal(hub, expected, key)


def named(key: str, problem: object) -> bool:
    return problem.key == key or key.rpartition("/")[2].removesuffix(".json")[:16] in problem.problem


def needing(store: MemoryStore, key: str) -> set[str]:
    """Versions that cannot be had without ``key``."""
    versions = {r.reference: r for task in Hub(store).tasks() for r in Hub(store).versions(task.task)}
    return {
        reference
        for reference, record in versions.items()
        if key in {keys.version(record.task, record.number), *(keys.blob(s.data.blob) for s in record.sections)}
    }


def check_pulls(hub: Hub, expected: dict[str, bytes], affected: set[str], match: str | None = None) -> None:
    for reference, data in expected.items():
        if reference in affected:
            with pytest.raises((IntegrityError, FormatError, NotFoundError), match=match):
                hub.pull(reference)
        else:
            assert dump(hub.pull(reference)) == data


def heal(hub: Hub, expected: dict[str, bytes], key: str) -> None:
    """Pushing the task again, as the error says, gives a whole version; where a blob was lost, the old one is whole."""
    for reference in needing_now(hub, expected):
        task = reference.partition("@")[0]
        again = hub.push(Delta.loads(expected[reference]))
        assert dump(hub.pull(f"{task}@{again.number}")) == expected[reference]
        if key.startswith("blobs/"):
            assert dump(hub.pull(reference)) == expected[reference]
        else:
            assert hub.remove(reference, force=True) == [reference]


def needing_now(hub: Hub, expected: dict[str, bytes]) -> list[str]:
    broken = []
    for reference in expected:
        try:
            hub.pull(reference)
        except DeltahubError:
            broken.append(reference)
    return broken


@pytest.mark.parametrize("newest", [True, False])
def test_a_push_to_a_remote_store_reads_no_blob_that_is_there(full, newest):
    """Lost and cut ones are healed by the way, others when asked to."""
    store, _ = full
    delta = tiny("a", 3) if newest else tiny("c", 3)
    for key in {keys.blob(section.data.blob) for section in Hub(store).version("a@2").sections}:
        data = store.get(key)
        for bad in (data, None, data[:-1], data[:-1] + bytes([data[-1] ^ 1])):
            inner, touched = copy_of(store), []
            inner.delete(key) if bad is None else inner.put(key, bad)
            watched = Watched(inner, lambda _, *what, touched=touched: touched.append(what), remote=True)
            same_size = bad is not None and len(bad) == len(data)
            Hub(watched).push(delta)
            assert ("get", key) not in touched
            assert (("put", key) in touched) == (not same_size)
            Hub(watched).push(delta, check=True)
            assert inner.get(key) == data
            assert dump(Hub(inner).pull(delta.task)) == dump(delta)


def test_a_mask_on_a_remote_store_is_not_read_again(full, base_of, file_mask):
    store, _ = full
    delta, inner, touched = random_delta(base_of("bert"), file_mask, 5, task="b"), copy_of(store), []
    Hub(Watched(inner, lambda _, method, key: touched.append((method, key)), remote=True)).push(delta, mask=file_mask)
    [data] = [record.data for record in Hub(inner).masks() if record.data]
    assert ("get", keys.blob(data.blob)) not in touched
    inner.delete(keys.blob(data.blob))
    Hub(Watched(inner, lambda *_: None, remote=True)).push_mask(file_mask)
    assert Hub(inner).verify().problems == ()


def test_a_damaged_mask_is_healed_by_giving_it_again(full, file_mask):
    store, _ = full
    [data] = [record.data for record in Hub(store).masks() if record.data]
    for key in (keys.blob(data.blob), keys.mask(file_mask.digest)):
        for broken in (None, b"", b"x" * 50, store.get(key)[:-1]):
            inner = copy_of(store)
            inner.delete(key)
            if broken is not None:
                inner.put(key, broken)
            hub = Hub(inner)
            assert hub.verify().problems
            with pytest.raises((IntegrityError, FormatError, NotFoundError)):
                hub.mask(file_mask.digest)
            hub.push_mask(file_mask)
            assert hub.verify().problems == ()
            assert np.array_equal(hub.mask(file_mask.digest).indices, file_mask.indices)


def test_a_record_in_another_place_is_not_believed(full):
    store, _ = full
    for where in ("tasks/b/v00000002.json", "tasks/a/v00000009.json", "tasks/new/v00000001.json"):
        inner = copy_of(store)
        inner.put(where, store.get("tasks/a/v00000001.json"))
        hub = Hub(inner)
        assert where in [problem.key for problem in hub.verify().problems]
        _, task, name = where.split("/")
        with pytest.raises(FormatError, match="a@1"):
            hub.pull(f"{task}@{int(name[1:9])}")


@pytest.mark.parametrize(
    ("lost", "needed_by"),
    [("tasks/a/v00000001.json", ()), ("tasks/a/tag.prod.json", ()), ("bases", ("a@1", "a@2"))],
    ids=["record below another", "record that a tag names", "base"],
)
def test_verify_names_what_was_deleted_by_hand(full, lost, needed_by):
    store, _ = full
    inner = copy_of(store)
    if lost == "bases":
        lost = keys.base(Hub(store).version("a").manifest.base.digest)
    inner.delete(lost if "tag" not in lost else "tasks/a/v00000002.json")
    [problem] = Hub(inner).verify().problems
    assert (problem.key, sorted(problem.needed_by)) == (lost, list(needed_by))
    if needed_by:
        Hub(inner).push(tiny("a", 3))
        assert Hub(inner).verify().problems == ()


def test_a_loose_blob_is_verified_in_pieces(full, monkeypatch):
    store, _ = full
    sizes = []
    monkeypatch.setattr(verification, "_PIECE", 1000)
    for name, good in ((of_bytes(b"x" * 2500), True), (of_bytes(b"y"), False), (of_bytes(b""), False)):
        inner = copy_of(store)
        inner.put(keys.blob(name), b"x" * 2500)
        watched = Watched(inner, lambda *_: None)
        get = watched.get
        watched.get = lambda key, start=0, size=None, get=get: (sizes.append((key, size)), get(key, start, size))[1]
        problems = Hub(watched).verify().problems
        assert [problem.key for problem in problems] == ([] if good else [keys.blob(name)])
        assert {size for key, size in sizes if key == keys.blob(name)} == {1000}


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
    sound(hub, {"a@1": dump(tiny("a", 0))})


@pytest.mark.parametrize("change", [{"format_version": True}, {"format_version": 1.0}, {"format_version": 2}])
def test_a_sealed_record_of_another_format_version_is_refused(full, change):
    store, _ = full
    key = "tasks/a/v00000001.json"
    document = json.loads(store.get(key)) | change
    del document["check"]
    with pytest.raises(FormatError, match="format_version"):
        VersionRecord.from_bytes(records.seal(document), key)


def test_a_record_that_claims_more_than_the_store_has_is_refused(full):
    store, _ = full
    inner = copy_of(store)
    key = "tasks/a/v00000001.json"
    document = json.loads(store.get(key))
    del document["check"]
    document["sections"][0]["stored"] = 1 << 48
    inner.put(key, records.seal(document))
    with pytest.raises(IntegrityError, match=f"expected {1 << 48} bytes"):
        Hub(inner).pull("a@1")


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
    sound(Hub(inner), expected)


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
    sound(hub, expected)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("grace", [0.0, YOUNG])
def test_a_collection_at_any_moment_of_a_push_takes_nothing_from_it(full, grace, remote):
    """The push finds its blobs there, old and needed by nothing: what a collector is about to delete."""
    store, expected = full
    delta = tiny("new", 7)
    number, ended = 0, False
    while not ended:
        inner = copy_of(store, aged=2 * YOUNG)
        taken: list[str] = []
        guarded: list[str] = []

        def before(count: int, *_: str, last=number, place=inner, taken=taken, guarded=guarded) -> None:
            if count == last:
                guarded += [entry.key for entry in place.list("pushing")]
                taken += Hub(place).gc(grace_seconds=grace).deleted

        watched = Watched(inner, before, remote=remote)
        found = Hub(watched).push(delta, ["prod"])
        ended = watched.count <= number
        assert found.number == 1
        sound(Hub(inner), expected | {"new@1": dump(delta)})
        own = {keys.blob(section.data.blob) for section in Hub(inner).version("new").sections}
        if guarded and grace:
            assert own.isdisjoint(taken)
        elif number == 0:
            assert not own.isdisjoint(taken)
        number += 1
    assert number > 8


@pytest.mark.parametrize("remote", [False, True])
def test_a_push_at_any_moment_of_a_collection_loses_nothing(full, remote):
    store, expected = full
    delta = tiny("new", 7)
    number, ended = 0, False
    with ThreadPoolExecutor(1) as pool:
        while not ended:
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

            watched = Watched(inner, before)
            Hub(watched).gc(grace_seconds=YOUNG)
            ended = watched.count <= number
            for pushed in pushes:
                pushed.result()
                sound(Hub(inner), expected | {"new@1": dump(delta)})
            number += 1
    assert number > 10


def test_a_dead_collector_keeps_no_push_waiting_for_ever(full):
    store, expected = full
    inner = MemoryStore()
    inner._objects = dict(store._objects)
    inner.put(keys.mark("dead"), b"")
    inner._objects = copy_of(inner, aged=61)._objects
    watched = Watched(inner, lambda _, method, key: fail(key) if (method, key) == ("stat", keys.mark("dead")) else None)
    Hub(watched).push(tiny("c", 9))
    sound(Hub(inner), expected | {"c@1": dump(tiny("c", 9))})
    assert keys.mark("dead") in Hub(inner).gc(grace_seconds=0).deleted


def test_a_lease_that_cannot_be_dropped_is_no_reason_to_fail(full):
    store, expected = full
    inner = copy_of(store)

    def before(_: int, method: str, key: str) -> None:
        if method == "delete" and key.startswith("pushing/"):
            raise StoreError("unreachable")

    assert Hub(Watched(inner, before)).push(tiny("c", 9)).number == 1
    sound(Hub(inner), expected | {"c@1": dump(tiny("c", 9))})
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
    sound(Hub(inner), expected | {"a@4": dump(tiny("a", 12))})
    assert keys.version("a", 3) not in inner._objects


def test_two_processes_that_push_one_task_get_two_versions(tmp_path):
    """They also make the hub, both at once."""
    fork = multiprocessing.get_context("fork")
    rounds = 6
    barrier = fork.Barrier(2)

    def push(seed: int) -> None:
        for turn in range(rounds):
            barrier.wait(60)
            Hub.open(tmp_path / str(turn)).push(tiny("a", seed + turn), ["prod"])

    pushers = [fork.Process(target=push, args=(seed,)) for seed in (0, 100)]
    for pusher in pushers:
        pusher.start()
    for pusher in pushers:
        pusher.join()
        assert pusher.exitcode == 0
    for turn in range(rounds):
        hub = Hub.open(tmp_path / str(turn), create=False)
        assert {dump(hub.pull(f"a@{n}")) for n in (1, 2)} == {dump(tiny("a", turn)), dump(tiny("a", 100 + turn))}
        assert [record.number for record in hub.versions("a")] == [1, 2]
        assert hub.tags("a")["prod"] in (1, 2)
        assert hub.verify().problems == ()
        assert hub.gc(grace_seconds=0).deleted == ()


def test_many_threads_push_tag_remove_and_collect_at_once(tmp_path):
    hub = Hub.open(tmp_path / "hub")

    def work(worker: int) -> None:
        for turn in range(4):
            delta = tiny("a", 10 * worker + turn)
            number = hub.push(delta).number
            assert dump(hub.pull(f"a@{number}")) == dump(delta)
            if turn % 2:
                hub.remove(f"a@{number}", force=True)
            else:
                hub.tag("a", number, f"t{worker}-{turn}")
            if worker == 0:
                hub.gc()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(hub.versions("a")) == len(hub.tags("a")) == 8
    assert hub.verify().problems == ()
    hub.gc(grace_seconds=0)
    assert hub.verify().loose == ()
    for tag, number in hub.tags("a").items():
        worker, turn = (int(part) for part in tag[1:].split("-"))
        assert dump(hub.pull(f"a@{number}")) == dump(tiny("a", 10 * worker + turn))

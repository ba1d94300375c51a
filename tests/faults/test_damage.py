"""Bytes that change or go: the damage is found, named, and touches nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deltahub import keys, sealed, verification
from deltahub.delta import Delta
from deltahub.digest import of_bytes
from deltahub.errors import DeltahubError, FormatError, IntegrityError, NotFoundError
from deltahub.hub import Hub
from deltahub.records import VersionRecord
from deltahub.stores import MemoryStore
from tests.deltas import random_delta
from tests.faults.soundness import count_run
from tests.faults.stores import Watched, copy_of
from tests.test_hub import blobs, dump, tiny


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_flipped_bit_in_any_file_is_found_and_touches_only_its_own(full, place):
    store, expected = full
    chosen = [key for key, (data, _) in store._objects.items() if data and keys.parse(key)[1] != "removed"]
    for key in chosen:
        data, modified = store._objects[key]
        inner = copy_of(store)
        at = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[place]
        inner._objects[key] = (data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :], modified)
        hub = Hub(inner)
        problems = hub.verify().problems
        assert any(named(key, problem) for problem in problems), key
        affected = needing(store, key)
        if not key.startswith("masks/"):  # a version whose mask's record is damaged is named, and can be had
            owners = {owner for problem in problems for owner in problem.needed_by if not owner.startswith("mask ")}
            assert owners <= affected
        check_pulls(hub, expected, affected)
        heal(hub, expected, key)
        count_run()


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
        owners = {owner for problem in problems for owner in problem.needed_by if not owner.startswith("mask ")}
        assert owners == affected
        check_pulls(hub, expected, affected, match=key.rpartition("/")[2][:16])
        heal(hub, expected, key)
        count_run()


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
            count_run()


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
        count_run()


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
    count_run()
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
        count_run()


@pytest.mark.parametrize("change", [{"format_version": True}, {"format_version": 1.0}, {"format_version": 2}])
def test_a_sealed_record_of_another_format_version_is_refused(full, change):
    store, _ = full
    key = "tasks/a/v00000001.json"
    document = json.loads(store.get(key)) | change
    del document["check"]
    with pytest.raises(FormatError, match="format_version"):
        VersionRecord.from_bytes(sealed.seal(document), key)
    count_run()


def test_a_record_that_claims_more_than_the_store_has_is_refused(full):
    store, _ = full
    inner = copy_of(store)
    key = "tasks/a/v00000001.json"
    document = json.loads(store.get(key))
    del document["check"]
    document["sections"][0]["stored"] = 1 << 30
    inner.put(key, sealed.seal(document))
    with pytest.raises(IntegrityError, match=f"expected {1 << 30} bytes"):
        Hub(inner).pull("a@1")
    count_run()


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
            count_run()


def test_a_mask_on_a_remote_store_is_not_read_again(full, base_of, file_mask):
    store, _ = full
    delta, inner, touched = random_delta(base_of("bert"), file_mask, 5, task="b"), copy_of(store), []
    Hub(Watched(inner, lambda _, method, key: touched.append((method, key)), remote=True)).push(delta, mask=file_mask)
    [data] = [record.data for record in Hub(inner).masks() if record.data]
    assert ("get", keys.blob(data.blob)) not in touched
    inner.delete(keys.blob(data.blob))
    Hub(Watched(inner, lambda *_: None, remote=True)).push_mask(file_mask)
    assert Hub(inner).verify().problems == ()
    count_run()


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

"""A cache gives what the remote store would give or better, moves each byte once, and never stands in the way."""

from __future__ import annotations

import os
import resource
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deltahub import keys, records
from deltahub.errors import IntegrityError, NotFoundError
from deltahub.hub import Hub
from deltahub.stores import MemoryStore, partial
from deltahub.stores.cached import BlobCache, CachedStore, unkept
from deltahub.syncing import sync
from tests.stores.test_contract import StoreContract, forked
from tests.stores.watched import RemoteStore, put_blob
from tests.test_hub import dump, tiny

PIECE = 1000
DATA = bytes(range(256)) * 40
"""Eleven pieces."""


@pytest.fixture
def cache(tmp_path) -> BlobCache:
    return BlobCache(tmp_path / "cache", 1 << 20)


@pytest.fixture
def remote() -> RemoteStore:
    return RemoteStore(MemoryStore())


@pytest.fixture
def key(remote) -> str:
    return put_blob(remote.inner, DATA)


def through(remote: RemoteStore, folder: Path, limit: int = 1 << 20, **options: object) -> CachedStore:
    """As a process that starts now sees it."""
    return CachedStore(remote, BlobCache(folder, limit, **options), piece=PIECE)


def part_of(store: CachedStore, key: str) -> Path:
    return store.cache.folder / f"{key}.part"


class TestCachedStore(StoreContract):
    @pytest.fixture
    def store(self, cache, remote) -> CachedStore:
        return CachedStore(remote, cache, piece=PIECE)


@pytest.mark.parametrize("start", [0, 1, 999, 1000, len(DATA), len(DATA) + 5])
@pytest.mark.parametrize("size", [None, 0, 1, 1000, len(DATA), len(DATA) + 1, 1 << 40])
def test_any_range_of_a_blob_is_the_slice_before_and_after_it_is_kept(tmp_path, remote, key, start, size):
    store = through(remote, tmp_path)
    expected = DATA[start:] if size is None else DATA[start : start + size]
    assert store.get(key, start, size) == expected
    assert store.get(key) == DATA
    moved = remote.moved
    assert store.get(key, start, size) == expected
    assert remote.moved == moved
    assert [path.name for path in store.cache.folder.rglob("*.part")] == []


def test_a_blob_moves_once_for_all_hubs_and_processes(tmp_path, remote, key):
    for _ in range(3):
        assert through(remote, tmp_path).get(key, 0, len(DATA) + 1) == DATA
    other = RemoteStore(MemoryStore())
    assert through(other, tmp_path).get(key) == DATA
    assert (remote.moved, other.moved) == (len(DATA), 0)


def test_records_are_asked_for_every_time(cache, remote):
    store = CachedStore(remote, cache)
    for number in range(3):
        for name in ("tasks/a/tag.prod.json", "hub.json", "blobs/ab/abc", f"blobs/ab/{'cd' * 32}"):
            remote.inner.put(name, b"%d" % number)
            assert store.get(name) == b"%d" % number
    assert cache.usage().entries == 0


def test_what_is_written_is_not_kept(cache, remote):
    store = CachedStore(remote, cache)
    put_blob(store, DATA)
    assert cache.usage().bytes == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "empty", "link"])
def test_a_damaged_entry_is_fetched_anew(tmp_path, remote, key, damage):
    store = through(remote, tmp_path / "cache")
    store.get(key)
    path = store.cache.folder / key
    changed = {"flip": b"\xff" + DATA[1:], "cut": DATA[:-1], "longer": DATA + b"x", "empty": b"", "link": DATA}
    path.write_bytes(changed[damage])
    if damage == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    assert store.get(key) == DATA
    assert path.read_bytes() == DATA
    assert not path.is_symlink()
    assert remote.moved == 2 * len(DATA)


def test_damage_in_the_store_is_an_error_as_without_a_cache_and_is_not_kept(cache):
    place = MemoryStore()
    Hub(place).push(tiny("a", 1))
    blob = Hub(place).version("a").sections[0].data.blob
    good = place.get(keys.blob(blob))
    place.put(keys.blob(blob), bytes(len(good)))
    hub = Hub(CachedStore(RemoteStore(place), cache))
    for _ in range(2):
        with pytest.raises(IntegrityError, match=blob[:16]):
            hub.pull("a")
    place.put(keys.blob(blob), good)
    assert dump(hub.pull("a")) == dump(tiny("a", 1))


def test_a_download_cut_off_by_kill_goes_on_in_a_new_process(tmp_path, remote, key):
    def die(count: int) -> None:
        if count == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    dying = RemoteStore(remote.inner, die)
    assert forked(lambda: through(dying, tmp_path).get(key)) == -signal.SIGKILL
    store = through(remote, tmp_path)
    assert store.cache.usage().unfinished == 1
    assert store.get(key, 0, len(DATA) + 1) == DATA
    assert remote.moved == len(DATA) - 7 * PIECE
    assert store.cache.usage().unfinished == 0


@pytest.mark.parametrize("left", [b"x", bytes(len(DATA)), bytes(3 * len(DATA)), DATA[:-1] + b"x", DATA])
def test_what_a_broken_download_left_may_be_anything(tmp_path, remote, key, left):
    store = through(remote, tmp_path)
    part_of(store, key).parent.mkdir(parents=True)
    part_of(store, key).write_bytes(left)
    assert store.get(key, 0, len(DATA) + 1) == DATA
    assert store.get(key) == DATA
    assert remote.moved <= 2 * len(DATA)


def test_a_failing_store_leaves_what_came_and_nothing_where_nothing_came(tmp_path, remote, key):
    def fail(count: int) -> None:
        if count == 4:
            raise ConnectionError

    store = through(RemoteStore(remote.inner, fail), tmp_path)
    with pytest.raises(ConnectionError):
        store.get(key)
    assert part_of(store, key).read_bytes() == DATA[: 3 * PIECE]
    with pytest.raises(NotFoundError):
        store.get(f"blobs/ab/{'ab' * 32}")
    assert store.cache.usage().unfinished == 1


@pytest.mark.parametrize("processes", [False, True])
def test_all_who_want_a_blob_at_once_share_one_download(tmp_path, remote, key, processes):
    """Each get of the store leaves a line in a file, which processes share."""
    log = os.open(tmp_path / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    start = threading.Barrier(6)

    def want() -> None:
        store = through(RemoteStore(remote.inner, lambda count: os.write(log, b".")), tmp_path / "cache")
        assert store.get(key) == DATA

    def one(_: int) -> int:
        start.wait(30)
        if processes:
            return forked(want)
        want()
        return 0

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(one, range(6))) == 0
    os.close(log)
    assert len((tmp_path / "log").read_bytes()) == -(-len(DATA) // PIECE)


def test_a_download_that_stands_still_is_not_waited_for(tmp_path, remote, key):
    store = through(remote, tmp_path, patience=0.0)
    part_of(store, key).parent.mkdir(parents=True)
    held = partial.hold(part_of(store, key), 0.0)
    held.append(DATA[:10])
    assert store.get(key) == DATA
    assert store.cache.clear().unfinished == 1
    assert part_of(store, key).exists()
    held.close()
    assert store.get(key) == DATA
    assert remote.moved == 2 * len(DATA) - 10


def test_what_was_not_read_for_the_longest_time_goes(tmp_path, remote):
    blobs = [bytes([number]) * 1000 for number in range(40)]
    names = [put_blob(remote.inner, blob) for blob in blobs]
    store = through(remote, tmp_path, 16_000)
    for number, name in enumerate(names):
        assert store.get(names[0]) == blobs[0]
        assert store.get(name) == blobs[number]
        for age, one in enumerate(reversed(names[1 : number + 1])):
            if (path := tmp_path / one).exists():
                os.utime(path, (0, 1e9 - age))
        assert store.cache.usage().bytes <= 16_000 + 16_000 // 16
    moved = remote.moved
    for name in (names[0], *names[-10:]):
        store.get(name)
    assert remote.moved == moved
    store.get(names[1])
    assert remote.moved > moved


def test_a_blob_larger_than_the_limit_is_read_and_not_kept(tmp_path, remote, key):
    store = through(remote, tmp_path, len(DATA) - 1)
    for _ in range(2):
        assert store.get(key) == DATA
    assert store.cache.usage().bytes == 0


def test_a_full_disk_is_told_once_and_reading_goes_on(tmp_path, remote, key):
    other = put_blob(remote.inner, DATA[::-1])
    warnings: list[str] = []

    def read() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))
        store = through(remote, tmp_path, warn=warnings.append)
        assert [store.get(key), store.get(other), store.get(key)] == [DATA, DATA[::-1], DATA]
        assert len(warnings) == 1
        assert "cannot be used" in warnings[0]
        assert store.cache.usage().bytes == 0

    assert forked(read) == 0


def test_a_folder_that_is_none_is_told_once_and_reading_goes_on(tmp_path, remote, key):
    (tmp_path / "file").write_bytes(b"mine")
    store = through(remote, tmp_path / "file")
    with pytest.warns(UserWarning, match="cannot be used") as told:
        assert [store.get(key), store.get(key)] == [DATA, DATA]
    assert len(told) == 1
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_clearing_removes_blobs_and_nothing_else(tmp_path, remote, key):
    store = through(remote, tmp_path)
    store.get(key)
    (tmp_path / "blobs/ab").mkdir(exist_ok=True)
    for stranger in ("digest", "blobs/ab/notes.txt", "blobs/readme"):
        (tmp_path / stranger).write_bytes(b"mine")
    assert store.cache.clear().entries == 1
    assert store.cache.usage().bytes == 0
    assert {path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == {b"mine"}


def test_verify_and_a_checking_push_look_at_the_hub_and_not_at_the_copy(cache):
    place = MemoryStore()
    place.put("hub.json", records.HUB)
    hub = Hub(CachedStore(RemoteStore(place), cache))
    hub.push(tiny("a", 1))
    assert dump(hub.pull("a")) == dump(tiny("a", 1))
    assert hub.verify().problems == ()
    blob = keys.blob(hub.version("a").sections[0].data.blob)
    place.put(blob, bytes(len(place.get(blob))))
    assert dump(hub.pull("a")) == dump(tiny("a", 1))
    assert [problem.key for problem in hub.verify().problems] == [blob]
    hub.push(tiny("a", 1), check=True)
    assert hub.verify().problems == ()


def test_a_sync_goes_on_with_a_large_blob_and_keeps_no_copy(tmp_path, remote, key):
    def fail(count: int) -> None:
        if count == 6:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        unkept(through(RemoteStore(remote.inner, fail), tmp_path)).get(key, 0, len(DATA) + 1)
    store = unkept(through(remote, tmp_path))
    assert store.get(key, 0, len(DATA) + 1) == DATA
    assert remote.moved == len(DATA) - 5 * PIECE
    assert store.cache.usage().bytes == 0


def test_a_sync_from_a_cached_hub_copies_all_and_keeps_nothing(cache):
    source = MemoryStore("source")
    for store in (source, target := MemoryStore("target")):
        store.put("hub.json", records.HUB)
    Hub(source).push(tiny("a", 1))
    sync(Hub(CachedStore(RemoteStore(source), cache)), Hub(target))
    assert dump(Hub(target).pull("a")) == dump(tiny("a", 1))
    assert cache.usage().bytes == 0

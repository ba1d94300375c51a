"""What every store must do: one class of laws, which the tests of each kind of store subclass."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub.errors import NotFoundError, UsageError
from deltahub.stores import MemoryStore, Store, open_store

UNSAFE = [
    "", "/", "a/", "/a", "a//b", ".", "..", "a/..", "../a", "a/../b", "a/./b", "a\\b", "C:a", "a b", "a\nb", "a\0b",
    "ä", "a" * 901, "a%2e", "~", "a*", "a?b",
]  # fmt: skip
KEYS = ["hub.json", "blobs/ab/abc", "blobs/ab/abd", "blobs/b/abc", "blobs.x", "tasks/a/v00000001.json", "tasks/a.b/x"]
LARGE = bytes(range(256)) * 4096


class StoreContract:
    """Subclass it and give the fixture `store`: a new, empty store.

    ``replacements`` is how often an object is replaced while others read it; fewer where every byte is slow.
    """

    replacements = 40

    def test_what_is_put_is_got_and_replaced(self, store: Store):
        for data in (b"first", LARGE, b"", b"last", memoryview(b"view"), bytearray(b"array")):
            store.put("a/b", data)
            assert store.get("a/b") == bytes(data)
            store.put("a/b", data, durable=False)
            assert store.get("a/b") == bytes(data)

    @pytest.mark.parametrize("data", [b"", b"0123456789"])
    @pytest.mark.parametrize("start", [0, 3, 9, 10, 11, 1000])
    @pytest.mark.parametrize("size", [None, 0, 1, 7, 10, 1 << 40])
    def test_a_range_is_the_slice(self, store: Store, data, start, size):
        store.put("a", data)
        assert store.get("a", start, size) == (data[start:] if size is None else data[start : start + size])

    def test_what_is_not_there(self, store: Store):
        store.put("a/b", b"x")
        for key in ("b", "a/c", "a/b/c", "a", "a/b.x"):
            assert store.stat(key) is None
            with pytest.raises(NotFoundError, match=key):
                store.get(key)
            store.delete(key)
        assert store.get("a/b") == b"x"
        assert list(store.list("none")) == list(store.list("a/b")) == []

    def test_an_empty_store_has_nothing(self, store: Store):
        assert list(store.list()) == list(store.list("a")) == list(store.unfinished()) == []
        assert store.stat("a") is None
        store.delete("a/b")

    def test_list_and_stat_tell_the_same(self, store: Store):
        for size, key in enumerate(KEYS):
            store.put(key, b"x" * size)
        found = {entry.key: entry for entry in store.list()}
        assert {key: entry.size for key, entry in found.items()} == {key: size for size, key in enumerate(KEYS)}
        assert all(store.stat(key) == entry for key, entry in found.items())
        for folder in ("blobs", "blobs/ab", "tasks", "tasks/a", "blob"):
            assert {entry.key for entry in store.list(folder)} == {key for key in KEYS if key.startswith(f"{folder}/")}

    def test_times_never_run_backwards(self, store: Store):
        times = []
        for key in ("a", "b", "a", "c"):
            store.put(key, b"")
            times.append(store.stat(key).modified)
        assert times == sorted(times)

    def test_delete(self, store: Store):
        for key in KEYS:
            store.put(key, b"x")
        for number, key in enumerate(KEYS):
            store.delete(key)
            store.delete(key)
            assert store.stat(key) is None
            assert {entry.key for entry in store.list()} == set(KEYS[number + 1 :])

    def test_put_new_never_replaces(self, store: Store):
        assert store.put_new("a/b", b"first") is True
        assert store.put_new("a/b", b"second") is False
        assert store.get("a/b") == b"first"
        store.put("a/b", b"third")
        assert store.put_new("a/b", b"fourth") is False
        store.delete("a/b")
        assert store.put_new("a/b", b"") is True
        assert store.put_new("a/b", b"fifth") is False
        assert store.get("a/b") == b""
        assert list(store.unfinished()) == []

    def test_of_many_threads_one_creates(self, store: Store):
        many = 8
        barrier = threading.Barrier(many)

        def create(number: int) -> list[bool]:
            won = []
            for turn in range(5):
                barrier.wait()
                won.append(store.put_new(f"race/{turn}", str(number).encode() * 1000))
            return won

        with ThreadPoolExecutor(many) as pool:
            results = list(pool.map(create, range(many)))
        for turn, won in enumerate(zip(*results, strict=True)):
            assert sum(won) == 1
            assert store.get(f"race/{turn}") == str(won.index(True)).encode() * 1000
        assert list(store.unfinished()) == []

    def test_readers_see_whole_objects_while_they_are_replaced(self, store: Store):
        contents = [bytes([number]) * (200_000 + number) for number in range(4)]
        store.put("a", contents[0])
        done = threading.Event()

        def read() -> set[bytes]:
            seen = set()
            while not done.is_set():
                seen.add(store.get("a"))
                assert [entry.key for entry in store.list()] == ["a"]
            return seen

        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            try:
                for number in range(self.replacements):
                    store.put("a", contents[number % 4], durable=number % 2 == 0)
            finally:
                done.set()
            assert all(reader.result() <= set(contents) for reader in readers)

    @pytest.mark.parametrize("key", UNSAFE)
    def test_unsafe_keys_are_refused_by_every_method(self, store: Store, key):
        calls: list[Callable[[], object]] = [
            lambda: store.get(key), lambda: store.stat(key), lambda: store.delete(key),
            lambda: store.put(key, b"x"), lambda: store.put_new(key, b"x"), lambda: store.put(key, b"x", durable=False),
        ]  # fmt: skip
        if key:
            calls.append(lambda: list(store.list(key)))
        for call in calls:
            with pytest.raises(UsageError, match="key"):
                call()
        assert list(store.list()) == []

    def test_its_url_names_it(self, store: Store):
        assert "://" in store.url


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    def test_a_name_is_one_store_and_another_name_another(self):
        one = open_store("memory://contract-one")
        one.put("a", b"x")
        assert open_store(one.url).get("a") == b"x"
        assert open_store("memory://contract-two").stat("a") is None

    @given(st.lists(st.tuples(st.sampled_from("prd"), st.sampled_from(KEYS), st.binary(max_size=8)), max_size=20))
    def test_is_a_dictionary(self, steps):
        same_as_a_dictionary(MemoryStore(), steps)


@pytest.mark.parametrize(
    "url",
    ["", "a\0b", "memory://", "memory://a/b", "memory://a b", "file://host/a", "file://a", "file://%00", "gopher://x"],
)
def test_urls_that_mean_nothing_are_refused(url):
    with pytest.raises(UsageError, match="hub"):
        open_store(url)


def forked(job: Callable[[], object]) -> int:
    """Runs ``job`` in a child of this process; 0 if it came to its end, else 70, or what it gave to `os._exit`."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            job()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def same_as_a_dictionary(store: Store, steps: list[tuple[str, str, bytes]]) -> None:
    """``p`` puts, ``r`` creates if it is not there, ``d`` deletes."""
    model: dict[str, bytes] = {}
    for step, key, data in steps:
        if step == "p":
            store.put(key, data)
            model[key] = data
        elif step == "r":
            assert store.put_new(key, data) is (key not in model)
            model.setdefault(key, data)
        else:
            store.delete(key)
            model.pop(key, None)
        assert {entry.key: store.get(entry.key) for entry in store.list()} == model

"""What every store must do: one class of laws, which the tests of each kind of store subclass."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltahub.errors import NotFoundError, StoreError, UsageError
from deltahub.stores import LocalStore, MemoryStore, Store, open_store

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


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path) -> LocalStore:
        return LocalStore(tmp_path / "deep" / "hub")

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(st.lists(st.tuples(st.sampled_from("prd"), st.sampled_from(KEYS), st.binary(max_size=8)), max_size=12))
    def test_is_a_dictionary(self, steps):
        with tempfile.TemporaryDirectory() as folder:
            same_as_a_dictionary(LocalStore(Path(folder)), steps)

    @pytest.mark.parametrize("url", ["{}", "file://{}", "file://localhost{}", "file://{}/"])
    def test_a_path_and_its_urls_are_one_place(self, store: LocalStore, url):
        store.put("a", b"x")
        assert open_store(url.format(store.root)).get("a") == b"x"
        assert open_store(store.url).get("a") == b"x"
        assert open_store(store.root).get("a") == b"x"

    def test_nothing_is_made_before_the_first_write(self, store: LocalStore):
        store.stat("a/b")
        list(store.list())
        store.delete("a/b")
        assert not store.root.parent.exists()

    def test_unfinished_files_are_told_apart_and_can_be_deleted(self, store: LocalStore):
        store.put("a/b", b"x")
        (store.root / "a" / ".b.0123456789ab.part").write_bytes(b"half")
        (store.root / ".hub.json.0123456789ab.part").write_bytes(b"")
        assert [entry.key for entry in store.list()] == ["a/b"]
        left = {entry.key: entry.size for entry in store.unfinished()}
        assert left == {"a/.b.0123456789ab.part": 4, ".hub.json.0123456789ab.part": 0}
        for key in left:
            store.delete(key)
        assert list(store.unfinished()) == []
        assert store.get("a/b") == b"x"

    def test_symbolic_links_are_not_objects(self, store: LocalStore, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        store.put("a/b", b"x")
        (store.root / "file").symlink_to(outside / "secret")
        (store.root / "folder").symlink_to(outside)
        (store.root / "a" / "gone").symlink_to(tmp_path / "nothing")
        assert [entry.key for entry in store.list()] == ["a/b"]
        assert list(store.list("folder")) == list(store.unfinished()) == []
        for key in ("file", "folder/secret", "a/gone", "folder"):
            assert store.stat(key) is None
            with pytest.raises(NotFoundError):
                store.get(key)

    def test_nothing_is_written_through_a_link(self, store: LocalStore, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "mine").write_bytes(b"mine")
        store.put("a", b"x")
        (store.root / "folder").symlink_to(outside)
        (store.root / "file").symlink_to(outside / "mine")
        writes: list[Callable[[str], object]] = [
            lambda key: store.put(key, b"theirs"), lambda key: store.put(key, b"theirs", durable=False),
            lambda key: store.put_new(key, b"theirs"), store.delete,
        ]  # fmt: skip
        for write in writes:
            for key in ("folder/mine", "folder/new", "folder/deep/new"):
                with pytest.raises(StoreError, match="symbolic link"):
                    write(key)
        assert store.put_new("file", b"theirs") is False
        store.put("file", b"theirs")
        assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"mine": b"mine"}
        assert store.get("file") == b"theirs"

    def test_the_root_may_be_a_link(self, store: LocalStore, tmp_path):
        store.put("a/b", b"x")
        (tmp_path / "link").symlink_to(store.root)
        linked = LocalStore(tmp_path / "link")
        linked.put("a/c", b"y")
        assert {entry.key for entry in linked.list()} == {"a/b", "a/c"}
        assert store.get("a/c") == linked.get("a/c") == b"y"

    @pytest.mark.parametrize("call", ["write", "fsync", "link", "replace"])
    def test_a_failing_disk_is_one_error_and_leaves_nothing(self, store: LocalStore, monkeypatch, call):
        store.put("old", b"old")

        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, call, fail)
        if call != "link":
            with pytest.raises(StoreError, match="No space left"):
                store.put("old", b"new")
        if call != "replace":
            with pytest.raises(StoreError, match="No space left"):
                store.put_new("new", b"new")
        monkeypatch.undo()
        assert store.get("old") == b"old"
        assert store.stat("new") is None
        assert list(store.unfinished()) == []

    def test_a_disk_that_fills_up_in_the_middle(self, store: LocalStore, monkeypatch):
        store.put("a/old", b"old")
        room = [10]
        write = os.write

        def short(descriptor: int, data: memoryview) -> int:
            if not room[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done = write(descriptor, data[: min(room[0], 4)])
            room[0] -= done
            return done

        monkeypatch.setattr(os, "write", short)
        with pytest.raises(StoreError, match="has room"):
            store.put("a/old", b"0123456789ab")
        room[0] = 12
        store.put("a/new", b"0123456789ab")
        monkeypatch.undo()
        assert store.get("a/old") == b"old"
        assert store.get("a/new") == b"0123456789ab"
        assert list(store.unfinished()) == []

    def test_a_folder_that_is_not_ours_is_one_error(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            LocalStore(folder).put("a/b", b"x")
            for path in (folder / "a", folder):
                path.chmod(0o555)

            def child() -> None:
                if os.getuid() == 0:
                    os.setuid(65534)
                store = LocalStore(folder)
                assert store.get("a/b") == b"x"
                for key in ("a/b", "a/c", "c", "d/e"):
                    with pytest.raises(StoreError, match="Permission denied"):
                        store.put(key, b"y")
                for write in (lambda: store.put_new("c", b""), lambda: store.delete("a/b")):
                    with pytest.raises(StoreError, match="Permission denied"):
                        write()

            assert forked(child) == 0
            assert [path.name for path in folder.rglob("*")] == ["a", "b"]
            for path in (folder, folder / "a"):
                path.chmod(0o755)

    def test_a_file_in_the_way_is_one_error(self, tmp_path):
        (tmp_path / "file").write_bytes(b"mine")
        store = LocalStore(tmp_path / "file")
        assert list(store.list()) == []
        assert store.stat("a") is None
        for write in (lambda: store.put("a", b"x"), lambda: store.put_new("a/b", b"x")):
            with pytest.raises(StoreError):
                write()
        assert (tmp_path / "file").read_bytes() == b"mine"

    def test_special_files_are_not_objects(self, store: LocalStore):
        store.put("a", b"x")
        os.mkfifo(store.root / "pipe")
        assert [entry.key for entry in store.list()] == ["a"]
        assert store.stat("pipe") is None
        with pytest.raises(NotFoundError):
            store.get("pipe")


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

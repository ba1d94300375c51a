"""A store in a folder: what the disk, links, and files of other programs do to it."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltahub.errors import NotFoundError, StoreError
from deltahub.stores import LocalStore, open_store
from tests.stores.test_contract import KEYS, StoreContract, forked, same_as_a_dictionary


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

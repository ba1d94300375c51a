"""Laws of stores in file systems of fsspec: the contract on real ones, and what is refused."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from deltahub.errors import NotFoundError, StoreError, UsageError
from deltahub.stores import open_store
from deltahub.stores.creation import HardLink, PutIfAbsent
from deltahub.stores.fsspec import FsspecStore
from tests.stores.test_contract import StoreContract


class TestObjects(StoreContract):
    """A file system without folders to make, whose writes are one step: here fsspec's own memory."""

    @pytest.fixture
    def store(self) -> FsspecStore:
        system = MemoryFileSystem(skip_instance_cache=True)
        return FsspecStore("memory://x", lambda: system, f"/{uuid.uuid4().hex}/hub", PutIfAbsent())


class TestFolders(StoreContract):
    """A file system of folders and links: here the disk."""

    @pytest.fixture
    def store(self, tmp_path) -> FsspecStore:
        return FsspecStore("local://x", lambda: LocalFileSystem(skip_instance_cache=True), f"{tmp_path}/h", HardLink())

    def test_unfinished_files_are_told_apart_and_can_be_deleted(self, store: FsspecStore):
        store.put("a/b", b"x")
        half = Path(store._path("a/b")).with_name(".b.0123456789ab.part")
        half.write_bytes(b"half")
        assert [entry.key for entry in store.list()] == ["a/b"]
        [left] = store.unfinished()
        assert (left.key, left.size) == ("a/.b.0123456789ab.part", 4)
        store.delete(left.key)
        assert list(store.unfinished()) == []

    def test_a_write_that_fails_leaves_the_old_and_nothing_else(self, store: FsspecStore, monkeypatch):
        store.put("a", b"old")
        for name in ("mv", "link"):
            monkeypatch.setattr(LocalFileSystem, name, lambda *_, **__: (_ for _ in ()).throw(OSError("no room")))
        with pytest.raises(StoreError, match="no room"):
            store.put("a", b"new")
        with pytest.raises(StoreError, match="no room"):
            store.put_new("b", b"new")
        assert store.get("a") == b"old"
        assert [path.name for path in Path(store._path("a")).parent.iterdir()] == ["a"]

    def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(self, store: FsspecStore, monkeypatch):
        """A collector would take everything below it for garbage."""
        store.put("a/b", b"x")

        def deny(*_: object, **__: object) -> None:
            raise PermissionError("denied")

        monkeypatch.setattr(LocalFileSystem, "ls", deny)
        with pytest.raises(StoreError, match="denied"):
            list(store.list())


class TestFoldersBelowAnother(TestFolders):
    """A file system around another, as fsspec's chains are."""

    @pytest.fixture
    def store(self, tmp_path) -> FsspecStore:
        class Linked(DirFileSystem):
            def link(self, old: str, new: str) -> None:
                self.fs.link(self._join(old), self._join(new))

        system = Linked(str(tmp_path), LocalFileSystem(skip_instance_cache=True), skip_instance_cache=True)
        return FsspecStore("dir://x", lambda: system, "hub", HardLink())

    test_unfinished_files_are_told_apart_and_can_be_deleted = None
    test_a_write_that_fails_leaves_the_old_and_nothing_else = None


class TestReadOnly:
    @pytest.fixture
    def store(self, tmp_path) -> FsspecStore:
        """Of a kind that nothing is known about."""
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "b").write_bytes(b"0123")
        return FsspecStore("odd://x", lambda: LocalFileSystem(skip_instance_cache=True), str(tmp_path), None)

    def test_it_can_be_read(self, store: FsspecStore):
        assert [entry.key for entry in store.list()] == ["a/b"]
        assert store.get("a/b", 1, 2) == b"12"
        with pytest.raises(NotFoundError):
            store.get("a/c")

    def test_every_write_is_refused(self, store: FsspecStore):
        for write in (lambda: store.put("a/b", b""), lambda: store.put_new("c", b""), lambda: store.delete("a/b")):
            with pytest.raises(StoreError, match="can be read, but not pushed to"):
                write()
        assert store.get("a/b") == b"0123"


class _Shrinking(MemoryFileSystem):
    """Sends fewer bytes than there are, as a line does that breaks unnoticed."""

    def cat_file(self, path, start=None, end=None, **options):
        return super().cat_file(path, start=start, end=end, **options)[:-1]


def test_a_body_that_is_cut_off_is_never_returned():
    system = _Shrinking(skip_instance_cache=True)
    store = FsspecStore("memory://x", lambda: system, f"/{uuid.uuid4().hex}", PutIfAbsent())
    store.put("a", b"0123456789")
    for size in (None, 5, 10, 11):
        with pytest.raises(StoreError, match="cut off"):
            store.get("a", 0, size)


def test_a_failure_of_any_kind_is_one_error_without_secrets(monkeypatch):
    class OddError(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise OddError("GET https://me:hush@host/c/a?sig=hush&se=2030 refused")

    system = MemoryFileSystem(skip_instance_cache=True)
    store = FsspecStore("az://c", lambda: system, "/c", PutIfAbsent())
    monkeypatch.setattr(MemoryFileSystem, "info", fail)
    with pytest.raises(StoreError, match=r"cannot use az://c/a \(OddError: GET") as caught:
        store.get("a")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://me:hush@bucket/hub", "s3://hush@bucket", "s3://bucket/hub?key=hush", "sftp://me:hush@host/hub",
        "az://container/hub?sig=hush", "gs://bucket/hub#hush", "https://me:hush@host/hub",
    ],
)  # fmt: skip
def test_a_secret_in_a_url_is_refused_and_not_repeated(url):
    with pytest.raises(UsageError) as caught:
        open_store(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://host/hub", "https://host/hub", "zip://a/b", "simplecache::s3://b/c", "simplecache://a/b", "dir://a/b",
        "sftp://", "gs://bucket/../other", "nothing://a/b", "ä://b",
    ],
)  # fmt: skip
def test_what_no_hub_can_be_in_is_refused(url):
    with pytest.raises(UsageError, match=r"hub .*expected .*s3://"):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "package", "command"),
    [
        ("s3://bucket/hub", "s3fs", "pip install 'deltahub\\[s3\\]'"),
        ("sftp://host/hub", "paramiko", "pip install 'deltahub\\[sftp\\]'"),
        ("gs://bucket/hub", "gcsfs", "install gcsfs"),
        ("az://container/hub", "adlfs", "[Ii]nstall adlfs"),
    ],
)
def test_a_missing_package_is_one_line_that_names_it(url, package, command, monkeypatch):
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.partition(":")[0], raising=False)
    for name in list(sys.modules):
        if name.startswith(("deltahub.stores.s3", "deltahub.stores.known_hosts", "fsspec.implementations.sftp")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=command):
        open_store(url)


def test_opening_touches_nothing():
    assert open_store("sftp://host.invalid/hub").url == "sftp://host.invalid/hub"
    assert open_store("s3://bucket/hub").url == "s3://bucket/hub"

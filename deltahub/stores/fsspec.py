"""A store in any file system of fsspec: Google Cloud Storage, Azure, SFTP, and more to read from."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, TypeAlias

from fsspec.dircache import DirCache

from deltahub.digest import BytesLike
from deltahub.errors import DeltahubError, NotFoundError, StoreError
from deltahub.stores.base import AT_ONCE, Entry, WriteByWrite, check_folder, check_key, is_key
from deltahub.stores.creation import Creation, HardLink, PutIfAbsent, StrictRename, is_folder, is_temporary
from deltahub.stores.secrecy import masked

CREATIONS: dict[str, Creation] = {
    "gs": PutIfAbsent(), "gcs": PutIfAbsent(), "az": PutIfAbsent(), "abfs": PutIfAbsent(), "abfss": PutIfAbsent(),
    "sftp": StrictRename(), "ssh": StrictRename(), "local": HardLink(),
}  # fmt: skip
"""How each protocol creates; hubs of another can be read, but not pushed to."""
_TIMES = ("mtime", "last_modified", "LastModified", "updated", "modified", "created")
_LOOKS = 5
_Infos: TypeAlias = list[dict[str, Any]]
_locks: dict[type, threading.RLock] = {}


class FsspecStore(WriteByWrite):
    """A key is a path below ``root`` in the file system that ``connect`` gives. Nothing is asked before the first use.

    Retries, timeouts and credentials are those of the file system, which fsspec's own configuration sets. Where that
    is not made for threads, they take turns.

    Args:
        url: what `open_store` opens it by.
        connect: makes the file system; called once in a process.
        root: path of the store in it.
        creation: None for a store that can only be read.
    """

    remote = True
    at_once = AT_ONCE

    def __init__(self, url: str, connect: Callable[[], Any], root: str, creation: Creation | None) -> None:
        self._url, self._connect, self._root, self._creation = url, connect, root.rstrip("/"), creation
        self._lock = threading.RLock()
        self._system: Any = None
        self._owner = 0

    @property
    def url(self) -> str:
        return self._url

    def list(self, folder: str = "") -> Iterator[Entry]:
        return self._entries(check_folder(folder), lambda name: not is_temporary(name))

    def stat(self, key: str) -> Entry | None:
        path = self._path(key)
        with self._turn(key) as system, contextlib.suppress(FileNotFoundError, NotADirectoryError):
            info = system.info(path)
            if info["type"] == "file":
                return Entry(key, info["size"], self._modified(info))
        return None

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        path = self._path(key)
        for _ in range(_LOOKS):
            with self._turn(key) as system, contextlib.suppress(FileNotFoundError):
                found = self.stat(key)
                if found is None:
                    raise NotFoundError(f"{self._url} has no {key}")
                left = max(0, found.size - start)
                wanted = left if size is None else min(size, left)
                if not wanted:
                    return b""
                beyond = int(size is None or size > left)  # one byte more, which only an object that has changed has
                data = bytes(system.cat_file(path, start=start, end=start + wanted + beyond))
                if len(data) == wanted:
                    return data
        raise StoreError(f"{self._url}/{key} is cut off, or changes all the time", hint="run the command again")

    def put(self, key: str, data: BytesLike, *, durable: bool = True) -> None:
        path, creation = self._path(key), self._writable()
        with self._written(key) as system:
            creation.put(system, path, bytes(data))

    def put_new(self, key: str, data: BytesLike) -> bool:
        path, creation = self._path(key), self._writable()
        with self._written(key) as system:
            return creation.put_new(system, path, bytes(data))

    def delete(self, key: str) -> None:
        path = self._path(key)
        self._writable()
        if self.stat(key) is not None:
            with self._turn(key) as system, contextlib.suppress(FileNotFoundError):
                system.rm_file(path)

    def unfinished(self) -> Iterator[Entry]:
        return self._entries("", is_temporary)

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _writable(self) -> Creation:
        if self._creation is None:
            raise StoreError(
                f"{self._url} can be read, but not pushed to: no write there is known to create or fail as one step",
                hint="push to a folder, s3://, gs://, az:// or sftp://, and copy that hub there",
            )
        return self._creation

    def _entries(self, prefix: str, wanted: Callable[[str], bool]) -> Iterator[Entry]:
        base = f"{self._root}/"
        for info in self._files(f"{base}{prefix}".rstrip("/")):
            name = str(info["name"])
            key = name.removeprefix(base)
            if name.startswith(base + prefix) and wanted(name.rpartition("/")[2]) and is_key(key):
                yield Entry(key, info["size"], self._modified(info))

    def _files(self, path: str) -> Iterator[dict[str, Any]]:
        if self._creation is not None and not self._creation.folders:
            found: dict[str, dict[str, Any]] = {}
            with self._turn(path) as system, contextlib.suppress(FileNotFoundError):
                found = system.find(path, detail=True)
            yield from found.values()
            return
        for info in self._folder(path):  # not `find`: it takes a folder that cannot be read for an empty one
            if info["type"] == "directory":
                yield from self._files(info["name"].rstrip("/"))
            elif info["type"] == "file":
                yield info

    def _folder(self, path: str) -> _Infos:
        """What a folder has; nothing where there is none. A file that vanishes meanwhile must not look like that."""
        for _ in range(_LOOKS):
            with self._turn(path) as system, contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found: _Infos = system.ls(path, detail=True)
                return found
            with self._turn(path) as system:
                if not is_folder(system, path):
                    return []
        raise StoreError(f"{path} of {self._url} changes all the time", hint="run the command again")

    def _modified(self, info: dict[str, Any]) -> float:
        found = next((info[name] for name in _TIMES if info.get(name) is not None), None)
        if isinstance(found, str):
            found = datetime.fromisoformat(found)
        if isinstance(found, datetime):
            return found.timestamp()
        if isinstance(found, int | float):
            return float(found)
        raise StoreError(f"{self._url} does not tell when an object was written", hint="it cannot hold a hub")

    @contextlib.contextmanager
    def _turn(self, key: str) -> Iterator[Any]:
        """The file system, with no listing remembered, and its failures as StoreError.

        FileNotFoundError and its like pass through where the caller takes them for an answer.
        """
        with contextlib.ExitStack() as stack:
            try:
                system = self._connected()
                if not system.async_impl:
                    stack.enter_context(_locks.setdefault(type(system), threading.RLock()))
                system.invalidate_cache()
                yield system
            except (DeltahubError, FileNotFoundError, NotADirectoryError):
                raise
            except Exception as error:  # every file system fails with types of its own
                self._forget(error)
                raise StoreError(
                    f"cannot use {self._url}/{key} ({type(error).__name__}: {masked(str(error))[:300]})".strip(),
                    hint="check the credentials, the permissions and the network, then run the command again",
                ) from error

    @contextlib.contextmanager
    def _written(self, key: str) -> Iterator[Any]:
        try:
            with self._turn(key) as system:
                yield system
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(
                f"there is no place for {self._url}/{key}", hint="make the bucket, container or folder first"
            ) from error

    def _connected(self) -> Any:
        """The file system of this process: a fork must not use its parent's connections."""
        with self._lock:
            if self._owner != os.getpid() or self._system is None:
                self._system, self._owner = self._connect(), os.getpid()
                self._system.dircache = DirCache(use_listings_cache=False)
            return self._system

    def _forget(self, error: Exception) -> None:
        """After a broken line the next use connects anew."""
        if isinstance(error, ConnectionError | EOFError) or not isinstance(error, OSError):
            with self._lock:
                self._system = None


def connected(url: str, scheme: str, kind: Any) -> FsspecStore:
    """The store at ``url``, whose file system is of the class ``kind``; connects on first use."""
    options = kind._get_kwargs_from_urls(url)
    if scheme in ("sftp", "ssh"):
        from deltahub.stores.known_hosts import OnlyKnownHosts

        options = {**options, "host_key_policy": OnlyKnownHosts()}
    root = kind._strip_protocol(url)
    return FsspecStore(url.rstrip("/"), lambda: kind(**options, skip_instance_cache=True), root, CREATIONS.get(scheme))

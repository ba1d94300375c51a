"""A store in a folder of a local disk, safe against power cuts and against other processes."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from deltahub.digest import BytesLike
from deltahub.errors import NotFoundError, StoreError
from deltahub.files import store_errors, sync_folder, write_atomic
from deltahub.stores.base import Entry, check_folder, check_key


class LocalStore:
    """A key is a path below ``root``. Nothing is created before the first write.

    ``root`` may be a symbolic link. Links below it are never listed, and no write passes through one: whoever can put
    a link into a shared hub must not be able to send another's writes elsewhere.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        return self.root.absolute().as_uri()

    def list(self, folder: str = "") -> Iterator[Entry]:
        return _walk(self.root / folder, check_folder(folder), lambda name: not _is_temporary(name))

    def stat(self, key: str) -> Entry | None:
        path = self._path(key)
        with store_errors(path):
            try:
                found = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Entry(key, found.st_size, found.st_mtime) if stat.S_ISREG(found.st_mode) else None

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        path = self._path(key)
        with store_errors(path):
            try:
                with path.open("rb", buffering=0) as file:
                    file.seek(start)
                    return file.readall() if size is None else _read(file.fileno(), start, size)
            except (FileNotFoundError, NotADirectoryError):
                raise NotFoundError(f"{self.root} has no {key}") from None

    def put(self, key: str, data: BytesLike, *, durable: bool = True) -> None:
        path = self._path(key)
        self._make_folders(path)
        if durable:
            write_atomic(path, [data])
            return
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        with store_errors(path):
            try:
                temporary.write_bytes(data)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def put_new(self, key: str, data: BytesLike) -> bool:
        path = self._path(key)
        self._make_folders(path)
        return not os.path.lexists(path) and write_atomic(path, [data], exclusive=True)

    def delete(self, key: str) -> None:
        path = self._path(key)
        self._refuse_links(path)
        with store_errors(path):
            try:
                path.unlink(missing_ok=True)
            except NotADirectoryError:
                return

    def unfinished(self) -> Iterator[Entry]:
        return _walk(self.root, "", _is_temporary)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _refuse_links(self, path: Path) -> None:
        for folder in path.parents:
            if self.root in folder.parents and folder.is_symlink():
                raise StoreError(f"{folder} is a symbolic link", expected="a folder of the hub", hint="remove the link")

    def _make_folders(self, path: Path) -> None:
        self._refuse_links(path)
        with store_errors(path):
            _make_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """As ``mkdir -p``, but the new names survive a power cut."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _read(descriptor: int, start: int, size: int) -> bytes:
    """Takes no more memory than the file has bytes, whatever ``size`` asks for."""
    data = bytearray(max(0, min(size, os.fstat(descriptor).st_size - start)))
    done = 0
    while done < len(data) and (got := os.preadv(descriptor, [memoryview(data)[done:]], start + done)):
        done += got
    return bytes(data[:done])


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".part")


def _walk(folder: Path, prefix: str, wanted: Callable[[str], bool]) -> Iterator[Entry]:
    with store_errors(folder):
        try:
            with os.scandir(folder) as opened:
                entries = list(opened)
        except (FileNotFoundError, NotADirectoryError):
            return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", wanted)
        elif wanted(entry.name) and entry.is_file(follow_symlinks=False):
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed since the folder was read
            yield Entry(prefix + entry.name, found.st_size, found.st_mtime)

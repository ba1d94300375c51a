"""A store in a folder of a local disk, safe against power cuts and against other processes."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path

from deltahub.digest import BytesLike
from deltahub.errors import NotFoundError, StoreError
from deltahub.files import store_errors, sync_folder, write_atomic
from deltahub.stores.base import LONGEST_KEY, Entry, WriteByWrite, check_folder, check_key, is_key


class LocalStore(WriteByWrite):
    """A key is a path below ``root``. Nothing is created before the first write.

    ``root`` may be a symbolic link. Links below it are no objects: they are never listed nor read, and no write passes
    through one, since whoever can put a link into a shared hub must not be able to send another's writes elsewhere.
    """

    remote = False
    at_once = 1

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        return self.root.absolute().as_uri()

    def list(self, folder: str = "") -> Iterator[Entry]:
        prefix, path = check_folder(folder), self.root / folder
        return iter(()) if self._link(path / "_") else _walk(path, prefix, lambda name: not _is_temporary(name))

    def stat(self, key: str) -> Entry | None:
        path = self._path(key)
        with store_errors(path):
            try:
                found = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        good = stat.S_ISREG(found.st_mode) and not self._link(path)
        return Entry(key, found.st_size, found.st_mtime) if good else None

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        path = self._path(key)
        if self.stat(key) is None:
            raise NotFoundError(f"{self.root} has no {key}")
        with store_errors(path):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                raise NotFoundError(f"{self.root} has no {key}") from None
            try:
                return _read(descriptor, start, size)
            finally:
                os.close(descriptor)

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
        with store_errors(path), contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            path.unlink()

    def unfinished(self) -> Iterator[Entry]:
        return _walk(self.root, "", _is_temporary)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _link(self, path: Path) -> Path | None:
        """The symbolic link between the root and ``path``, if there is one."""
        return next((p for p in takewhile(self.root.__ne__, path.parents) if p.is_symlink()), None)

    def _refuse_links(self, path: Path) -> None:
        if link := self._link(path):
            raise StoreError(f"{link} is a symbolic link", expected="a folder of the hub", hint="remove the link")

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


def _read(descriptor: int, start: int, size: int | None) -> bytes:
    """Takes no more memory than the file has bytes, whatever ``size`` asks for."""
    left = max(0, os.fstat(descriptor).st_size - start)
    left = left if size is None else min(size, left)
    parts = []
    while left > 0 and (part := os.pread(descriptor, left, start)):
        parts.append(part)
        start, left = start + len(part), left - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".part")


def _walk(folder: Path, prefix: str, wanted: Callable[[str], bool]) -> Iterator[Entry]:
    """Passes over names that no key can have: other programs', which nothing here could read or delete."""
    if len(prefix) > LONGEST_KEY:
        return
    with store_errors(folder):
        try:
            with os.scandir(folder) as opened:
                entries = list(opened)
        except (FileNotFoundError, NotADirectoryError):
            return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", wanted)
        elif wanted(entry.name) and is_key(prefix + entry.name) and entry.is_file(follow_symlinks=False):
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed since the folder was read
            yield Entry(prefix + entry.name, found.st_size, found.st_mtime)

"""How a file system of fsspec writes an object whole, and creates one that nobody else has created.

fsspec promises neither. ``pipe_file(mode="create")`` is, where a file system does not say otherwise, a look and then a
write; a file opened by ``xb`` is there before its bytes are. So only file systems that are known to do better are
written to:

- `PutIfAbsent`: Google Cloud Storage and Azure write an object by one request, and refuse it where a condition on the
  object does not hold (``ifGenerationMatch=0``, ``If-None-Match: *``).
- `HardLink`: a file is written under a name of its own, then linked; a link never replaces.
- `StrictRename`: the same over SFTP, whose plain rename must fail where the new name exists. OpenSSH's server does it
  by link and unlink.

Elsewhere a push is refused. Writing, listing and waiting cannot replace these: with reads and writes alone no protocol
lets two processes agree, whatever each does, once one of them may be slow or die between its look and its write.
Claims that the listing orders only move the question to who saw which claim in time.
"""

from __future__ import annotations

import contextlib
import io
import secrets
from collections.abc import Iterator
from typing import Any, Protocol


class Creation(Protocol):
    """What `fsspec.FsspecStore` writes by. Paths are those of ``system``."""

    @property
    def folders(self) -> bool:
        """Whether there are folders, which must be made, and listed one by one."""
        ...

    def put(self, system: Any, path: str, data: bytes) -> None:
        """Creates or replaces; readers see the old object or the new one."""
        ...

    def put_new(self, system: Any, path: str, data: bytes) -> bool:
        """Creates; False where the path exists."""
        ...


class PutIfAbsent:
    folders = False

    def put(self, system: Any, path: str, data: bytes) -> None:
        system.pipe_file(path, data)

    def put_new(self, system: Any, path: str, data: bytes) -> bool:
        try:
            system.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True


class HardLink:
    folders = True

    def put(self, system: Any, path: str, data: bytes) -> None:
        with self._written(system, path, data) as temporary:
            self.replace(system, temporary, path)

    def put_new(self, system: Any, path: str, data: bytes) -> bool:
        with self._written(system, path, data) as temporary:
            return self.create(system, temporary, path)

    def write(self, system: Any, path: str, data: bytes) -> None:
        system.pipe_file(path, data)

    def replace(self, system: Any, temporary: str, path: str) -> None:
        system.mv(temporary, path)

    def create(self, system: Any, temporary: str, path: str) -> bool:
        try:
            system.link(temporary, path)
        except FileExistsError:
            return False
        return True

    @contextlib.contextmanager
    def _written(self, system: Any, path: str, data: bytes) -> Iterator[str]:
        """A file of its own beside ``path``, gone at the end."""
        folder, _, name = path.rpartition("/")
        _make_folder(system, folder)
        temporary = f"{folder}/.{name}.{secrets.token_hex(6)}.part"
        try:
            self.write(system, temporary, data)
            yield temporary
        finally:
            with contextlib.suppress(OSError):  # renamed; or the line broke, and a collector takes it
                system.rm_file(temporary)


class StrictRename(HardLink):
    def write(self, system: Any, path: str, data: bytes) -> None:
        """Without a wait for the answer to every piece, and with a look at the size in the end."""
        system.ftp.putfo(io.BytesIO(data), path, confirm=True)

    def create(self, system: Any, temporary: str, path: str) -> bool:
        try:
            system.ftp.rename(temporary, path)
        except OSError:  # the protocol has one word for all that can be wrong
            if not kind_of(system, path):
                raise
            return False
        return True


def is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".part")


def kind_of(system: Any, path: str) -> str:
    """``"file"``, ``"directory"``, ..., and ``""`` for nothing; ``system.exists`` takes every failure for a no."""
    try:
        return str(system.info(path)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return ""


def is_folder(system: Any, path: str) -> bool:
    return kind_of(system, path) == "directory"


def _make_folder(system: Any, folder: str) -> None:
    try:
        system.makedirs(folder, exist_ok=True)
    except OSError:  # another writer may have made one of the folders just before
        if not is_folder(system, folder):
            system.makedirs(folder, exist_ok=True)

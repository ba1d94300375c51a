"""A download in a file that grows: held by one thread of one process at a time, and continued by the next one."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_POLL_SECONDS = 0.02


class Partial:
    """The file at ``path``, locked until `close`. A process that dies gives its lock back, and leaves the bytes.

    A disk that takes no more is no error here: what is appended is then forgotten, and ``failure`` says why.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self.have = os.fstat(descriptor).st_size
        self.resumed = self.have > 0
        self.failure: OSError | None = None
        self._there = True

    def content(self) -> bytes:
        """What is there; where it cannot be read, nothing, and the download begins anew."""
        parts, start = [], 0
        try:
            while part := os.pread(self._descriptor, self.have - start, start):
                parts.append(part)
                start += len(part)
        except OSError as error:
            self._give_up(error)
            return b""
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def append(self, piece: bytes) -> None:
        if not self._there:
            return
        view = memoryview(piece)
        try:
            while view.nbytes:
                written = os.pwrite(self._descriptor, view, self.have)
                self.have, view = self.have + written, view[written:]
        except OSError as error:
            self._give_up(error)

    def clear(self) -> None:
        """Forgets what is there."""
        self.have, self.resumed = 0, False
        try:
            os.ftruncate(self._descriptor, 0)
        except OSError as error:
            self._give_up(error)

    def finish(self, path: Path) -> bool:
        """Moves the file to ``path``; False where it could not be written."""
        if self._there:
            try:
                self._path.replace(path)
                self._there = False
                return True
            except OSError as error:
                self._give_up(error)
        return False

    def drop(self) -> None:
        """Removes the file, and takes no more bytes."""
        if self._there:
            self._there = False
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                self.failure = error

    def close(self) -> None:
        """Lets others have it; a file without a byte is removed."""
        if not self.have:
            self.drop()
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a process forked meanwhile has the descriptor too
        os.close(self._descriptor)

    def _give_up(self, error: OSError) -> None:
        self.drop()
        self.failure = error


def hold(path: Path, patience: float) -> Partial | None:
    """Waits for the file at ``path``, which is made where there is none.

    Returns:
        None where whoever has it brought no byte for ``patience`` seconds.

    Raises:
        OSError: the place takes no file.
    """
    seen, since = -1, time.monotonic()
    while True:
        descriptor = os.open(path, _FLAGS, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            size = os.fstat(descriptor).st_size
            os.close(descriptor)
            if size != seen:
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > patience:
                return None
            time.sleep(_POLL_SECONDS)
            continue
        except OSError:
            os.close(descriptor)
            raise
        if _is_at(path, descriptor):
            return Partial(path, descriptor)
        os.close(descriptor)  # finished or dropped since it was opened


def remove(path: Path) -> bool:
    """Removes the file at ``path`` unless someone has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(path, descriptor):  # finished since it was opened, and another download began in its place
            return False
        path.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False

"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from deltahub.digest import BytesLike
from deltahub.errors import StoreError


def write_atomic(path: Path, parts: Iterable[BytesLike], *, exclusive: bool = False, private: bool = False) -> bool:
    """Writes ``parts`` to a temporary name beside ``path``, fsyncs, and moves it there.

    Args:
        exclusive: never replace; another writer may have been first.
        private: only the owner may read it, from its first byte on.

    Returns:
        False when ``exclusive`` and the name was taken (nothing was changed).

    Raises:
        StoreError: the disk is full, the folder is missing or read-only.
    """
    if path.exists() and not path.is_file():
        raise StoreError(f"{path} is not a regular file", hint="give another name")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    with store_errors(path):
        try:
            opener = partial(os.open, mode=0o600 if private else 0o666)
            with open(temporary, "xb", buffering=0, opener=opener) as file:
                for part in parts:
                    _write_all(file.fileno(), memoryview(part))
                os.fsync(file.fileno())
            if exclusive:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    return False
            else:
                temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return True


def sync_folder(folder: Path) -> None:
    """Makes renames in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """OSError to one StoreError that names the path and the cause."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot use {error.filename or path} ({error.strerror or error})",
            hint="check that the folder exists, is writable and has room; nothing was half-written",
        ) from error


def _write_all(descriptor: int, view: memoryview) -> None:
    view = view.cast("B") if view.nbytes else view
    while view.nbytes:
        view = view[os.write(descriptor, view) :]

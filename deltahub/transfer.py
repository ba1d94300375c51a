"""Moving deltas between files and hubs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub import versions
from deltahub.delta import Delta
from deltahub.digest import of_file
from deltahub.errors import UsageError
from deltahub.files import store_errors, write_atomic
from deltahub.hub import Hub, TaskVersion
from deltahub.versions import Progress

if TYPE_CHECKING:
    from deltahub.mask import Mask


def push_file(
    path: str | Path,
    hub: Hub,
    *,
    tags: Sequence[str] = (),
    mask: Mask | None = None,
    values: str = "exact",
    head: str = "exact",
    check: bool = False,
    progress: Progress | None = None,
) -> TaskVersion:
    """Stores a ``.delta`` file in ``hub``; options and errors as `Hub.push`, and FormatError for what is no delta."""
    return hub.push(Delta.load(path), tags, mask=mask, values=values, head=head, check=check, progress=progress)


def pull_file(
    hub: Hub, reference: str, path: str | Path, *, force: bool = False, progress: Progress | None = None
) -> TaskVersion:
    """Writes a task of ``hub`` to ``path``: every byte verified before the name appears, whole or not at all.

    Args:
        force: replace a file that is not this very delta.

    Raises:
        UsageError: such a file is there; nothing was read or written.
    """
    path = Path(path)
    record = hub.version(reference)
    found = TaskVersion(record.task, record.number, record.digest)
    with store_errors(path):
        if path.is_dir():
            raise UsageError(f"{path} is a folder", expected="a file name")
        if path.exists() and not force:
            if path.stat().st_size == record.size and of_file(path) == record.digest:
                return found
            raise UsageError(
                f"{path} exists and is not {record.reference}", hint="use --force to replace it, or another -o"
            )
    delta = versions.assemble(hub.store, record, progress)
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(versions.check, hub.store, record, delta)
        written = write_atomic(path, _until(delta.dump(), checked), exclusive=not force)
    if not written:
        raise UsageError(f"{path} came to be while {record.reference} was on its way", hint="run the command again")
    return found


def _until(parts: Iterator[bytes | memoryview], checked: Future[None]) -> Iterator[bytes | memoryview]:
    """The parts, and at their end what ``checked`` raises: a file gets its name only after that."""
    yield from parts
    checked.result()

"""Moving deltas between files and hubs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub import parallel, versions
from deltahub.delta import Delta
from deltahub.digest import of_file
from deltahub.errors import NotFoundError, UsageError
from deltahub.files import store_errors, write_atomic
from deltahub.hub import Hub, TaskInfo, TaskVersion
from deltahub.names import names_like, task_of
from deltahub.records import VersionRecord
from deltahub.versions import Progress

if TYPE_CHECKING:
    from deltahub.mask import Mask
    from deltahub.signing import SigningKey


def push_file(
    path: str | Path,
    hub: Hub,
    *,
    tags: Sequence[str] = (),
    mask: Mask | None = None,
    values: str = "exact",
    head: str = "exact",
    check: bool = False,
    sign: SigningKey | None = None,
    progress: Progress | None = None,
) -> TaskVersion:
    """Stores a ``.delta`` file in ``hub``; options and errors as `Hub.push`, and FormatError for what is no delta."""
    return hub.push(
        Delta.load(path), tags, mask=mask, values=values, head=head, check=check, sign=sign, progress=progress
    )


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
    if not _is_there(path, record, force):
        _write(hub, record, path, force, progress, None)
    return _found(record)


def pull_files(
    hub: Hub, references: Sequence[str], folder: str | Path, *, force: bool = False, progress: Progress | None = None
) -> list[TaskVersion]:
    """Writes several tasks of ``hub`` into ``folder``, each as `pull_file` does to ``TASK.delta``, several at once.

    A file that is there already is not fetched again, so that a run that was cut off goes on where it stopped.

    Args:
        references: as `Hub.pull` takes them; or globs of task names, ``glue-*``, with all that have the tag in
            ``glue-*:prod``.
        folder: made where there is none.
        progress: gets stored bytes done, those of files that are there included, and stored bytes in all.

    Raises:
        UsageError: two references to one task, or a file of that name is something else; nothing was written.
        NotFoundError: no such task, version or tag.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", expected="a folder for several tasks")
    records = _records(hub, references)
    with store_errors(folder):
        folder.mkdir(exist_ok=True)
    done = {record.task: record.stored for record in records if _is_there(_file(folder, record), record, force)}
    total = sum(record.stored for record in records)
    wanted = [record for record in records if record.task not in done]
    each = max(1, hub.store.at_once // max(1, len(wanted)))

    def note(record: VersionRecord, _: None) -> None:
        done[record.task] = record.stored
        if progress:
            progress(sum(done.values()), total)

    def write(record: VersionRecord) -> None:
        _write(hub, record, _file(folder, record), force, None, each)

    parallel.for_each(write, wanted, hub.store.at_once, note)
    return [_found(record) for record in records]


def is_glob(reference: str) -> bool:
    """Whether a reference can mean several tasks."""
    return any(sign in task_of(reference) for sign in "*?[")


def _records(hub: Hub, references: Sequence[str]) -> list[VersionRecord]:
    """What the references mean, in their order; one listing of the hub serves all globs."""
    infos = {info.task: info for info in hub.tasks()} if any(map(is_glob, references)) else {}
    chosen = [name for reference in references for name in _names(reference, infos, hub.store.url)]
    twice = next((task for task, times in Counter(map(task_of, chosen)).items() if times > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is asked for twice", expected="each task once", hint="pull them one by one with -o")
    records: dict[str, VersionRecord] = {}

    def read(name: str) -> VersionRecord:
        info = None if hub.required else infos.get(name)
        return hub._record(name, info.newest) if info else hub.version(name)

    parallel.for_each(read, chosen, hub.store.at_once, records.__setitem__)
    return [records[name] for name in chosen]


def _names(reference: str, infos: Mapping[str, TaskInfo], url: str) -> list[str]:
    if not is_glob(reference):
        return [reference]
    pattern, colon, tag = reference.partition(":")
    if "@" in pattern or (colon and is_glob(tag)):
        raise UsageError(f"{reference[:100]!a}", expected="a glob of task names, alone or with :TAG")
    found = names_like(pattern, [task for task, info in infos.items() if not colon or tag in info.tags])
    if not found:
        raise NotFoundError(f"no task matches {reference[:100]!a} in {url}", hint="`deltahub list` shows what there is")
    return [f"{task}{colon}{tag}" for task in found]


def _file(folder: Path, record: VersionRecord) -> Path:
    return folder / f"{record.task}.delta"


def _found(record: VersionRecord) -> TaskVersion:
    return TaskVersion(record.task, record.number, record.digest)


def _is_there(path: Path, record: VersionRecord, force: bool) -> bool:
    """Whether the file is this very delta; raises UsageError where it is another and ``force`` is false."""
    with store_errors(path):
        if path.is_dir():
            raise UsageError(f"{path} is a folder", expected="a file name")
        if not path.exists():
            return False
        if path.stat().st_size == record.size and of_file(path) == record.digest:
            return True
    if not force:
        raise UsageError(
            f"{path} exists and is not {record.reference}", hint="use --force to replace it, or another -o"
        )
    return False


def _write(
    hub: Hub, record: VersionRecord, path: Path, force: bool, progress: Progress | None, at_once: int | None
) -> None:
    delta = versions.assemble(hub.store, record, progress, at_once=at_once)
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(versions.check, hub.store, record, delta)
        written = write_atomic(path, _until(delta.dump(), checked), exclusive=not force)
    if not written:
        raise UsageError(f"{path} came to be while {record.reference} was on its way", hint="run the command again")


def _until(parts: Iterator[bytes | memoryview], checked: Future[None]) -> Iterator[bytes | memoryview]:
    """The parts, and at their end what ``checked`` raises: a file gets its name only after that."""
    yield from parts
    checked.result()

"""Where things lie in a hub's store; FORMAT.md has the same as a table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deltahub.errors import UsageError
from deltahub.names import check_tag, check_task

if TYPE_CHECKING:
    from deltahub.stores import Entry

MOST_NUMBER = 99_999_998
"""The last version of a task; 99,999,999 is never used, so that no writer can count past the 8 digits of a key."""
_BELOW_TASKS = re.compile(r"tasks/([^/]+)/(?:v([0-9]{8})\.(json|removed|([0-9a-f]{16})\.sig)|tag\.([^/]+)\.json)")
_BLOB = re.compile(r"blobs/[0-9a-f]{2}/[0-9a-f]{64}")
_LEASE = re.compile(r"pushing/[A-Za-z0-9_-]+\.json")
_MARK = re.compile(r"collecting/[A-Za-z0-9_-]+\.json")
_BY_DIGEST = re.compile(r"(?:masks|bases)/([0-9a-f]{64})\.json")


@dataclass
class Listing:
    """What lies below one task: numbers with a record, numbers that were removed, names of tags, who signed what.

    ``signatures`` has the ids of keys for each number; whether they are good only `signatures.of_record` tells.
    """

    records: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)
    signatures: dict[int, set[str]] = field(default_factory=dict)

    @property
    def live(self) -> list[int]:
        """Versions that there are, ascending; a record beside its ``.removed`` is what a dying remover left."""
        return sorted(self.records - self.removed)


@dataclass(frozen=True)
class TaskInfo:
    """A line of `Hub.tasks`: what a listing says, without any record.

    Attributes:
        task: its name.
        newest: number of its newest version.
        versions: how many there are.
        tags: their names.
        numbers: of the versions, ascending.
        moved: when each of ``tags`` was last written, seconds since 1970 by the clock of the store.
    """

    task: str
    newest: int
    versions: int
    tags: tuple[str, ...]
    numbers: tuple[int, ...] = ()
    moved: tuple[float, ...] = ()


def blob(name: str) -> str:
    return f"blobs/{name[:2]}/{name}"


def version(task: str, number: int) -> str:
    return f"tasks/{task}/v{number:08d}.json"


def tombstone(task: str, number: int) -> str:
    return f"tasks/{task}/v{number:08d}.removed"


def tombstone_of(key: str) -> str:
    """Of the version that ``key`` is the record or a signature of."""
    return key[: key.rindex("/v") + 10] + ".removed"


def copied(task: str, number: int) -> str:
    return f"tasks/{task}/v{number:08d}.copied"


def signature(task: str, number: int, key_id: str) -> str:
    return f"tasks/{task}/v{number:08d}.{key_id}.sig"


def tag(task: str, name: str) -> str:
    return f"tasks/{task}/tag.{name}.json"


def mask(digest: str) -> str:
    return f"masks/{digest}.json"


def base(digest: str) -> str:
    return f"bases/{digest}.json"


def lease(name: str) -> str:
    return f"pushing/{name}.json"


def mark(name: str) -> str:
    return f"collecting/{name}.json"


def parse(key: str) -> tuple[str, str, str]:
    """Task, kind and content of a key: ``("sst2", "version", "3")``, ``(.., "removed", "3")``, ``(.., "tag", "prod")``,
    ``(.., "signature", "3.8c1d6f1e6a5f0b2c")``.

    Empty strings for a stranger: a hub's folder may hold files of other programs, which are left alone.
    """
    match = _BELOW_TASKS.fullmatch(key)
    if match is None:
        return "", "", ""
    task, number, ending, key_id, named = match.groups()
    try:
        check_task(task)
        if named is not None:
            return task, "tag", check_tag(named)
    except UsageError:
        return "", "", ""
    if not 0 < int(number) <= MOST_NUMBER:
        return "", "", ""
    if key_id is not None:
        return task, "signature", f"{int(number)}.{key_id}"
    return task, "version" if ending == "json" else "removed", str(int(number))


def signer(key: str) -> tuple[str, int, str]:
    """Task, number and key id of the key of a signature."""
    task, _, what = parse(key)
    number, _, key_id = what.partition(".")
    return task, int(number), key_id


def digest_of(key: str) -> str:
    """Digest of the mask or base that ``key`` is the record of; empty for a stranger."""
    match = _BY_DIGEST.fullmatch(key)
    return match[1] if match else ""


def is_blob(key: str) -> bool:
    return _BLOB.fullmatch(key) is not None and key[6:8] == key[9:11]


def is_lease(key: str) -> bool:
    return _LEASE.fullmatch(key) is not None


def is_mark(key: str) -> bool:
    return _MARK.fullmatch(key) is not None


def past_numbers(key: str) -> bool:
    """Whether ``key`` looks like a version but has a number past the last that one can have."""
    match = _BELOW_TASKS.fullmatch(key)
    return match is not None and match[3] in ("json", "removed") and int(match[2]) > MOST_NUMBER


def listings(found: Iterable[str]) -> dict[str, Listing]:
    """What lies below every task, from keys in any order."""
    tasks: dict[str, Listing] = {}
    for key in found:
        task, kind, what = parse(key)
        if kind:
            listing = tasks.setdefault(task, Listing())
            if kind == "tag":
                listing.tags.add(what)
            elif kind == "signature":
                _, number, key_id = signer(key)
                listing.signatures.setdefault(number, set()).add(key_id)
            else:
                (listing.records if kind == "version" else listing.removed).add(int(what))
    return tasks


def infos(entries: Iterable[Entry]) -> list[TaskInfo]:
    """The line of every task that has a version, by name."""
    written = {entry.key: entry.modified for entry in entries}
    found = []
    for task, listing in sorted(listings(written).items()):
        if numbers := tuple(listing.live):
            tags = tuple(sorted(listing.tags))
            moved = tuple(written[tag(task, name)] for name in tags)
            found.append(TaskInfo(task, numbers[-1], len(numbers), tags, numbers, moved))
    return found

"""Where things lie in a hub's store; FORMAT.md has the same as a table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from deltahub.errors import UsageError
from deltahub.names import check_tag, check_task

MOST_NUMBER = 99_999_998
"""The last version of a task; 99,999,999 is never used, so that no writer can count past the 8 digits of a key."""
_BELOW_TASKS = re.compile(r"tasks/([^/]+)/(?:v([0-9]{8})\.(json|removed)|tag\.([^/]+)\.json)")
_BY_DIGEST = re.compile(r"(?:masks|bases)/([0-9a-f]{64})\.json")


@dataclass
class Listing:
    """What lies below one task: numbers with a record, numbers that were removed, names of tags."""

    records: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)

    @property
    def live(self) -> list[int]:
        """Versions that there are, ascending; a record beside its ``.removed`` is what a dying remover left."""
        return sorted(self.records - self.removed)


def blob(name: str) -> str:
    return f"blobs/{name[:2]}/{name}"


def version(task: str, number: int) -> str:
    return f"tasks/{task}/v{number:08d}.json"


def tombstone(task: str, number: int) -> str:
    return f"tasks/{task}/v{number:08d}.removed"


def tombstone_of(version_key: str) -> str:
    return version_key.removesuffix("json") + "removed"


def copied(task: str, number: int) -> str:
    return f"tasks/{task}/v{number:08d}.copied"


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
    """Task, kind and content of a key: ``("sst2", "version", "3")``, ``(.., "removed", "3")``, ``(.., "tag", "prod")``.

    Empty strings for a stranger: a hub's folder may hold files of other programs, which are left alone.
    """
    match = _BELOW_TASKS.fullmatch(key)
    if match is None:
        return "", "", ""
    task, number, ending, named = match.groups()
    try:
        check_task(task)
        if named is not None:
            return task, "tag", check_tag(named)
    except UsageError:
        return "", "", ""
    if not 0 < int(number) <= MOST_NUMBER:
        return "", "", ""
    return task, "version" if ending == "json" else "removed", str(int(number))


def digest_of(key: str) -> str:
    """Digest of the mask or base that ``key`` is the record of; empty for a stranger."""
    match = _BY_DIGEST.fullmatch(key)
    return match[1] if match else ""


def past_numbers(key: str) -> bool:
    """Whether ``key`` looks like a version but has a number past the last that one can have."""
    match = _BELOW_TASKS.fullmatch(key)
    return match is not None and match[2] is not None and int(match[2]) > MOST_NUMBER


def listings(found: Iterable[str]) -> dict[str, Listing]:
    """What lies below every task, from keys in any order."""
    tasks: dict[str, Listing] = {}
    for key in found:
        task, kind, what = parse(key)
        if kind:
            listing = tasks.setdefault(task, Listing())
            if kind == "tag":
                listing.tags.add(what)
            else:
                (listing.records if kind == "version" else listing.removed).add(int(what))
    return tasks

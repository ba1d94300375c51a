"""What a sync has to copy: told from one listing of each hub, and from the records of tasks that differ.

A record on this machine is read where its length says too little, one elsewhere is not: its listing may tell its MD5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TypeAlias

from deltahub import keys, parallel
from deltahub.errors import DeltahubError, FormatError, IntegrityError, NotFoundError
from deltahub.hub import Hub
from deltahub.keys import Listing
from deltahub.names import names_like
from deltahub.records import VersionRecord
from deltahub.stores import Entry

BAD = (NotFoundError, FormatError, IntegrityError)
"""What is wrong with one object; the place as a whole works."""
_CLOCKS = 5.0
"""Seconds that the clocks of two stores may differ, whole seconds included, for a tag to be taken for unmoved."""


@dataclass(frozen=True)
class Failure:
    """A version, ``a@2``, or tag, ``a:prod``, that was not copied, and why in one line."""

    what: str
    problem: str


@dataclass(frozen=True)
class Copy:
    """A version of the source, ``a@2``, what it is in the target, ``a@3`` where 2 was taken, and its digest."""

    source: str
    target: str
    digest: str


@dataclass(frozen=True)
class SyncReport:
    """What `syncing.sync` did, or in a dry run would do.

    Attributes:
        copied: versions that are new in the target.
        tags: that were set or moved there, ``a:prod``.
        present: how many versions were there.
        removed: versions that the target had and removed; they stay removed.
        failed: versions that are damaged in the source, and tags of what was not copied.
        blobs: how many travelled.
        bytes: of these.
        signatures: that were copied, ``a@2 by 8c1d6f1e6a5f0b2c``.
        unsigned: versions of the source whose signatures were left behind: they are of that number and record only.
    """

    copied: tuple[Copy, ...]
    tags: tuple[str, ...]
    present: int
    removed: tuple[str, ...]
    failed: tuple[Failure, ...]
    blobs: int
    bytes: int
    signatures: tuple[str, ...] = ()
    unsigned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """A version of the source, its number in the target, and whether it is ``new`` there or only looked at."""

    record: VersionRecord
    number: int
    new: bool = True


@dataclass
class TaskPlan:
    """One task.

    Attributes:
        used: numbers that its versions in the target have or had.
        numbers: of versions that both hubs have, from the source's to the target's.
        steps: what is to be done, in the order of the source's numbers.
        removed: versions that the target had and removed, ``a@3``.
        failed: versions whose record cannot be read.
        tags: names of the tags that may differ.
        signed: of versions of the source, the ids of keys whose signatures the target may lack.
    """

    task: str
    used: set[int]
    numbers: dict[int, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    signed: dict[int, set[str]] = field(default_factory=dict)


_Found: TypeAlias = dict[int, VersionRecord | DeltahubError]


class _Side:
    """A hub and the one listing of it."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.entries: dict[str, Entry] = {entry.key: entry for entry in hub.store.list("tasks")}
        self.listings = keys.listings(self.entries)

    def md5(self, entry: Entry) -> str | None:
        """Of a record: what the listing says, or what reading tells where that needs no request."""
        if entry.md5 or self.hub.store.remote:
            return entry.md5
        return hashlib.md5(self.hub.store.get(entry.key), usedforsecurity=False).hexdigest()

    def records(self, task: str, numbers: Sequence[int]) -> _Found:
        found: _Found = {}

        def read(number: int) -> VersionRecord | DeltahubError:
            try:
                return self.hub._record(task, number)
            except BAD as error:
                return error

        parallel.for_each(read, numbers, parallel.threads(self.hub.store), found.__setitem__)
        return found


def plan(
    source: Hub, target: Hub, patterns: Sequence[str], *, newest: bool, tags: bool, check: bool
) -> tuple[list[TaskPlan], int]:
    """The tasks that ``patterns`` choose and that differ, and how many versions are there already.

    Raises:
        NotFoundError: a pattern that no task of the source matches.
    """
    ours, theirs = _Side(source), _Side(target)
    names = _chosen(sorted(task for task, found in ours.listings.items() if found.live), patterns, source.store.url)
    plans, present = [], 0
    for task in names:
        made = _plan_task(ours, theirs, task, newest=newest, check=check)
        present += len(made.numbers)
        if tags:
            made.tags = [tag for tag in sorted(ours.listings[task].tags) if check or _moved(ours, theirs, task, tag)]
        if made.steps or made.tags or made.removed or made.failed or made.signed:
            plans.append(made)
    return plans, present


def _chosen(names: list[str], patterns: Sequence[str], url: str) -> list[str]:
    if not patterns:
        return names
    found = {pattern: names_like(pattern, names) for pattern in patterns}
    for pattern, matching in found.items():
        if not matching:
            raise NotFoundError(f"no task matches {pattern!a} in {url}", hint="`deltahub list` shows what there is")
    return sorted(set().union(*found.values()))


def _plan_task(source: _Side, target: _Side, task: str, *, newest: bool, check: bool) -> TaskPlan:
    """Matches versions in their order, so that what is newest in the source is newer in the target than the others."""
    chosen, there = source.listings[task].live, target.listings.get(task, Listing())
    chosen = chosen[-1:] if newest else chosen
    made = TaskPlan(task, there.records | there.removed, signed=_signed(source, there, task, chosen, check=check))
    alike = [] if check else list(takewhile(_alike(source, target, task), chosen))
    made.numbers = {number: number for number in alike}
    last, used = max(alike, default=0), set(made.used)
    rest = chosen[len(alike) :]
    if not rest:
        return made
    ours = source.records(task, rest)
    theirs = target.records(task, _comparable(there.live, rest, last, newest))
    for number in rest:
        record = ours[number]
        if isinstance(record, DeltahubError):
            made.failed.append(Failure(f"{task}@{number}", str(record)))
            continue
        found = _equal(theirs, ours, record, last)
        if found is not None:
            last = made.numbers[number] = found.number
            if check and found.sections == record.sections:
                made.steps.append(Step(record, last, new=False))
        elif number in there.removed:
            made.removed.append(f"{task}@{number}")
        else:
            last = number if number > last and number not in used else max(used) + 1
            used.add(last)
            made.steps.append(Step(record, last))
    return made


def _signed(source: _Side, there: Listing, task: str, chosen: list[int], *, check: bool) -> dict[int, set[str]]:
    ours = source.listings[task].signatures
    found = {number: ours[number] - (set() if check else there.signatures.get(number, set()))
             for number in chosen if number in ours}  # fmt: skip
    return {number: key_ids for number, key_ids in found.items() if key_ids}


def _alike(source: _Side, target: _Side, task: str) -> Callable[[int], bool]:
    """Whether a version looks the same in both: records of one length, and of one MD5 where both are known."""

    def alike(number: int) -> bool:
        key = keys.version(task, number)
        ours, theirs = source.entries[key], target.entries.get(key)
        if theirs is None or number in target.listings[task].removed or ours.size != theirs.size:
            return False
        known = source.md5(ours), target.md5(theirs)
        return None in known or known[0] == known[1]

    return alike


def _comparable(live: list[int], chosen: list[int], last: int, newest: bool) -> list[int]:
    """Numbers in the target that may hold a chosen version; an old one there does not stand for the newest here."""
    return [number for number in live if number > last and (not newest or number in (*chosen, live[-1]))]


def _equal(theirs: _Found, ours: _Found, record: VersionRecord, last: int) -> VersionRecord | None:
    """The version of the target that is ``record``: above ``last``, and not one that another version here is."""
    own = theirs.get(record.number)
    if record.number > last and isinstance(own, VersionRecord) and own.digest == record.digest:
        return own
    for number, one in sorted(theirs.items()):
        if number > last and isinstance(one, VersionRecord) and one.digest == record.digest:
            same = ours.get(number)
            if not (isinstance(same, VersionRecord) and same.digest == one.digest):
                return one
    return None


def _moved(source: _Side, target: _Side, task: str, tag: str) -> bool:
    """Whether a tag may differ: it does not look so where the target's was written after the source's."""
    ours, theirs = source.entries[keys.tag(task, tag)], target.entries.get(keys.tag(task, tag))
    return theirs is None or theirs.modified < ours.modified + _CLOCKS

"""What a verification tells, and the records of a hub, read as what their keys say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deltahub import keys, records
from deltahub.errors import HubError
from deltahub.keys import Listing
from deltahub.manifest import BaseRef
from deltahub.records import MaskRecord, VersionRecord


@dataclass(frozen=True)
class Problem:
    """A bad object.

    Attributes:
        key: its key.
        problem: what is wrong, in one line.
        needed_by: the versions or masks that need it.
        unmended: why a repair could not mend it; empty where none was asked for.
    """

    key: str
    problem: str
    needed_by: tuple[str, ...] = ()
    unmended: str = ""


@dataclass(frozen=True)
class Repaired:
    """An object that a repair mended: its key, and in one line what it is now and how sure that is."""

    key: str
    how: str


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` read, and what it found bad; an empty ``problems`` is a sound hub.

    ``loose`` are keys of blobs that nothing needs and of unfinished writes: no harm, and `collect` deletes them.
    ``repaired`` was bad, and is mended; ``problems`` are then those that are left. ``unchecked`` are signatures that
    were not looked at, since the package that can check them is not installed.
    """

    versions: int
    masks: int
    blobs: int
    bytes: int
    problems: tuple[Problem, ...]
    loose: tuple[str, ...] = ()
    signatures: int = 0
    repaired: tuple[Repaired, ...] = ()
    unchecked: int = 0


def lost_numbers(task: str, below: Iterable[str]) -> list[range]:
    """Spans of numbers of ``task`` that, by its keys ``below``, were lost: neither there nor removed nor never here."""
    found = set(below)
    listing = keys.listings(found).get(task, Listing())
    spans, last = [], 0
    for number in sorted(listing.records | listing.removed):
        if number > last + 1 and keys.copied(task, number) not in found:
            spans.append(range(last + 1, number))
        last = number
    return spans


def read_version(data: bytes, key: str) -> VersionRecord:
    """The record under ``key``; raises HubError where it is one of another version."""
    record = VersionRecord.from_bytes(data, key)
    if keys.version(record.task, record.number) != key:
        raise HubError(f"{key} is the record of {record.reference}", hint="it was copied or renamed")
    if record.manifest.task != record.task:
        raise HubError(f"{key} has the manifest of {record.manifest.task}", hint="it was made by hand")
    return record


def read_mask(data: bytes, key: str) -> MaskRecord:
    """The record under ``key``; raises HubError where it is one of another mask."""
    record = MaskRecord.from_bytes(data, key)
    if keys.mask(record.digest) != key:
        raise HubError(f"{key} is the record of mask {record.digest[:16]}", hint="it was copied or renamed")
    return record


def read_base(data: bytes, key: str) -> BaseRef:
    """The record under ``key``; raises HubError where it is one of another base."""
    record = records.read_base(data, key)
    if keys.base(record.digest) != key:
        raise HubError(f"{key} is the record of base {record.digest[:16]}", hint="it was copied or renamed")
    return record

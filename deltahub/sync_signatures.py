"""The part of a sync that copies signatures: only beside the very record that they are of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from deltahub import keys, parallel, signatures, signing
from deltahub.hub import Hub
from deltahub.sync_plan import BAD, Failure, TaskPlan


@dataclass
class CopiedSignatures:
    """What came of it.

    Attributes:
        copied: ``a@2 by 8c1d6f1e6a5f0b2c``.
        dropped: versions of the source, ``a@2``, whose signatures say nothing of what the target has: it has them under
            another number, or in another record.
        failed: signatures that are damaged in the source, or not known to be good where the target has another.
    """

    copied: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)


def copy_signatures(
    source: Hub, target: Hub, plans: Iterable[TaskPlan], *, check: bool, dry_run: bool
) -> CopiedSignatures:
    """Copies the signatures of versions that the target has by now.

    Args:
        check: also replaces those that differ in the target, by good ones.
        dry_run: only tells what would be copied, by the numbers.
    """
    items = [(one, number) for one in plans for number in one.signed if number in one.numbers]
    if dry_run or not items:
        return _copy_all(source, target, items, check=check, dry_run=dry_run)
    return target.transacted(lambda inside: _copy_all(source, inside, items, check=check, dry_run=False))


def _copy_all(
    source: Hub, target: Hub, items: list[tuple[TaskPlan, int]], *, check: bool, dry_run: bool
) -> CopiedSignatures:
    made = CopiedSignatures()

    def copy(item: tuple[TaskPlan, int]) -> CopiedSignatures:
        one, number = item
        if one.numbers[number] == number and dry_run:
            return CopiedSignatures([f"{one.task}@{number} by {key_id}" for key_id in sorted(one.signed[number])])
        if one.numbers[number] != number or not _same_record(source, target, one.task, number):
            return CopiedSignatures(dropped=[f"{one.task}@{number}"])
        return _copy(source, target, one, number, check=check)

    def note(_: object, found: CopiedSignatures) -> None:
        made.copied.extend(found.copied)
        made.dropped.extend(found.dropped)
        made.failed.extend(found.failed)

    parallel.for_each(copy, items, parallel.threads(source.store, target.store), note)
    made.copied.sort()
    made.dropped.sort()
    return made


def _same_record(source: Hub, target: Hub, task: str, number: int) -> bool:
    """Byte for byte: the signature is of these bytes."""
    try:
        return source._record(task, number).to_bytes() == target._record(task, number).to_bytes()
    except BAD:
        return False


def _copy(source: Hub, target: Hub, one: TaskPlan, number: int, *, check: bool) -> CopiedSignatures:
    made = CopiedSignatures()
    for key_id in sorted(one.signed[number]):
        key, what = keys.signature(one.task, number, key_id), f"{one.task}@{number} by {key_id}"
        try:
            data = signatures.read_whole(source.store, key)
        except BAD as error:
            made.failed.append(Failure(f"the signature of {what}", str(error)))
            continue
        if target.store.put_new(key, data):
            made.copied.append(what)
        elif check and target.store.get(key) != data:
            if _is_good(source, one.task, number, key_id):
                target.store.put(key, data)
                made.copied.append(what)
            else:
                made.failed.append(Failure(f"the signature of {what}", "another is there, and this one is not good"))
    return made


def _is_good(source: Hub, task: str, number: int, key_id: str) -> bool:
    """Only then it takes the place of another, which may be the good one; False also where nothing can tell."""
    if not signing.is_available():
        return False
    [found] = signatures.of_record(source.store, source._record(task, number), [key_id])
    return found.valid

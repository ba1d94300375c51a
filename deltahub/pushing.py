"""Adding versions and masks to a hub, so that a writer that dies on the way is never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from deltahub import garbage, keys, records, versions
from deltahub.delta import Delta
from deltahub.errors import FormatError, HubError, IntegrityError, MismatchError, NotFoundError
from deltahub.names import check_tag, check_task
from deltahub.records import MaskRecord, Section, VersionRecord
from deltahub.rounding import check_rounding, round_delta
from deltahub.stores import Store
from deltahub.versions import Progress

if TYPE_CHECKING:
    from deltahub.hub import Hub
    from deltahub.mask import Mask


@dataclass(frozen=True)
class TaskVersion:
    """What a push made or found: ``task@number``, the digest of its delta, and whether it is ``new``."""

    task: str
    number: int
    digest: str
    new: bool = field(default=True, compare=False)


def push(
    hub: Hub,
    delta: Delta,
    tags: Sequence[str],
    *,
    mask: Mask | None,
    values: str,
    head: str,
    progress: Progress | None,
) -> TaskVersion:
    """See `Hub.push`."""
    for tag in tags:
        check_tag(tag)
    check_task(delta.task)
    check_rounding("values", values)
    check_rounding("head", head)
    delta = round_delta(delta, values, head)
    _next_number(hub, delta.task)  # refused before anything is written
    _keep_mask(hub, delta, mask)
    hub.store.put_new(keys.base(delta.manifest.base.digest), records.base_bytes(delta.manifest.base))
    sections = versions.encode(delta)
    found = _equal_to_newest(hub, delta) or _add(hub, delta, sections, progress)
    for tag in tags:
        hub.tag(found.task, found.number, tag)
    return found


def push_mask(hub: Hub, mask: Mask) -> None:
    """See `Hub.push_mask`."""
    try:
        versions.read_mask(hub.store, hub._mask(keys.mask(mask.digest)))
        return
    except (NotFoundError, FormatError, IntegrityError):
        blob, stored = (None, b"") if mask.rebuildable else versions.encode_mask(mask)
    record = MaskRecord(mask.digest, mask.base, mask.n, mask.k, dict(mask.recipe), blob)
    blobs = {blob.blob: stored} if blob else {}
    with garbage.lease(hub.store, set(blobs)):
        _put_blobs(hub.store, blobs, None)
        hub.store.put(keys.mask(mask.digest), record.to_bytes())
        _put_lost(hub.store, blobs)


def _keep_mask(hub: Hub, delta: Delta, mask: Mask | None) -> None:
    ref = delta.manifest.mask
    if mask is not None and (ref is None or mask.digest != ref.digest):
        raise MismatchError(
            f"{delta.task} is not aligned to the given mask", expected=ref and ref.digest[:16], got=mask.digest[:16]
        )
    if mask is not None:
        push_mask(hub, mask)
    elif ref is not None and hub.store.stat(keys.mask(ref.digest)) is None:
        if not ref.rebuildable:
            raise NotFoundError(
                f"mask {ref.digest[:16]} of {delta.task} is not in the hub, and no recipe can rebuild it",
                hint="give its file once with --mask",
            )
        record = MaskRecord(ref.digest, delta.manifest.base, ref.n, ref.k, dict(ref.recipe), None)
        hub.store.put_new(keys.mask(ref.digest), record.to_bytes())


def _equal_to_newest(hub: Hub, delta: Delta) -> TaskVersion | None:
    """The newest version if it is ``delta`` and whole; a damaged one does not stand in the way of the next."""
    numbers = hub._listing(delta.task).live
    if not numbers:
        return None
    try:
        record = hub._record(delta.task, numbers[-1])
        if record.digest != delta.digest:
            return None
    except (NotFoundError, FormatError, IntegrityError):
        return None
    whole = all(versions.is_whole(hub.store, section.data) for section in record.sections)
    return TaskVersion(delta.task, record.number, delta.digest, new=False) if whole else None


def _add(hub: Hub, delta: Delta, sections: list[tuple[Section, bytes]], progress: Progress | None) -> TaskVersion:
    blobs = {section.data.blob: stored for section, stored in sections}
    with garbage.lease(hub.store, set(blobs)):
        _put_blobs(hub.store, blobs, progress)
        number = _create_record(hub, delta, tuple(section for section, _ in sections))
        _put_lost(hub.store, blobs)
    return TaskVersion(delta.task, number, delta.digest)


def _put_blobs(store: Store, blobs: dict[str, bytes], progress: Progress | None) -> None:
    done, total = 0, sum(map(len, blobs.values()))
    for name, stored in blobs.items():
        versions.put_blob(store, name, stored)
        done += len(stored)
        if progress:
            progress(done, total)


def _put_lost(store: Store, blobs: dict[str, bytes]) -> None:
    """Writes again what a collector without a grace period took from under the lease."""
    for name, stored in blobs.items():
        if store.stat(keys.blob(name)) is None:
            store.put(keys.blob(name), stored)


def _create_record(hub: Hub, delta: Delta, sections: tuple[Section, ...]) -> int:
    number = _next_number(hub, delta.task)
    size = sum(len(part) for part in delta.dump())
    while True:
        record = VersionRecord(
            delta.task, number, delta.digest, size, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            delta.manifest.to_json(), sections,
        )  # fmt: skip
        if hub.store.put_new(keys.version(delta.task, number), record.to_bytes()):
            if hub.store.stat(keys.tombstone(delta.task, number)) is None:
                return number
            hub.store.delete(keys.version(delta.task, number))  # another pushed and removed it since the listing
        number = _checked(delta.task, number + 1)


def _next_number(hub: Hub, task: str) -> int:
    found = hub._listing(task)
    return _checked(task, max(found.records | found.removed, default=0) + 1)


def _checked(task: str, number: int) -> int:
    if number > keys.MOST_NUMBER:
        raise HubError(
            f"{task} has no version numbers left", expected=f"at most {keys.MOST_NUMBER:,}",
            hint="`deltahub verify` names a version or a .removed with a number that nobody pushed: delete that file",
        )  # fmt: skip
    return number

"""Adding versions and masks to a hub, so that a writer that dies on the way is never seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from deltahub import card, garbage, keys, parallel, records, signatures, versions
from deltahub.delta import Delta
from deltahub.errors import FormatError, HubError, IntegrityError, MismatchError, NotFoundError
from deltahub.keys import Listing
from deltahub.manifest import BaseRef, MaskRef
from deltahub.names import check_tag, check_task
from deltahub.records import MaskRecord, Section, VersionRecord
from deltahub.rounding import check_rounding, round_delta
from deltahub.stores import Store
from deltahub.stores.cached import uncached
from deltahub.versions import Progress

if TYPE_CHECKING:
    from deltahub.hub import Hub
    from deltahub.mask import Mask
    from deltahub.signing import SigningKey


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
    check: bool,
    sign: SigningKey | None,
    progress: Progress | None,
) -> TaskVersion:
    """See `Hub.push`."""
    for tag in tags:
        check_tag(tag)
    check_task(delta.task)
    check_rounding("values", values)
    check_rounding("head", head)
    rounded = round_delta(delta, values, head)
    encoded = cache(lambda: versions.encode(rounded))  # once, also where the work has to begin anew

    def work(inside: Hub) -> TaskVersion:
        found = _push(inside, rounded, encoded, mask, check, progress)
        if sign is not None:  # before any tag leads to it
            manifest = rounded.manifest.to_json()
            signatures.sign_pushed(inside, found.task, found.number, rounded.digest, manifest, sign)
        for tag in tags:
            inside.store.put(keys.tag(found.task, tag), records.tag_bytes(found.number))
        if found.new or tags:
            card.update(inside, [found.task])
        return found

    return hub.transacted(work)


def _push(
    hub: Hub,
    delta: Delta,
    encoded: Callable[[], list[tuple[Section, bytes]]],
    mask: Mask | None,
    check: bool,
    progress: Progress | None,
) -> TaskVersion:
    listing = hub._listing(delta.task)
    _next_number(listing, delta.task)  # refused before anything is written
    _keep_mask(hub, delta, mask, check)
    base = delta.manifest.base
    if check or keys.base(base.digest) not in hub.remembered:
        keep_base(hub.store, base)
        hub.remembered.add(keys.base(base.digest))
    sections = encoded()
    return _equal_to_newest(hub, listing, delta, sections, check) or _add(
        hub, listing, delta, sections, check, progress
    )


def push_mask(hub: Hub, mask: Mask, *, check: bool = False) -> None:
    """See `Hub.push_mask`."""
    if _has_mask(hub, mask, check):
        return
    blob, stored = (None, b"") if mask.rebuildable else versions.encode_mask(mask)
    record = MaskRecord(mask.digest, mask.base, mask.n, mask.k, dict(mask.recipe), blob)
    blobs = {blob.blob: stored} if blob else {}
    with garbage.lease(hub.store, set(blobs)):
        _put_blobs(hub.store, blobs, check, None)
        hub.store.put(keys.mask(mask.digest), record.to_bytes())
        _put_lost(hub.store, blobs)


def keep_base(store: Store, base: BaseRef) -> None:
    """Keeps id and revision of a base."""
    if store.stat(keys.base(base.digest)) is None:
        store.put_new(keys.base(base.digest), records.base_bytes(base))


def create_record(hub: Hub, record: VersionRecord, *, rely_on_equal: bool = False, look: bool = True) -> int:
    """Creates ``record`` under its number, or the next that nobody has or had; its blobs must be there.

    Args:
        rely_on_equal: a version with the same digest that another made under that number meanwhile is this one.
        look: False leaves it to the caller to look for the number's ``.removed`` afterwards.
    """
    task, number = record.task, record.number
    while True:
        if hub.store.put_new(keys.version(task, number), replace(record, number=number).to_bytes()):
            if not look or hub.store.stat(keys.tombstone(task, number)) is None:
                return number
            hub.store.delete(keys.version(task, number))  # another pushed and removed it since the listing
        found = hub._listing(task)
        if rely_on_equal and number in found.live and _digest(hub, task, number) == record.digest:
            return number
        number = max(_next_number(found, task), _checked(task, number + 1))


def _digest(hub: Hub, task: str, number: int) -> str | None:
    try:
        return hub._record(task, number).digest
    except (NotFoundError, FormatError, IntegrityError):
        return None


def _has_mask(hub: Hub, mask: Mask, check: bool) -> bool:
    """Whether the mask is there; on a remote store by its record and the size of its blob, unless ``check``."""
    try:
        record = hub._mask(keys.mask(mask.digest))
        if check or not hub.store.remote:
            versions.read_mask(uncached(hub.store), record)
            return True
    except (NotFoundError, FormatError, IntegrityError):
        return False
    return record.data is None or versions.is_whole(hub.store, record.data.blob, record.data.stored)


def _keep_mask(hub: Hub, delta: Delta, mask: Mask | None, check: bool) -> None:
    ref = delta.manifest.mask
    if mask is not None and (ref is None or mask.digest != ref.digest):
        raise MismatchError(
            f"{delta.task} is not aligned to the given mask", expected=ref and ref.digest[:16], got=mask.digest[:16]
        )
    if mask is not None:
        push_mask(hub, mask, check=check)
    elif ref is not None and (check or keys.mask(ref.digest) not in hub.remembered):
        _keep_recipe(hub.store, delta, ref)
        hub.remembered.add(keys.mask(ref.digest))


def _keep_recipe(store: Store, delta: Delta, ref: MaskRef) -> None:
    if store.stat(keys.mask(ref.digest)) is not None:
        return
    if not ref.rebuildable:
        raise NotFoundError(
            f"mask {ref.digest[:16]} of {delta.task} is not in the hub, and no recipe can rebuild it",
            hint="give its file once with --mask",
        )
    record = MaskRecord(ref.digest, delta.manifest.base, ref.n, ref.k, dict(ref.recipe), None)
    store.put_new(keys.mask(ref.digest), record.to_bytes())


def _equal_to_newest(
    hub: Hub, listing: Listing, delta: Delta, sections: list[tuple[Section, bytes]], check: bool
) -> TaskVersion | None:
    """The newest version if it is ``delta`` and whole; a damaged one does not stand in the way of the next."""
    if not listing.live:
        return None
    try:
        record = hub._record(delta.task, listing.live[-1])
        if record.digest != delta.digest:
            return None
    except (NotFoundError, FormatError, IntegrityError):
        return None
    stored = {section.data.blob: data for section, data in sections}
    whole: list[bool] = []

    def look(section: Section) -> bool:
        blob = section.data
        return versions.is_whole(hub.store, blob.blob, blob.stored, stored.get(blob.blob), check=check)

    parallel.for_each(look, record.sections, parallel.threads(hub.store), lambda _, good: whole.append(good))
    return TaskVersion(delta.task, record.number, delta.digest, new=False) if all(whole) else None


def _add(
    hub: Hub,
    listing: Listing,
    delta: Delta,
    sections: list[tuple[Section, bytes]],
    check: bool,
    progress: Progress | None,
) -> TaskVersion:
    blobs = {section.data.blob: stored for section, stored in sections}
    record = VersionRecord(
        delta.task, _next_number(listing, delta.task), delta.digest, sum(len(part) for part in delta.dump()),
        datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), delta.manifest.to_json(),
        tuple(section for section, _ in sections),
    )  # fmt: skip
    with garbage.lease(hub.store, set(blobs)):
        _put_blobs(hub.store, blobs, check, progress)
        number = create_record(hub, record)
        _put_lost(hub.store, blobs)
    return TaskVersion(delta.task, number, delta.digest)


def _put_blobs(store: Store, blobs: Mapping[str, bytes], check: bool, progress: Progress | None) -> None:
    total, left = sum(map(len, blobs.values())), dict(blobs)

    def put(name: str) -> None:
        versions.put_blob(store, name, blobs[name], check=check)

    def done(name: str, _: None) -> None:
        del left[name]
        if progress:
            progress(total - sum(map(len, left.values())), total)

    parallel.for_each(put, blobs, parallel.threads(store), done)


def _put_lost(store: Store, blobs: Mapping[str, bytes]) -> None:
    """Writes again what a collector without a grace period took from under the lease."""

    def put(name: str) -> None:
        if store.stat(keys.blob(name)) is None:
            store.put(keys.blob(name), blobs[name])

    parallel.for_each(put, blobs, parallel.threads(store))


def _next_number(found: Listing, task: str) -> int:
    return _checked(task, max(found.records | found.removed, default=0) + 1)


def _checked(task: str, number: int) -> int:
    if number > keys.MOST_NUMBER:
        raise HubError(
            f"{task} has no version numbers left", expected=f"at most {keys.MOST_NUMBER:,}",
            hint="`deltahub verify` names a version or a .removed with a number that nobody pushed: delete that file",
        )  # fmt: skip
    return number

"""What changes a hub's names for what it has: tags that move, versions that go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltahub import card, keys, records
from deltahub.errors import HubError, NotFoundError, UsageError
from deltahub.names import check_tag, check_task, parse_reference

if TYPE_CHECKING:
    from deltahub.hub import Hub


def tag(hub: Hub, task: str, number: int, name: str) -> None:
    """See `Hub.tag`."""
    check_tag(name)

    def work(inside: Hub) -> None:
        inside.version(f"{task}@{number}")
        inside.store.put(keys.tag(task, name), records.tag_bytes(number))
        card.update(inside, [task])

    hub.transacted(work)


def untag(hub: Hub, task: str, name: str) -> None:
    """See `Hub.untag`."""
    check_tag(name)
    check_task(task)

    def work(inside: Hub) -> None:
        if name not in inside._listing(task).tags:
            raise NotFoundError(f"{task} has no tag {name}")
        inside.store.delete(keys.tag(task, name))
        card.update(inside, [task])

    hub.transacted(work)


def remove(hub: Hub, reference: str, force: bool) -> list[str]:
    """See `Hub.remove`."""
    return hub.transacted(lambda inside: _remove(inside, reference, force))


def _remove(hub: Hub, reference: str, force: bool) -> list[str]:
    task, which = parse_reference(reference)
    if isinstance(which, str):
        raise UsageError(f"remove {reference}", expected="TASK or TASK@N", hint="`deltahub tag --delete` drops a tag")
    found = hub._existing(task)
    if which is None:
        chosen, named = found.live, sorted(found.tags)
    else:  # the record is not read: a damaged one must be removable
        hub._check_number(found, task, which)
        chosen, named = [which], [name for name, number in hub.tags(task).items() if number == which]
    if named and not force:
        raise HubError(f"{reference} is named by {', '.join(named)}", hint="move the tags, or use --force")
    for name in named:
        hub.store.delete(keys.tag(task, name))
    for number in chosen:
        hub.store.put_new(keys.tombstone(task, number), b"")
        hub.store.delete(keys.version(task, number))
        for key_id in found.signatures.get(number, ()):
            hub.store.delete(keys.signature(task, number, key_id))
    card.update(hub, [task])
    return [f"{task}@{number}" for number in chosen]

"""What can be asked: a card for the base and for every task of the hub, from records that are read once."""

from __future__ import annotations

import threading
from calendar import timegm
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import strptime

from deltahub import DeltahubError, Manifest
from deltahub.errors import NotFoundError, StoreError
from deltahub.hub import TaskInfo
from deltahub.names import parse_reference
from deltahub_serve.listing import Listing, UnknownTask
from deltahub_serve.questions import TaskCard
from deltahub_serve.shelf import Loaded

_MOST_FACTS = 20_000
"""Records that are remembered at least; where the hub has many tasks, twice as many as those."""
_AGE = 1.0
"""Seconds for which a listing is good enough."""
_DAMAGED = 30.0
"""Seconds after which a record that could not be read is read again."""


@dataclass(frozen=True)
class _Facts:
    """What a record says of a version; records never change."""

    kind: str
    labels: tuple[str, ...]
    created: int
    pair: bool
    trouble: str | None = None


class Catalogue:
    """Cards of all that can be asked. Its methods wait for the hub, so they do not belong in an event loop.

    Where the hub cannot be read, they tell what was known of it, and what is in memory.

    Args:
        listing: of the hub.
        base: the first card, and the parent of all others.
        loaded: versions in memory.
        last: what a name last meant to those who asked it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        listing: Listing,
        base: TaskCard,
        loaded: Callable[[], list[Loaded]],
        last: Callable[[str], Loaded | None],
        clock: Callable[[], float],
    ) -> None:
        self._listing = listing
        self._base = base
        self._loaded = loaded
        self._last = last
        self._clock = clock
        self._facts: OrderedDict[tuple[str, int], _Facts] = OrderedDict()
        self._damaged: dict[tuple[str, int], tuple[float, _Facts]] = {}
        self._building = threading.Lock()
        self._of: Mapping[str, TaskInfo] | None = None
        self._cards: list[TaskCard] = []

    def cards(self) -> list[TaskCard]:
        """The base, then every task by name."""
        infos, readable = self._known()
        with self._building:  # who waited here finds every record read
            if infos is self._of and not self._damaged and readable:
                return list(self._cards)
            found = [self._base]
            for info in infos.values():
                if info.task == self._base.name:  # pushed since the start; the base answers to this name
                    continue
                facts, readable = self._look(info.task, info.newest, readable)
                if facts is not None:
                    found.append(self._card(info, facts, dict.fromkeys(info.tags)))
            self._of, self._cards = (infos if readable else None), found
            return list(found)

    def card(self, name: str) -> TaskCard:
        """The card of ``"sst2"``, with kind and labels of the version that ``"sst2@3"`` or ``"sst2:prod"`` means.

        Raises:
            UsageError, NotFoundError: there is no such task, version or tag.
            StoreError: nothing is known of it, and the hub cannot be read.
        """
        if name == self._base.name:
            return self._base
        task, which = parse_reference(name)
        try:
            info = self._listing.task(task)
            with self._listing.watch.look():
                tags = self._listing.watch.hub.tags(task) if info is not None else {}
        except StoreError as error:
            return self._card_without_hub(name, task, which, error)
        if info is None:
            raise UnknownTask(task, self._listing.near(task))
        if isinstance(which, str) and which not in tags:
            raise NotFoundError(f"{task} has no tag {which}", got=", ".join(sorted(info.tags)) or "no tags at all")
        number = info.newest if which is None else tags[which] if isinstance(which, str) else which
        if number not in info.numbers:
            raise NotFoundError(f"{task} has no version {number}", got=f"versions up to {info.newest}")
        facts, _ = self._look(task, number, readable=True)
        if facts is None:
            raise StoreError(f"{task}@{number} cannot be read now")
        return self._card(info, facts, dict(tags))

    def _card_without_hub(self, name: str, task: str, which: int | str | None, error: StoreError) -> TaskCard:
        """From what was known; raises ``error`` where that is not enough, since it proves nothing."""
        infos, _ = self._known()
        if (info := infos.get(task)) is None:
            raise error
        meant = self._last(name) if isinstance(which, str) else None
        number = meant.version if meant is not None else info.newest if which is None else which
        facts = self._look(task, number, readable=False)[0] if isinstance(number, int) else None
        if facts is None:
            raise error
        known = {which: number} if isinstance(which, str) else {}
        return self._card(info, facts, dict.fromkeys(info.tags) | known)

    def _known(self) -> tuple[Mapping[str, TaskInfo], bool]:
        """Tasks by name, and whether the hub can be read; one that is known to be in trouble is not waited for."""
        if self._listing.watch.trouble() is None:
            try:
                return self._listing.tasks(_AGE), True
            except StoreError:
                pass
        known = dict(self._listing.known)
        numbers: dict[str, set[int]] = {}
        for one in self._loaded():
            if one.task not in known and one.version is not None:
                numbers.setdefault(one.task, set()).add(one.version)
        for task, found in numbers.items():
            known[task] = TaskInfo(task, max(found), len(found), (), tuple(sorted(found)))
        return dict(sorted(known.items())), False

    def _look(self, task: str, number: int, readable: bool) -> tuple[_Facts | None, bool]:
        """What is known of a version, and whether the hub could be read; nothing where it was removed meanwhile."""
        key = (task, number)
        if (facts := self._facts.get(key) or self._known_damage(key)) is not None:
            return facts, readable
        if not readable:
            return self._in_memory(key), False
        try:
            with self._listing.watch.look():
                record = self._listing.watch.hub.version(f"{task}@{number}")
            facts = _facts(record.manifest, record.pushed)
        except NotFoundError:
            return None, True
        except StoreError:
            return self._in_memory(key), False
        except DeltahubError as error:
            facts = _Facts("", (), 0, False, str(error))
            self._damaged[key] = (self._clock() + _DAMAGED, facts)
            return facts, True
        self._facts[key] = facts
        while len(self._facts) > max(_MOST_FACTS, 2 * len(self._listing.known)):
            self._facts.popitem(last=False)
        return facts, True

    def _known_damage(self, key: tuple[str, int]) -> _Facts | None:
        until, facts = self._damaged.get(key, (0.0, None))
        if self._clock() < until:
            return facts
        self._damaged.pop(key, None)
        return None

    def _in_memory(self, key: tuple[str, int]) -> _Facts | None:
        for one in self._loaded():
            if one.key == key:
                manifest = one.model.delta.manifest
                return _facts(manifest, manifest.created)
        return None

    def _card(self, info: TaskInfo, facts: _Facts, tags: dict[str, int | None]) -> TaskCard:
        return TaskCard(
            info.task, facts.kind, facts.labels, self._base.name, info.numbers, tags, facts.created, facts.trouble,
            facts.pair,
        )  # fmt: skip


def _facts(manifest: Manifest, created: str) -> _Facts:
    seconds = timegm(strptime(created, "%Y-%m-%dT%H:%M:%SZ"))
    return _Facts(manifest.kind, manifest.labels, seconds, manifest.inputs.get("pair") is True)

"""What names mean now, which names a version goes by, and whether the hub's listing says that a name means another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deltahub.hub import TaskInfo
from deltahub.names import parse_reference
from deltahub_serve.shelf import Key, Loaded

_COARSE = 3.0
"""Seconds within which two writes to a store may bear the same time."""
_LONGEST_PAUSE = 600.0


@dataclass
class Meaning:
    """What ``"task"``, ``"task@3"`` or ``"task:tag"`` meant when it was last looked up.

    Attributes:
        used: clock time at which somebody last asked for it.
        idle: nobody asks for it, so it is not looked up again until somebody does; where the hub cannot be read
            then, this is still the answer.
        moved: of a tag, when it was last written, by the clock of the store; None where that was not looked at yet.
        seen: clock time at which ``moved`` was first seen.
        settled: whether the tag was read so long after ``seen`` that no later write can bear the same time.
        failed: what it should mean by now and could not be loaded; ``again`` is the clock time of the next try.
        tries: how often that failed in turn.
    """

    loaded: Loaded
    used: float
    idle: bool = False
    moved: float | None = None
    seen: float = 0.0
    settled: bool = False
    failed: object = None
    again: float = 0.0
    tries: int = 0

    def unchanged(self, name: str, info: TaskInfo, now: float) -> bool:
        """Whether the listing alone says that ``name`` still means this; where it cannot say, the hub is to be read."""
        _, which = parse_reference(name)
        if self.loaded.version not in info.numbers:
            return False
        if not isinstance(which, str):
            return which is not None or info.newest == self.loaded.version
        moved = info.moved[info.tags.index(which)]
        if moved != self.moved:
            self.moved, self.seen, self.settled = moved, now, False
        return self.settled

    def read(self, loaded: Loaded, now: float) -> None:
        """It was looked up at ``now`` and means ``loaded``; to be put under its name again."""
        self.loaded, self.failed, self.tries = loaded, None, 0
        self.settled = now - self.seen >= _COARSE

    def could_not(self, target: object, now: float, pause: float) -> None:
        """``target`` could not be loaded at ``now``; the next try is after ``pause`` seconds, and later each time."""
        self.tries = self.tries + 1 if target == self.failed else 1
        self.failed, self.again = target, now + min(pause * 2 ** (self.tries - 1), _LONGEST_PAUSE)

    def due(self, target: object, now: float) -> bool:
        """Whether to try to load ``target``, which may have failed before."""
        return target != self.failed or now >= self.again


def target(name: str, info: TaskInfo | None) -> object:
    """What changes whenever ``name`` may mean another version; None where the hub has no such thing any more."""
    _, which = parse_reference(name)
    if which is None or info is None:
        return info and info.newest
    if isinstance(which, int):
        return which if which in info.numbers else None
    return info.moved[info.tags.index(which)] if which in info.tags else None


class Meanings:
    """Meanings by name. Not safe for concurrent use: its owner holds a lock, except for ``in`` and `get`."""

    def __init__(self) -> None:
        self._by_name: dict[str, Meaning] = {}
        self._keys: dict[str, Key] = {}
        self._by_key: dict[Key, set[str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[tuple[str, Meaning]]:
        return iter(list(self._by_name.items()))

    def get(self, name: str) -> Meaning | None:
        return self._by_name.get(name)

    def put(self, name: str, meaning: Meaning) -> None:
        self.drop(name)
        self._by_name[name] = meaning
        self._keys[name] = meaning.loaded.key
        self._by_key.setdefault(meaning.loaded.key, set()).add(name)

    def drop(self, name: str) -> None:
        if self._by_name.pop(name, None) is not None:
            key = self._keys.pop(name)
            self._by_key[key].discard(name)
            if not self._by_key[key]:
                del self._by_key[key]

    def drop_version(self, key: Key) -> None:
        """Forgets every name that means this version."""
        for name in list(self._by_key.get(key, ())):
            self.drop(name)

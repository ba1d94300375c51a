"""Pushes, moved tags, refreshes and evictions at random while requests are answered; what each name meant, and when."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from deltahub import Hub
from serving import wire
from serving.made import Maker, kind_of

TAG = "prod"


@dataclass
class Meaning:
    """That a name meant a version; seconds of the monotonic clock.

    Attributes:
        since: before it was written to the hub.
        until: after the next meaning was written.
        gone: after a refresh that began later had been answered: no request since may be given this version.
    """

    number: int
    since: float
    until: float = float("inf")
    gone: float = float("inf")


class Meanings:
    """What names meant, and when.

    Args:
        bound: seconds after which a change must be seen without a refresh.
    """

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self._names: dict[str, list[Meaning]] = {}

    def add(self, name: str, number: int, since: float, until: float) -> None:
        """From a moment between ``since`` and ``until`` on, ``name`` means version ``number``."""
        meanings = self._names.setdefault(name, [])
        if meanings and meanings[-1].number == number:
            return
        if meanings:
            meanings[-1].until = until
        meanings.append(Meaning(number, since))

    def refreshed(self, names: Sequence[str] | None, now: float) -> None:
        """A refresh of ``names``, all if None, has been answered, and nothing was changed while it ran."""
        for name in self._names if names is None else names:
            for meaning in self._names[name][:-1]:
                meaning.gone = min(meaning.gone, now)

    def could(self, name: str, number: int, start: float, end: float) -> bool:
        """Whether a request for ``name`` from ``start`` to ``end`` may have been given that version."""
        if "@" in name:
            return name.endswith(f"@{number}")
        return any(
            meaning.number == number and meaning.since <= end and start <= min(meaning.gone, meaning.until + self.bound)
            for meaning in self._names[name]
        )

    def staleness(self, name: str, number: int, start: float) -> float:
        """Seconds for which ``name`` had meant another version when the request began; 0 where it had not."""
        fitting = [meaning.until for meaning in self._names.get(name, ()) if meaning.number == number]
        return max(0.0, start - max(fitting)) if fitting else 0.0


@dataclass
class Changes:
    """Changes a hub and an application's caches in a thread, while entered; may be entered again.

    Attributes:
        url: of the application.
        maker, hub, names, kinds: the tasks, each with one version that the tag names.
        pause: mean seconds between two changes.
        meanings: of the names, filled here.
    """

    url: str
    maker: Maker
    hub: Hub
    names: Sequence[str]
    kinds: Sequence[str]
    pause: float
    meanings: Meanings
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._versions = dict.fromkeys(self.names, 1)
        self._seeds = 1_000_000
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        for name in self.names:
            self.meanings.add(name, 1, 0.0, 0.0)
            self.meanings.add(f"{name}:{TAG}", 1, 0.0, 0.0)

    def __enter__(self) -> Changes:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="changes")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        actions = [self._push, self._tag, self._tag, self._evict, self._refresh]
        while not self._stop.wait(self._random.expovariate(1 / self.pause)):
            action = self._random.choice(actions)
            try:
                action(self._random.choice(self.names))
            except Exception as error:  # noqa: BLE001  (a change that fails is reported at the end, and must not end the others)
                self.troubles.append(f"{action.__name__}: {type(error).__name__} {str(error)[:200]}")

    def _push(self, name: str) -> None:
        self._seeds += 1
        delta = self.maker.task(name, kind_of(name, self.kinds), self._seeds)
        since = time.monotonic()
        number = self.hub.push(delta).number
        self._versions[name] = number
        self.meanings.add(name, number, since, time.monotonic())
        self.counts["pushes"] += 1

    def _tag(self, name: str) -> None:
        number = self._random.randint(1, self._versions[name])
        since = time.monotonic()
        self.hub.tag(name, number, TAG)
        self.meanings.add(f"{name}:{TAG}", number, since, time.monotonic())
        self.counts["moved tags"] += 1

    def _refresh(self, name: str) -> None:
        """Of all names, or of one task's."""
        everything = self._random.random() < 0.3
        names = None if everything else [name, f"{name}:{TAG}"]
        wire.refresh(self.url, names)
        self.meanings.refreshed(names, time.monotonic())
        self.counts["refreshes"] += 1

    def _evict(self, name: str) -> None:
        wire.evict(self.url, name if self._random.random() < 0.9 else None)
        self.counts["evictions"] += 1

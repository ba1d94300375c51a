"""From what a client calls a task to a model that can answer: the meanings of names, and the latest used in memory."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait

from deltahub import DeltahubError, Hub
from deltahub.hub import TaskInfo
from deltahub_serve.futures import done, otherwise
from deltahub_serve.listing import HubWatch, Listing
from deltahub_serve.loading import Load, Loader
from deltahub_serve.meanings import Meaning, Meanings, target
from deltahub_serve.settings import LibraryCounters, LibrarySettings
from deltahub_serve.shelf import Key, Loaded, Shelf

_WINDOW = 64
"""Tasks of a prefetch that are on their way at a time, so that requests find room beside them."""
_FEW = 100
"""Tasks that are rather looked up one by one than by a listing of the whole hub."""
_UNUSED = 60.0
"""Seconds at least for which a name that nobody asks for is looked up again."""


class Library:
    """Names to loaded tasks; safe for many threads.

    A name keeps its meaning until `refresh` has loaded what it means by then: a version that cannot be loaded never
    displaces one that can. A request that was given a `Loaded` keeps it, whatever happens here meanwhile.

    Args:
        hub: where tasks come from.
        load: makes a pulled delta answer; refuses what does not fit the base.
        clock: monotonic seconds.
    """

    def __init__(
        self, hub: Hub, load: Load, settings: LibrarySettings | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings or LibrarySettings()
        self.watch = HubWatch(hub, clock)
        self.listing = Listing(self.watch, clock, self.settings.remember)
        self._clock = clock
        self._lock = threading.Lock()
        self._meanings = Meanings()
        self._shelf = Shelf(self.settings.budget)
        self._pinned: frozenset[str] = frozenset()
        self._kept: frozenset[str] = frozenset()
        self._hits = 0
        self._evictions = 0
        self._refreshed = clock()
        self._choose = random.Random()  # noqa: S311  (shares of traffic, not a secret)
        self._loader = Loader(
            self.listing, load, self._have, self._means, clock=clock, threads=self.settings.loaders,
            remember=self.settings.remember, most=self.settings.loading,
        )  # fmt: skip
        self.trouble = self._loader.trouble

    def get(self, name: str) -> Future[Loaded]:
        """The task version that ``name`` means; at once where it is loaded, else loaded once for all who ask.

        Raises (from the future):
            UsageError: no name of a task.
            NotFoundError: the hub has no such task, version or tag.
            BusyError: too much is being loaded.
            DeltahubError: it cannot be read, or does not fit the base.
        """
        shares = self.settings.splits.get(name)
        return self._by_share(name, shares) if shares else self._get(name)

    def has(self, name: str) -> bool:
        """Whether `get` would give it at once."""
        return all(part in self._meanings for part in self._parts(name))

    def refresh(self, names: Iterable[str] | None = None) -> list[str]:
        """Looks up every name in use again, and loads what is new; where nothing has changed, no record is read.

        Args:
            names: only these tasks and references, and those that failed lately too; None means all. Names that
                nobody has asked for during ten refreshes and a minute are forgotten, but not what they meant.

        Returns:
            Names that mean another version now.

        Raises:
            StoreError: the hub cannot be read; everything stays as it was.
        """
        only = None if names is None else set(names)
        self._loader.look_again(only)
        self.listing.forget()
        wanted = self._in_use(only)
        infos = self._look({_task(name) for name in wanted})
        changed = [name for name in wanted if self._renew(name, infos.get(_task(name)), at_once=only is not None)]
        self._refreshed = self._clock()
        self._load_kept()
        return changed

    def refresh_age(self) -> float:
        """Seconds since the names in use were last looked up."""
        return self._clock() - self._refreshed

    def configure(self, settings: LibrarySettings, kept: Iterable[str] = ()) -> None:
        """Applies ``settings`` from now on; a smaller budget is kept to at once.

        Args:
            kept: pinned besides what `pin` pinned; other threads load them, and failures are ``trouble``.
        """
        with self._lock:
            self.settings = settings
            self.listing.fresh = self._loader.remember = settings.remember
            self._loader.most = settings.loading
            self._shelf.budget = settings.budget
            self._kept = frozenset(kept)
            self._shrink()
        self._load_kept()

    def prefetch(self, names: Iterable[str], seconds: float) -> None:
        """Waits until ``names`` are loaded, but no longer than ``seconds``; what failed is ``trouble``."""
        end = time.monotonic() + seconds
        parts = list(dict.fromkeys(part for name in names for part in self._parts(name)))
        for start in range(0, len(parts), _WINDOW):
            loading = {part: self._get(part, telling=True) for part in parts[start : start + _WINDOW]}
            wait(loading.values(), max(0.0, end - time.monotonic()))
            late = [part for part, future in loading.items() if not future.done()]
            self.trouble.update({part: f"{part} was not loaded within {seconds:g} s" for part in late})

    def pin(self, name: str) -> Loaded:
        """Loads a task now, all its shares where it is split, and keeps it whatever the budget. Raises as `get`."""
        found = [self._get(part).result() for part in self._parts(name)]
        with self._lock:
            self._pinned |= {name}
        return found[0]

    def unpin(self, name: str) -> bool:
        """Whether it was pinned."""
        with self._lock:
            was = name in self._pinned | self._kept
            self._pinned -= {name}
            self._kept -= {name}
            self._shrink()
        return was

    @property
    def pinned(self) -> tuple[str, ...]:
        return tuple(sorted(self._pinned | self._kept))

    def evict(self, task: str | None = None) -> int:
        """Forgets a task's versions, or all that are not pinned; returns how many."""
        with self._lock:
            stay = self._staying()
            gone = [one.key for one in self._shelf if (task is None or one.task == task) and one.key not in stay]
            self._forget(gone)
            return len(gone)

    def loaded(self) -> list[Loaded]:
        """What is in memory, the latest used last."""
        with self._lock:
            return list(self._shelf)

    @property
    def counters(self) -> LibraryCounters:
        return LibraryCounters(self._hits, self._loader.loads, self._loader.failures, self._evictions)

    def close(self, *, wait: bool = True) -> None:
        """Takes no more names; with ``wait`` until loads that are under way have ended."""
        self._loader.close(wait=wait)

    def _parts(self, name: str) -> list[str]:
        """What ``name`` is split into, the largest share first."""
        shares = self.settings.splits.get(name, {})
        return [f"{name}@{number}" for number in sorted(shares, key=lambda number: -shares[number])] or [name]

    def _by_share(self, name: str, shares: Mapping[int, float]) -> Future[Loaded]:
        """One version by lot; where it cannot be had, one of the others."""
        with self._lock:
            number = self._choose.choices(list(shares), list(shares.values()))[0]
        part, others = f"{name}@{number}", {other: share for other, share in shares.items() if other != number}

        def other_version(error: DeltahubError) -> Future[Loaded]:
            self.trouble[part] = f"{error}; the other versions of {name} answer in its place"
            return self._by_share(name, others)

        return otherwise(self._get(part), other_version) if others else self._get(part)

    def _get(self, name: str, *, telling: bool = False) -> Future[Loaded]:
        """``telling`` makes a failure ``trouble``: nobody else would hear of it."""
        with self._lock:
            if (known := self._meanings.get(name)) is not None:
                known.used = self._clock()
                self._shelf.get(known.loaded.key)
                self._hits += 1
                return done(known.loaded)
        future = self._loader.start(name)
        if telling:
            future.add_done_callback(lambda ended: self._tell(name, ended))
        return future

    def _tell(self, name: str, ended: Future[Loaded]) -> None:
        if not ended.cancelled() and (error := ended.exception()) is not None:
            self.trouble[name] = str(error)

    def _load_kept(self) -> None:
        for name in self.pinned:
            for part in self._parts(name):
                if part not in self._meanings:
                    self._get(part, telling=True)

    def _have(self, key: Key) -> Loaded | None:
        with self._lock:
            return self._shelf.get(key)

    def _means(self, name: str, loaded: Loaded) -> None:
        with self._lock:
            self._shelf.put(loaded)
            self._meanings.put(name, Meaning(loaded, self._clock()))
            self._shrink(loaded.key)

    def _in_use(self, only: set[str] | None) -> list[str]:
        with self._lock:
            stale = self._clock() - max(10 * self.settings.refresh, _UNUSED)
            pinned = {part for name in self._pinned | self._kept for part in self._parts(name)}
            for name in self._meanings:
                meaning = self._meanings.get(name)
                if meaning is not None and meaning.used < stale and name not in pinned:
                    self._meanings.drop(name)
            return [name for name in self._meanings if only is None or name in only or _task(name) in only]

    def _look(self, tasks: set[str]) -> dict[str, TaskInfo]:
        if len(tasks) > _FEW:
            return self.listing.tasks()
        if not tasks:
            self.watch.check()
        return {task: info for task in tasks if (info := self.listing.task(task)) is not None}

    def _renew(self, name: str, info: TaskInfo | None, *, at_once: bool) -> bool:
        """Whether ``name`` means another version now; ``at_once`` tries what failed before, however lately."""
        now, wanted = self._clock(), target(name, info)
        if (meaning := self._meanings.get(name)) is None:
            return False
        if info is None or wanted is None:
            with self._lock:
                self._meanings.drop(name)
        elif not meaning.unchanged(name, info, now):
            return (at_once or meaning.due(wanted, now)) and self._reload(name, meaning, wanted)
        self.trouble.pop(name, None)
        return wanted is None

    def _reload(self, name: str, meaning: Meaning, wanted: object) -> bool:
        now, before = self._clock(), meaning.loaded
        try:
            found = self._loader.fetch(name)
        except DeltahubError as error:
            meaning.could_not(wanted, now, self.settings.refresh)
            self.trouble[name] = str(error)
            return False
        self.trouble.pop(name, None)
        with self._lock:
            if self._meanings.get(name) is not meaning:  # evicted meanwhile
                return False
            meaning.read(found, now)
            self._shelf.put(found)
            self._meanings.put(name, meaning)
            self._shrink(found.key)
        return found is not before

    def _staying(self) -> set[Key]:
        parts = {part for name in self._pinned | self._kept for part in self._parts(name)}
        return {meaning.loaded.key for part in parts if (meaning := self._meanings.get(part)) is not None}

    def _shrink(self, *used: Key) -> None:
        self._forget(self._shelf.over(self._staying() | set(used)))

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._evictions += self._shelf.drop(key)
            self._meanings.drop_version(key)


def _task(name: str) -> str:
    return name.partition("@")[0].partition(":")[0]

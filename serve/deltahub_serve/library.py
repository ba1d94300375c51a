"""From what a client calls a task to a model that can answer: the meanings of names, and the latest used in memory."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait

from deltahub import DeltahubError, Hub
from deltahub.hub import TaskInfo
from deltahub.names import task_of
from deltahub_serve.futures import done, follow
from deltahub_serve.listing import HubWatch, Listing
from deltahub_serve.loading import Load, Loader
from deltahub_serve.meanings import Meaning, Meanings, target
from deltahub_serve.settings import LibraryCounters, LibrarySettings
from deltahub_serve.shelf import Key, Loaded, Shelf

_WINDOW = 64
"""Tasks of a prefetch that are on their way at a time, so that requests find room beside them."""
_UNUSED = 60.0
"""Seconds at least for which a name that nobody asks for is looked up again and again."""


class Library:
    """Names to loaded tasks; safe for many threads.

    A name keeps its meaning until `refresh` has loaded what it means by then: a version that cannot be loaded never
    displaces one that can. A request that was given a `Loaded` keeps it, whatever happens here meanwhile.

    Args:
        hub: where tasks come from.
        load: makes a pulled delta answer; refuses what does not fit the base.
        clock: monotonic seconds.
        trial: asks a version before it takes another one's place; raises DeltahubError where it cannot answer.
    """

    def __init__(
        self, hub: Hub, load: Load, settings: LibrarySettings | None = None,
        clock: Callable[[], float] = time.monotonic, trial: Callable[[Loaded], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.settings = settings or LibrarySettings()
        self.watch = HubWatch(hub, clock)
        self.listing = Listing(self.watch, clock, self.settings.fresh)
        self._clock = clock
        self._trial = trial
        self._lock = threading.Lock()
        self._meanings = Meanings()
        self._shelf = Shelf(self.settings.budget)
        self._pinned: frozenset[str] = frozenset()
        self._kept: frozenset[str] = frozenset()
        self._prefetched: frozenset[str] = frozenset()
        self._hits = 0
        self._evictions = 0
        self._refreshed = clock()
        self._choose = random.Random()  # noqa: S311  (shares of traffic, not a secret)
        self._loader = Loader(
            self.listing, load, self._have, self._means, self.last, self._lost, clock=clock,
            threads=self.settings.loaders, remember=self.settings.remember, most=self.settings.loading,
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

    def last(self, name: str) -> Loaded | None:
        """What ``name`` meant when it was last looked up, for where it cannot be looked up now; counts as used."""
        with self._lock:
            return None if (known := self._meanings.get(name)) is None else self._use(known)

    def refresh(self, names: Iterable[str] | None = None) -> list[str]:
        """Looks up every name in use again, and loads what is new; where nothing has changed, no record is read.

        Args:
            names: only these tasks and references, and those that failed lately too; None means all. A name that
                nobody has asked for during ten refreshes and a minute is next looked up when somebody does.

        Returns:
            Names that mean another version now.

        Raises:
            StoreError: the hub cannot be read; everything stays as it was.
        """
        only = None if names is None else set(names)
        self._loader.look_again(only)
        self.listing.forget()
        wanted = self._in_use(only)
        infos = self.listing.some({task_of(name) for name in wanted})
        changed = [name for name in wanted if self._renew(name, infos.get(task_of(name)), at_once=only is not None)]
        if only is None:
            self._refreshed = self._clock()
        self._tidy()
        self._load_kept()
        return changed

    def refresh_age(self) -> float:
        """Seconds since all names in use were last looked up."""
        return self._clock() - self._refreshed

    def configure(self, settings: LibrarySettings, kept: Iterable[str] = ()) -> None:
        """Applies ``settings`` from now on; a smaller budget is kept to at once.

        Args:
            kept: pinned besides what `pin` pinned; other threads load them, and failures are ``trouble``.
        """
        with self._lock:
            self.settings = settings
            self.listing.fresh, self._loader.remember = settings.fresh, settings.remember
            self._loader.most = settings.loading
            self._shelf.budget = settings.budget
            self._kept = frozenset(kept)
            self._shrink()
        self._tidy()
        self._load_kept()

    def prefetch(self, names: Iterable[str], seconds: float) -> None:
        """Waits until ``names`` are loaded, but no longer than ``seconds``; what failed is ``trouble``."""
        end = time.monotonic() + seconds
        parts = list(dict.fromkeys(part for name in names for part in self.settings.parts(name)))
        self._prefetched |= set(parts)
        for start in range(0, len(parts), _WINDOW):
            loading = {part: self._get(part, telling=True) for part in parts[start : start + _WINDOW]}
            wait(loading.values(), max(0.0, end - time.monotonic()))
            late = [part for part, future in loading.items() if not future.done()]
            self.trouble.update({part: f"{part} was not loaded within {seconds:g} s" for part in late})

    def pin(self, name: str) -> Loaded:
        """Loads a task now, all its shares where it is split, and keeps it whatever the budget. Raises as `get`."""
        found = [self._get(part).result() for part in self.settings.parts(name)]
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
        self._tidy()
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

    def _parts_of(self, names: Iterable[str]) -> set[str]:
        return {part for name in names for part in self.settings.parts(name)}

    def _by_share(self, name: str, shares: Mapping[int, float]) -> Future[Loaded]:
        """One version by lot; where it cannot be had, one of the others."""
        with self._lock:
            number = self._choose.choices(list(shares), list(shares.values()))[0]
        part, others = f"{name}@{number}", {other: share for other, share in shares.items() if other != number}

        def other_version(error: DeltahubError) -> Future[Loaded]:
            self.trouble[part] = f"{error}; the other versions of {name} answer in its place"
            return self._by_share(name, others)

        return follow(self._get(part), other_version) if others else self._get(part)

    def _get(self, name: str, *, telling: bool = False) -> Future[Loaded]:
        """``telling`` makes a failure ``trouble``: nobody else would hear of it."""
        with self._lock:
            known = self._meanings.get(name)
            if known is not None and (not known.idle or self.watch.trouble() is not None):
                self._hits += 1
                return done(self._use(known))
        future = self._loader.start(name)
        if telling:
            future.add_done_callback(lambda ended: self._tell(name, ended))
        return future

    def _use(self, known: Meaning) -> Loaded:
        known.used, known.idle = self._clock(), False
        self._shelf.get(known.loaded.key)
        return known.loaded

    def _tell(self, name: str, ended: Future[Loaded]) -> None:
        if not ended.cancelled() and (error := ended.exception()) is not None:
            self.trouble[name] = str(error)

    def _load_kept(self) -> None:
        for part in self._parts_of(self.pinned):
            if (known := self._meanings.get(part)) is None or known.idle:
                self._get(part, telling=True)

    def _have(self, key: Key) -> Loaded | None:
        with self._lock:
            return self._shelf.get(key)

    def _means(self, name: str, loaded: Loaded) -> Loaded:
        with self._lock:
            kept = self._shelf.put(loaded)
            self._meanings.put(name, Meaning(kept, self._clock()))
            self._shrink(kept.key)
            return kept

    def _lost(self, name: str) -> None:
        with self._lock:
            self._meanings.drop(name)

    def _in_use(self, only: set[str] | None) -> list[str]:
        wanted = [name for name, known in self._meanings if not known.idle]
        return wanted if only is None else [name for name in wanted if name in only or task_of(name) in only]

    def _renew(self, name: str, info: TaskInfo | None, *, at_once: bool) -> bool:
        """Whether ``name`` means another version now; ``at_once`` tries what failed before, however lately."""
        now, wanted = self._clock(), target(name, info)
        if (meaning := self._meanings.get(name)) is None:
            return False
        unused = not at_once and meaning.used < now - max(10 * self.settings.refresh, _UNUSED)
        idle = unused and name not in self._parts_of(self.pinned)
        changed = info is not None and wanted is not None and not meaning.unchanged(name, info, now)
        if changed and not idle:
            return (at_once or meaning.due(wanted, now)) and self._reload(name, meaning, wanted)
        if changed or wanted is None:
            self._lost(name)
        meaning.idle = idle
        self.trouble.pop(name, None)
        return wanted is None

    def _reload(self, name: str, meaning: Meaning, wanted: object) -> bool:
        now, before = self._clock(), meaning.loaded
        try:
            found = self._loader.fetch(name)
            if found is not before:
                self._trial(found)
        except DeltahubError as error:
            meaning.could_not(wanted, now, self.settings.refresh)
            self.trouble[name] = str(error)
            return False
        self.trouble.pop(name, None)
        with self._lock:
            if self._meanings.get(name) is not meaning:  # evicted meanwhile
                return False
            meaning.read(self._shelf.put(found), now)
            self._meanings.put(name, meaning)
            self._shrink(meaning.loaded.key)
        return meaning.loaded is not before

    def _tidy(self) -> None:
        """Lets go of idle names that the hub has no more, and of the trouble of names that nobody needs any more."""
        needed = self._loader.under_way() | self._prefetched
        with self._lock:
            needed |= self._parts_of((*self.pinned, *self.settings.splits))
            for name, known in self._meanings:
                if known.idle and self.listing.absent(task_of(name)):
                    self._meanings.drop(name)
            for name in list(self.trouble):
                if name not in needed and name not in self._meanings:
                    self.trouble.pop(name, None)

    def _staying(self) -> set[Key]:
        found = map(self._meanings.get, self._parts_of(self.pinned))
        return {known.loaded.key for known in found if known is not None}

    def _shrink(self, *used: Key) -> None:
        self._forget(self._shelf.over(self._staying() | set(used)))

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._evictions += self._shelf.drop(key)
            self._meanings.drop_version(key)

"""From what a client calls a task to a model that can answer: names looked up, deltas loaded, the latest used kept."""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from deltahub import DeltahubError, Hub, TaskModel
from deltahub.errors import FormatError, IntegrityError, MismatchError, NotFoundError, StoreError
from deltahub_serve.futures import BusyError, done, failed, follow

_MOST_FAILED = 1000


Load = Callable[[Any], TaskModel]


@dataclass(frozen=True)
class Loaded:
    """A task version that can answer.

    Attributes:
        task, version: its name and number in the hub.
        model: ready for the engine.
        size: bytes that it takes in memory.
    """

    task: str
    version: int
    model: TaskModel = field(repr=False)
    size: int


@dataclass(frozen=True)
class LibrarySettings:
    """How much is kept, and how soon the hub is looked at again.

    Attributes:
        budget: bytes of loaded tasks; pinned ones and those in use come on top.
        refresh: seconds after which a name is looked up again.
        remember: seconds for which a failure is the answer, so that it is not tried for every request.
        loaders: tasks that are loaded at a time.
        loading: most names that wait to be loaded; who asks for another one is told to come back.
        splits: task to shares of its versions, ``{"sst2": {3: 0.9, 4: 0.1}}``, for requests that name no version.
    """

    budget: int = 1 << 30
    refresh: float = 10.0
    remember: float = 2.0
    loaders: int = 2
    loading: int = 256
    splits: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


@dataclass
class _Name:
    """What ``"task"``, ``"task@3"`` or ``"task:tag"`` meant when it was last looked up."""

    loaded: Loaded
    used: float


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
        self.hub = hub
        self.settings = settings or LibrarySettings()
        self.trouble: dict[str, str] = {}
        self._load = load
        self._clock = clock
        self._lock = threading.Lock()
        self._names: dict[str, _Name] = {}
        self._models: OrderedDict[tuple[str, int], Loaded] = OrderedDict()
        self._pinned: set[str] = set()
        self._pending: dict[str, Future[Loaded]] = {}
        self._failed: dict[str, tuple[float, DeltahubError]] = {}
        self._pool = ThreadPoolExecutor(self.settings.loaders, thread_name_prefix="deltahub-load")
        self._choose = random.Random()  # noqa: S311  (shares of traffic, not a secret)

    def get(self, name: str) -> Future[Loaded]:
        """The task version that ``name`` means; at once where it is loaded, else loaded once for all who ask.

        Raises (from the future):
            UsageError: no name of a task.
            NotFoundError: the hub has no such task, version or tag.
            DeltahubError: it cannot be read, or does not fit the base.
        """
        name = self._split(name)
        with self._lock:
            now = self._clock()
            if (known := self._names.get(name)) is not None:
                known.used = now
                self._touch(known.loaded)
                return done(known.loaded)
            if (failure := self._failed.get(name)) is not None:
                if now < failure[0]:
                    return failed(failure[1])
                del self._failed[name]
            if name not in self._pending:
                if len(self._pending) >= self.settings.loading:
                    return failed(
                        BusyError(f"{len(self._pending)} tasks are being looked up already", hint="try again")
                    )
                self._pending[name] = self._pool.submit(self._first, name)
            return follow(self._pending[name])

    def refresh(self, names: list[str] | None = None) -> list[str]:
        """Looks up every name in use again, and loads what is new.

        Args:
            names: only these; None means all. Those that nobody has asked for during ten refreshes are forgotten.

        Returns:
            Names that mean another version now.
        """
        with self._lock:
            stale = self._clock() - 10 * self.settings.refresh
            for name in [
                name for name, known in self._names.items() if known.used < stale and name not in self._pinned
            ]:
                del self._names[name]
            wanted = list(self._names) if names is None else [name for name in names if name in self._names]
            self._failed.clear()
        return [name for name in wanted if self._renew(name)]

    def pin(self, name: str) -> Loaded:
        """Loads a task now and keeps it whatever the budget. Raises as `get`."""
        found = self.get(name).result()
        with self._lock:
            self._pinned.add(name)
        return found

    def unpin(self, name: str) -> None:
        with self._lock:
            self._pinned.discard(name)
            self._shrink()

    def evict(self, task: str | None = None) -> int:
        """Forgets a task's versions, or all that are not pinned; returns how many."""
        with self._lock:
            gone = [key for key in self._models if (task is None or key[0] == task) and not self._is_pinned(key)]
            for key in gone:
                self._forget(key)
            return len(gone)

    def loaded(self) -> list[Loaded]:
        """What is in memory, the latest used last."""
        with self._lock:
            return list(self._models.values())

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _split(self, name: str) -> str:
        """Where a plain task name is split between versions, one of them by lot."""
        if not (shares := self.settings.splits.get(name)):
            return name
        with self._lock:
            number = self._choose.choices(list(shares), list(shares.values()))[0]
        return f"{name}@{number}"

    def _first(self, name: str) -> Loaded:
        try:
            found = self._fetch_or_older(name)
        except DeltahubError as error:
            with self._lock:
                self._failed[name] = (self._clock() + self.settings.remember, error)
                while len(self._failed) > _MOST_FAILED:
                    del self._failed[next(iter(self._failed))]
                del self._pending[name]
            raise
        except BaseException:
            with self._lock:
                del self._pending[name]
            raise
        with self._lock:
            self._names[name] = _Name(found, self._clock())
            del self._pending[name]
        return found

    def _renew(self, name: str) -> bool:
        before = self._names.get(name)
        try:
            found = self._fetch(name)
        except NotFoundError as error:
            if hub_trouble(self.hub):  # an empty place is no proof that somebody removed a task
                self.trouble[name] = str(error)
                return False
            with self._lock:
                self._names.pop(name, None)
            self.trouble.pop(name, None)
            return True
        except DeltahubError as error:
            self.trouble[name] = str(error)
            return False
        self.trouble.pop(name, None)
        with self._lock:
            if before is None or self._names.get(name) is not before:
                return False
            changed = found.version != before.loaded.version
            self._names[name] = _Name(found, before.used)
            return changed

    def _fetch_or_older(self, name: str) -> Loaded:
        """As `_fetch`; where a plain task name means a damaged version, the newest one that is whole."""
        try:
            return self._fetch(name)
        except (FormatError, IntegrityError, MismatchError) as error:
            if "@" in name or ":" in name:
                raise
            newest = next(info.newest for info in self.hub.tasks() if info.task == name)
            for number in range(newest - 1, 0, -1):
                try:
                    found = self._fetch(f"{name}@{number}")
                except DeltahubError:
                    continue
                self.trouble[name] = f"{error}; {name}@{number} answers in its place"
                return found
            raise

    def _fetch(self, name: str) -> Loaded:
        """What ``name`` means now, loaded."""
        record = self.hub.version(name)
        key = (record.task, record.number)
        with self._lock:
            if (found := self._models.get(key)) is not None:
                return found
        try:
            delta = self.hub.pull(record.reference)
            model = self._load(delta)
        except NotFoundError as error:  # the version is there, one of its parts is not
            raise IntegrityError(f"{record.reference} is not whole: {error}") from None
        except DeltahubError:
            raise
        except Exception as error:  # whatever torch or transformers make of it
            raise MismatchError(f"{record.reference} cannot be loaded ({str(error)[:160]})") from error
        size = sum(raw.data.nbytes * (2 if part.startswith("head.") else 1) for part, raw in delta.tensors.items())
        made = Loaded(record.task, record.number, model, size)
        with self._lock:
            self._models.setdefault(key, made)
            self._touch(made)
            self._shrink(keep=key)
            return self._models[key]

    def _touch(self, loaded: Loaded) -> None:
        key = (loaded.task, loaded.version)
        if key in self._models:
            self._models.move_to_end(key)

    def _shrink(self, keep: tuple[str, int] | None = None) -> None:
        over = sum(loaded.size for loaded in self._models.values()) - self.settings.budget
        for key in list(self._models):
            if over <= 0:
                return
            if key != keep and not self._is_pinned(key):
                over -= self._models[key].size
                self._forget(key)

    def _forget(self, key: tuple[str, int]) -> None:
        del self._models[key]
        for name in [name for name, known in self._names.items() if (known.loaded.task, known.loaded.version) == key]:
            del self._names[name]

    def _is_pinned(self, key: tuple[str, int]) -> bool:
        return any(
            name in self._pinned and (known.loaded.task, known.loaded.version) == key
            for name, known in self._names.items()
        )


def hub_trouble(hub: Hub) -> str | None:
    """Why the hub cannot be read now; None where it can."""
    try:
        there = hub.store.stat("hub.json") is not None
    except StoreError as error:
        return str(error)
    return None if there else f"there is no hub at {hub.store.url} any more"

"""From a name to a task in memory: once for all who ask at the same time, and not again at once where it failed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from deltahub import Delta, DeltahubError, TaskModel
from deltahub.errors import FormatError, IntegrityError, MismatchError, NotFoundError, UsageError
from deltahub.names import parse_reference, task_of
from deltahub_serve.futures import BusyError, alike, failed, follow
from deltahub_serve.listing import Listing, UnknownTask
from deltahub_serve.shelf import Key, Loaded

_MOST_FAILED = 1000
_MOST_NAME = 200
_OLDER = 10
"""Versions that are tried in place of a damaged newest one."""

Load = Callable[[Delta], TaskModel]


class Loader:
    """Loads names in threads of its own; safe for many threads.

    Args:
        listing: of the hub that tasks come from.
        load: makes a pulled delta answer; refuses what does not fit the base.
        have: the version of that key, where it is in memory.
        loaded: is told what a name was found to mean, and gives what is to be kept of it.
        last: what a name last meant, which answers on where that cannot be looked up.
        lost: is told that the hub has no such name.
        threads: tasks that are loaded at a time.
        remember: seconds for which a failure is the answer.
        most: names that may wait.

    Attributes:
        trouble: names that could not be loaded, and why.
        loads, failures: versions read from the hub, and those that could not be.
    """

    def __init__(
        self,
        listing: Listing,
        load: Load,
        have: Callable[[Key], Loaded | None],
        loaded: Callable[[str, Loaded], Loaded],
        last: Callable[[str], Loaded | None],
        lost: Callable[[str], None],
        *,
        clock: Callable[[], float],
        threads: int,
        remember: float,
        most: int,
    ) -> None:
        self.trouble: dict[str, str] = {}
        self.remember = remember
        self.most = most
        self.loads = 0
        self.failures = 0
        self._listing = listing
        self._hub = listing.watch.hub
        self._load = load
        self._have = have
        self._loaded = loaded
        self._last = last
        self._lost = lost
        self._clock = clock
        self._lock = threading.Lock()
        self._generation = 0
        self._pending: dict[str, Future[Loaded]] = {}
        self._failed: dict[str, tuple[float, DeltahubError]] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="deltahub-load")

    def start(self, name: str) -> Future[Loaded]:
        """What ``name`` means, loaded; a future of the caller's own. Its errors are those of `Library.get`."""
        try:
            task, _ = parse_reference(name[:_MOST_NAME])
        except UsageError as error:
            return failed(error)
        with self._lock:
            if (failure := self._failed.get(name)) is not None:
                if self._clock() < failure[0]:
                    return failed(failure[1])
                del self._failed[name]
            if name not in self._pending:
                if self._listing.absent(task) and not self._listing.searchable:
                    return failed(UnknownTask(task))
                if (waiting := len(self._pending)) >= self.most:
                    return failed(BusyError(f"{waiting} tasks are being looked up already", hint="try again"))
                try:
                    self._pending[name] = self._pool.submit(self._first, name)
                except RuntimeError:
                    return failed(BusyError("the server is shutting down"))
            return follow(self._pending[name])

    def fetch(self, name: str) -> Loaded:
        """The version that ``name`` means now, from memory or from the hub.

        Raises:
            NotFoundError: no such version or tag.
            DeltahubError: it cannot be read, or does not fit the base.
        """
        with self._listing.watch.look():
            record = self._hub.version(name)
        found = self._have((record.task, record.number))
        if found is not None and found.model.delta.digest == record.digest:
            return found
        try:
            with self._listing.watch.look():
                delta = self._hub.pull(record.reference)
            model = self._load(delta)
        except NotFoundError as error:  # the version is there, one of its parts is not
            self.failures += 1
            raise IntegrityError(f"{record.reference} is not whole: {error}") from None
        except UsageError as error:  # nobody named it wrongly: it is of a kind that has no answers
            self.failures += 1
            raise MismatchError(f"{record.reference} cannot be served: {error}") from None
        except DeltahubError:
            self.failures += 1
            raise
        except Exception as error:  # whatever torch or transformers make of it
            self.failures += 1
            raise MismatchError(f"{record.reference} cannot be loaded ({str(error)[:160]})") from error
        self.loads += 1
        return Loaded(record.task, record.number, model, model.nbytes)

    def look_again(self, names: set[str] | None) -> None:
        """What failed lately is tried again when somebody asks, None means all; what is on its way is read anew."""
        with self._lock:
            self._generation += 1
            for name in list(self._failed):
                if names is None or name in names or task_of(name) in names:
                    del self._failed[name]

    def under_way(self) -> set[str]:
        """Names that are being looked up now."""
        with self._lock:
            return set(self._pending)

    def close(self, *, wait: bool) -> None:
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _first(self, name: str) -> Loaded:
        try:
            return self._find(name)
        except DeltahubError as error:
            failure = alike(error)
            self._remember(name, error)
        finally:
            with self._lock:
                del self._pending[name]
        raise failure

    def _find(self, name: str) -> Loaded:
        while True:
            generation = self._generation
            try:
                found = self._loaded(name, self._fetch_or_older(name))
            except NotFoundError:
                self._lost(name)
                raise
            except DeltahubError as error:
                if (before := self._last(name)) is None:
                    raise
                self.trouble[name] = str(error)
                return before
            if generation == self._generation:  # else it may have been read before what a refresh was asked for
                return found

    def _remember(self, name: str, error: DeltahubError) -> None:
        with self._lock:
            now = self._clock()
            until = now + self.remember
            if isinstance(error, UnknownTask) and self._listing.absent(task_of(name)):
                until = self._listing.absent_until(task_of(name))  # it was listed some time ago
            self._failed = {other: failure for other, failure in self._failed.items() if now < failure[0]}
            self._failed[name] = (until, alike(error))
            while len(self._failed) > _MOST_FAILED:
                del self._failed[next(iter(self._failed))]

    def _fetch_or_older(self, name: str) -> Loaded:
        """As `fetch`; where a plain task name means a damaged version, the newest one that is whole."""
        task, which = parse_reference(name)
        info = None if self._listing.absent(task) else self._listing.task(task)
        if info is None:
            raise UnknownTask(task, self._listing.near(task))
        try:
            found = self.fetch(name)
        except (FormatError, IntegrityError, MismatchError) as error:
            for number in info.numbers[-2 : -2 - _OLDER : -1] if which is None else ():
                try:
                    found = self.fetch(f"{name}@{number}")
                except DeltahubError:
                    continue
                self.trouble[name] = f"{error}; {name}@{number} answers in its place"
                return found
            raise
        self.trouble.pop(name, None)
        return found

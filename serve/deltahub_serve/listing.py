"""What the hub has, as last listed, and whether it can be read: neither costs a look at the hub for every request."""

from __future__ import annotations

import difflib
import math
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from deltahub import Hub
from deltahub.errors import NotFoundError, StoreError
from deltahub.hub import TaskInfo

_FEW = 100
"""Tasks that are rather looked up one by one than by a listing of the whole hub."""
_SLOW = 10.0
"""Seconds after which a look that has not ended is said to be in trouble."""
_SHARE = 10.0
"""What is done for names that nobody knows takes at most one part in so many of the time."""


class UnknownTask(NotFoundError):
    """The hub has no such task; ``near`` are names like it."""

    def __init__(self, task: str, near: tuple[str, ...] = ()) -> None:
        super().__init__(f"there is no task {task}", hint=f"did you mean {', '.join(near)}?" if near else None)
        self.near = near


class HubWatch:
    """Whether the hub can be read, from what came of the latest looks at it.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, hub: Hub, clock: Callable[[], float]) -> None:
        self.hub = hub
        self._clock = clock
        self._looks: dict[object, float] = {}
        self._trouble: str | None = None

    @contextmanager
    def look(self) -> Iterator[None]:
        """Around whatever reads the hub."""
        this = object()
        self._looks[this] = self._clock()
        try:
            yield
            self._trouble = None
        except StoreError as error:
            self._trouble = str(error)
            raise
        finally:
            del self._looks[this]

    def check(self) -> None:
        """Raises StoreError where there is no hub any more: an empty place is no proof that a task was removed."""
        with self.look():
            if self.hub.store.stat("hub.json") is None:
                raise StoreError(f"there is no hub at {self.hub.store.url} any more")

    def trouble(self) -> str | None:
        """Why the hub cannot be read; None where it could at the latest look. Does not look itself."""
        waited = self._clock() - min(list(self._looks.values()), default=self._clock())
        return self._trouble or (f"the hub has not answered for {waited:.0f} s" if waited > _SLOW else None)


class Listing:
    """The tasks of a hub, remembered; safe for many threads.

    Args:
        fresh: seconds for which a listing may say that there is no such task.
    """

    def __init__(self, watch: HubWatch, clock: Callable[[], float], fresh: float) -> None:
        self.fresh = fresh
        self.watch = watch
        self._clock = clock
        self._lock = threading.Lock()
        self._searching = threading.Lock()
        self._found: dict[str, TaskInfo] = {}
        self._taken: float | None = None
        self._cost = 0.0
        self._search_again = 0.0

    @property
    def known(self) -> dict[str, TaskInfo]:
        """As last listed; not to be changed."""
        return self._found

    def tasks(self, age: float = 0.0) -> dict[str, TaskInfo]:
        """Every task by name, listed now unless that was done less than ``age`` seconds ago.

        Raises:
            StoreError: the hub cannot be read.
        """
        asked = self._clock()
        with self._lock:  # whoever waited here is served by the listing that began after they asked
            if self._taken is not None and (asked - self._taken < age or self._taken > asked):
                return self._found
            start = self._clock()
            with self.watch.look():
                found = {info.task: info for info in self.watch.hub.tasks()}
            if not found:
                self.watch.check()
            self._found, self._taken, self._cost = found, start, self._clock() - start
            return found

    def some(self, names: Collection[str]) -> dict[str, TaskInfo]:
        """At least those of ``names`` that there are, looked up now. Raises as `tasks`."""
        if len(names) > _FEW:
            return self.tasks()
        if not names:
            self.watch.check()
        return {name: info for name in names if (info := self.task(name)) is not None}

    def task(self, name: str) -> TaskInfo | None:
        """One task, looked up now; None where there is no such task. Raises as `tasks`."""
        with self.watch.look():
            found = self.watch.hub.task(name)
        if found is None:
            self.watch.check()
        return found

    def forget(self) -> None:
        """What is asked next is listed anew; waits for a listing that is under way, which may be too old."""
        with self._lock:
            self._taken = None

    def absent(self, task: str) -> bool:
        """Whether a listing that is young enough lacks ``task``; False where nobody knows."""
        return self._clock() < self.absent_until(task)

    def absent_until(self, task: str) -> float:
        """Clock time until which `absent` is true; it has passed where nobody knows."""
        taken = self._taken
        return -math.inf if taken is None or task in self._found else taken + self.fresh

    @property
    def searchable(self) -> bool:
        """Whether `near` would search now."""
        return self._clock() >= self._search_again and not self._searching.locked()

    def near(self, task: str) -> tuple[str, ...]:
        """Names like ``task``; nothing where that was sought too much lately, since anybody can ask for any name."""
        if not self.searchable or not self._searching.acquire(blocking=False):
            return ()
        try:
            start = self._clock()
            age = max(self.fresh, _SHARE * self._cost)
            found = difflib.get_close_matches(task, list(self.tasks(age)), 3, 0.5)
            self._search_again = start + (1 + _SHARE) * (self._clock() - start)
            return tuple(found)
        except StoreError:
            return ()
        finally:
            self._searching.release()

"""Which requests go into the next forward pass: one queue per task, batches that form while the device works.

Plain Python without threads, clocks or models of its own: `Scheduler.next_batch` is asked whenever the device is free.
The choice of the queue that goes first, in this order:

1. the queue whose oldest request has waited longest, once it has waited ``patience`` or longer: so no task can be kept
   waiting by the others for more than ``patience`` and the passes of those that waited longer still;
2. else the queue with most tokens to do, up to a full batch, since a fuller pass costs less per request; of equals the
   one whose values are in place, for it needs no swap; then the one that has waited longest.

Within a queue the oldest request always goes first, and others join it by how close they are in length, as long as the
padded batch stays within ``batch_tokens``: rows times the longest row is what a pass costs.

Requests of other tasks may join in the same way where all of them can be mixed, and whoever owns the scheduler says
that one mixed pass is cheaper for these requests than a pass for each task.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

Key = TypeVar("Key", bound=Hashable)
Mixing = Literal["auto", "always", "never"]
_SOONEST, _LATEST = 1.0, 30.0
"""Seconds after which whoever was turned away may come back, at least and at most."""


@dataclass(frozen=True)
class Limits:
    """How much may wait, and how much goes into a pass.

    Attributes:
        batch_rows: most requests in a pass.
        batch_tokens: most tokens in a pass, padding included; a single longer request still goes alone.
        patience: seconds that a request may wait before its queue goes first.
        queued: most requests that wait in all.
        queued_per_task: most requests of one task that wait, all its versions together.
        mixing: whether tasks share passes: ``"auto"`` where that is cheaper, ``"always"`` where they can, ``"never"``.
    """

    batch_rows: int = 32
    batch_tokens: int = 4096
    patience: float = 0.05
    queued: int = 4096
    queued_per_task: int = 2048
    mixing: Mixing = "auto"


class Overloaded(Exception):
    """Too many requests wait.

    Attributes:
        limit: the number that may.
        retry_after: seconds after which there may be room, by the latest passes.
    """

    def __init__(self, what: str, limit: int, retry_after: float) -> None:
        super().__init__(f"no more than {limit} requests may wait {what}")
        self.limit = limit
        self.retry_after = retry_after


@dataclass(eq=False)
class Request(Generic[Key]):
    """A request in a queue.

    Attributes:
        key: the task version that must answer it.
        task: the task that its limit counts for.
        tokens: its length.
        payload: whatever the engine needs, which may drop it; never looked at here.
        deadline: clock time after which nobody wants the answer.
        mixable: whether it can share a pass with requests of other tasks that can.
        arrived: clock time, set by `Scheduler.submit`.
    """

    key: Key
    task: str
    tokens: int
    payload: Any = None
    deadline: float = math.inf
    mixable: bool = False
    arrived: float = field(default=0.0, init=False)
    waiting: bool = field(default=False, init=False)


@dataclass(frozen=True)
class Batch(Generic[Key]):
    """Requests for one pass; ``expired`` ones, of any task, are to be refused.

    ``key`` is the task version of the first request, for which the pass was chosen; others are of other ones only if
    all can be mixed.
    """

    key: Key | None
    requests: tuple[Request[Key], ...]
    expired: tuple[Request[Key], ...] = ()


class Scheduler(Generic[Key]):
    """Queues and the choice among them. Not safe for concurrent use: its owner holds a lock.

    Args:
        clock: monotonic seconds.

    Attributes:
        cheaper: with mixing ``"auto"``, whether one mixed pass of these requests is cheaper than a pass for each task,
            by the task version whose values are in place; None where nobody knows.
        mixes: False where tasks cannot share passes after all.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.mixes = True
        self.cheaper: Callable[[Sequence[Request[Key]], Key | None], bool] | None = None
        self._clock = clock
        self._queues: dict[Key, list[Request[Key]]] = {}
        self._tokens: dict[Key, int] = {}
        self._per_task: dict[str, int] = {}
        self._deadlines: list[tuple[float, int, Request[Key]]] = []
        self._count = 0
        self._number = 0
        self._seconds_per_request = 0.0

    def __len__(self) -> int:
        return self._count

    def waiting(self, task: str) -> int:
        """Requests of ``task`` that wait."""
        return self._per_task.get(task, 0)

    def submit(self, *requests: Request[Key]) -> None:
        """Puts requests of one task into their queues, all or none.

        Raises:
            Overloaded: there is no room for all of them.
        """
        if requests:
            self._check_room(requests[0].task, len(requests))
        for request in requests:
            self._put(request)

    def cancel(self, *requests: Request[Key]) -> bool:
        """Takes requests out of their queues; False where one is on its way or answered already."""
        gone: dict[Key, set[int]] = {}
        for request in requests:
            if request.waiting:
                gone.setdefault(request.key, set()).add(id(request))
        for key, numbers in gone.items():
            self._remove(key, numbers)
        return sum(map(len, gone.values())) == len(requests)

    def next_batch(self, resident: Key | None = None) -> Batch[Key]:
        """The next pass; ``key`` is None where nothing waits.

        Args:
            resident: the task version whose values are in place.
        """
        expired = self._expire()
        if not self._queues:
            return Batch(None, (), expired)
        key = self._choose(resident)
        first, *others = self._queues[key][: 4 * self.limits.batch_rows]
        chosen = self._mixed(first, resident) or self._fill(first, others)
        gone: dict[Key, set[int]] = {}
        for request in chosen:
            gone.setdefault(request.key, set()).add(id(request))
        for of, numbers in gone.items():
            self._remove(of, numbers)
        return Batch(key, tuple(chosen), expired)

    def took(self, requests: int, seconds: float) -> None:
        """Tells how long a pass took, for the advice to those who are turned away."""
        each = seconds / max(requests, 1)
        self._seconds_per_request = (
            each if not self._seconds_per_request else 0.9 * self._seconds_per_request + 0.1 * each
        )

    def drain(self, requests: int) -> float:
        """Seconds, 1 to 30, after which so many requests may be done, by the latest passes."""
        return min(max(requests * self._seconds_per_request, _SOONEST), _LATEST)

    def _check_room(self, task: str, requests: int) -> None:
        limits = self.limits
        if self._count + requests > limits.queued:
            raise Overloaded("in all", limits.queued, self.drain(self._count))
        if self.waiting(task) + requests > limits.queued_per_task:
            raise Overloaded(f"for {task}", limits.queued_per_task, self.drain(self.waiting(task)))

    def _put(self, request: Request[Key]) -> None:
        request.arrived = self._clock()
        request.waiting = True
        self._queues.setdefault(request.key, []).append(request)
        self._tokens[request.key] = self._tokens.get(request.key, 0) + request.tokens
        self._per_task[request.task] = self.waiting(request.task) + 1
        self._count += 1
        if request.deadline < math.inf:
            self._number += 1
            heapq.heappush(self._deadlines, (request.deadline, self._number, request))
            if len(self._deadlines) > 64 + 2 * self._count:  # most are answered: let go of what they hold
                self._deadlines = [entry for entry in self._deadlines if entry[2].waiting]
                heapq.heapify(self._deadlines)

    def _choose(self, resident: Key | None) -> Key:
        oldest = min(self._queues, key=lambda key: self._queues[key][0].arrived)
        if self._clock() - self._queues[oldest][0].arrived >= self.limits.patience:
            return oldest

        def merit(key: Key) -> tuple[int, bool, float]:
            return min(self._tokens[key], self.limits.batch_tokens), key == resident, -self._queues[key][0].arrived

        return max(self._queues, key=merit)

    def _mixed(self, first: Request[Key], resident: Key | None) -> list[Request[Key]]:
        """``first`` with requests of any task, where that is wanted; else none."""
        limits = self.limits
        if limits.mixing == "never" or not self.mixes or not first.mixable or len(self._queues) == 1:
            return []
        if limits.mixing == "auto" and self.cheaper is None:
            return []
        waiting = [
            request
            for queue in self._queues.values()
            for request in queue[: limits.batch_rows]
            if request.mixable and request is not first
        ]
        oldest = heapq.nsmallest(4 * limits.batch_rows, waiting, key=lambda request: request.arrived)
        chosen = self._fill(first, oldest)
        if all(request.key == first.key for request in chosen):
            return []
        wanted = limits.mixing == "always" or (self.cheaper is not None and self.cheaper(chosen, resident))
        return chosen if wanted else []

    def _fill(self, first: Request[Key], window: Sequence[Request[Key]]) -> list[Request[Key]]:
        """``first`` and those of ``window``, the oldest first, that suit it."""
        limits, chosen, longest = self.limits, [first], first.tokens
        for request in sorted(window, key=lambda other: abs(other.tokens - first.tokens)):  # stable: the older first
            if len(chosen) == limits.batch_rows:
                break
            width = max(longest, request.tokens)
            if (len(chosen) + 1) * width <= limits.batch_tokens:
                chosen.append(request)
                longest = width
        return chosen

    def _expire(self) -> tuple[Request[Key], ...]:
        now = self._clock()
        found = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if request.waiting:
                self._remove(request.key, {id(request)})
                found.append(request)
        return tuple(found)

    def _remove(self, key: Key, gone: set[int]) -> None:
        kept = []
        for request in self._queues[key]:
            if id(request) not in gone:
                kept.append(request)
                continue
            request.waiting = False
            self._tokens[key] -= request.tokens
            self._count -= 1
            self._per_task[request.task] -= 1
            if not self._per_task[request.task]:
                del self._per_task[request.task]
        if kept:
            self._queues[key] = kept
        else:
            del self._queues[key], self._tokens[key]

"""The one thread that owns the model: takes batches from the scheduler, swaps, runs, checks whose answers they are."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from deltahub import DeltahubError, Resident, TaskModel
from deltahub_serve.passes import Answered, Counters, Pass
from deltahub_serve.scheduler import Batch, Limits, Request, Scheduler

Key = tuple[str, int | None, str]
"""Task, version and digest."""
_MOST_FAILED = 8
"""Passes that fail in turn, in whatever tasks, until the device rather than a task is taken for broken."""


class Expired(Exception):
    """The deadline passed while the request was waiting."""


class Closed(Exception):
    """The engine takes no more requests."""


@dataclass(frozen=True)
class _Work:
    model: TaskModel
    encoded: Any
    future: Waiting


class Waiting(Future[Answered]):
    """The future of one request; `Engine.cancel` cancels it."""

    request: Request[Key]


class Engine:
    """Runs requests of many tasks on one resident.

    ``submit`` may be called from any thread. Nothing else may touch the resident's module while the engine is open.

    Args:
        resident: owned from now on.
        limits: see `scheduler.Limits`.
        clock: monotonic seconds.
        threads: that torch uses for a pass; None leaves it to torch.
        observe: told about every pass before its answers are given, in the engine's thread; must be quick.
    """

    def __init__(
        self,
        resident: Resident,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        threads: int | None = None,
        observe: Callable[[Pass], None] | None = None,
    ) -> None:
        self.resident = resident
        self.counters = Counters()
        self._threads = threads
        self._observe = observe
        self._clock = clock
        self._condition = threading.Condition()
        self._scheduler: Scheduler[Key] = Scheduler(limits or Limits(), clock)
        self._closing = False
        self._busy_since: float | None = None
        self._broken: str | None = None
        self._failing = 0
        self._failed_by = ""
        self._key: Key | None = None
        self._thread = threading.Thread(target=self._loop, name="deltahub-engine", daemon=True)
        self._thread.start()

    def submit(
        self, model: TaskModel, version: int | None, encoded: Sequence[Any], *, deadline: float | None = None
    ) -> list[Waiting]:
        """One future for each of ``encoded``.

        Args:
            model: the task that answers; the engine keeps it until the answer is there.
            version: its number in a hub.
            encoded: what ``model.prepare`` gave.
            deadline: clock time after which `Expired` is the answer.

        Raises:
            Overloaded: there is no room for all of them; none is taken.
            Closed: the engine is closing.
        """
        delta = model.delta
        key, latest = (delta.task, version, delta.digest), math.inf if deadline is None else deadline
        requests, futures = [], []
        for item in encoded:
            future = Waiting()
            work = _Work(model, item, future)
            future.request = Request(key, delta.task, len(item.tokens["input_ids"]), work, latest)
            requests.append(future.request)
            futures.append(future)
        with self._condition:
            if self._closing or self._broken:
                raise Closed(self._broken or "the server is shutting down")
            self._scheduler.submit(*requests)
            self._condition.notify()
        return futures

    def cancel(self, futures: Sequence[Waiting]) -> None:
        """Takes all that still wait out of their queues at once."""
        with self._condition:
            waiting = [future.request for future in futures if future.request.waiting]
            self._scheduler.cancel(*waiting)
        for request in waiting:
            request.payload = None
        for future in futures:
            future.cancel()

    def set_limits(self, limits: Limits) -> None:
        """Applies from the next request on."""
        with self._condition:
            self._scheduler.limits = limits

    def close(self, *, drain: bool = True, timeout: float | None = None) -> bool:
        """Takes no more requests; with ``drain`` answers those that wait. False where it did not end in ``timeout``."""
        with self._condition:
            self._closing = True
            if not drain:
                while (batch := self._scheduler.next_batch()).requests or batch.expired:
                    for request in (*batch.requests, *batch.expired):
                        _fail(request, Closed("the server is shutting down"))
            self._condition.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests in all queues."""
        return len(self._scheduler)

    def drain(self, requests: int) -> float:
        """Seconds after which so many requests may be done; see `Scheduler.drain`."""
        return self._scheduler.drain(requests)

    @property
    def key(self) -> Key | None:
        """Whose values are in place, as of the last pass."""
        return self._key

    def trouble(self, stuck_after: float) -> str | None:
        """Why the engine cannot answer any more.

        It is broken, or dead, or one pass takes longer than ``stuck_after`` seconds, or one pass after the other fails.
        """
        if self._broken:
            return self._broken
        if not self._thread.is_alive() and not self._closing:
            return "the model's thread has ended"
        since = self._busy_since
        if since is not None and self._clock() - since > stuck_after:
            return f"one pass has taken more than {stuck_after:g} s"
        if self._failing >= _MOST_FAILED:
            return f"{self._failing} passes in turn have failed, the latest with: {self._failed_by}"
        return None

    def _loop(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)  # counts for the thread that calls it
        while True:
            with self._condition:
                self._busy_since = None
                batch = self._scheduler.next_batch(self._key)
                while batch.key is None and not batch.expired:
                    if self._closing:
                        return
                    self._condition.wait()
                    batch = self._scheduler.next_batch(self._key)
                self._busy_since = self._clock()
            for request in batch.expired:
                self.counters.expired += 1
                _fail(request, Expired("the deadline passed while the request was waiting"))
            if batch.key is not None and not self._run(batch):
                return
            del batch  # it would keep a task in memory while nothing waits

    def _run(self, batch: Batch[Key]) -> bool:
        """One pass; False where the resident can never be used again."""
        wanted = [request for request in batch.requests if _begun(request)]
        if not wanted:
            return True
        assert batch.key is not None
        try:
            self._answer(batch.key, wanted)
        except Exception as error:  # noqa: BLE001  (torch may fail in any way; the thread must live on)
            if not isinstance(error, DeltahubError):  # those are told on purpose, of one task
                self._failing += 1
                self._failed_by = " ".join(str(error).split())[:200]
            return self._failed(batch.key, wanted, error)
        return True

    def _failed(self, key: Key, wanted: list[Request[Key]], error: Exception) -> bool:
        try:
            stamp = self.resident.stamp  # refuses where a write failed half-way
        except DeltahubError as poison:
            self._broken = str(poison)
            with self._condition:
                left = self._scheduler.next_batch()
                while left.requests or left.expired:
                    wanted += [*left.requests, *left.expired]
                    left = self._scheduler.next_batch()
            for request in wanted:
                _fail(request, Closed(self._broken))
            return False
        self._key = None
        self.counters.failures += 1
        in_place = stamp is not None and (stamp.task, stamp.version, stamp.digest) == key
        if len(wanted) == 1 or not in_place:  # a swap that failed would fail for each row alike
            for request in wanted:
                _fail(request, error)
            return True
        usable = True
        for request in wanted:  # one by one: a row must not spoil the others' answers
            usable = self._retry(key, request)
        return usable

    def _retry(self, key: Key, request: Request[Key]) -> bool:
        try:
            self._answer(key, [request])
        except Exception as error:  # noqa: BLE001  (as for the whole batch)
            return self._failed(key, [request], error)
        return True

    def _answer(self, key: Key, wanted: list[Request[Key]]) -> None:
        start = self._clock()
        model: TaskModel = wanted[0].payload.model
        stamp = self.resident.stamp
        swapped = 0.0
        if stamp is None or (stamp.task, stamp.version, stamp.digest) != key:
            stamp = self.resident.swap(model.prepared, key[1])
            swapped = self._clock() - start
            self.counters.swaps += 1
        found = model.run([request.payload.encoded for request in wanted])
        ran = self._clock() - start - swapped
        self._key = (stamp.task, stamp.version, stamp.digest)
        assert self._key == key
        with self._condition:
            self._scheduler.took(len(wanted), ran + swapped)
        self._count(key[0], wanted, start, swapped, ran)
        self._failing = 0
        for request, answer in zip(wanted, found, strict=True):
            queued = start - request.arrived
            _taken(request).set_result(Answered(answer, *key, queued, swapped, ran, len(wanted)))

    def _count(self, task: str, wanted: list[Request[Key]], start: float, swapped: float, ran: float) -> None:
        queued, tokens = [start - request.arrived for request in wanted], [request.tokens for request in wanted]
        counters = self.counters
        counters.requests += len(wanted)
        counters.passes += 1
        counters.swap_seconds += swapped
        counters.run_seconds += ran
        counters.queue_seconds += sum(queued)
        if self._observe is not None:
            self._observe(Pass(task, sum(tokens), len(tokens) * max(tokens), tuple(queued), swapped, ran))


def _taken(request: Request[Key]) -> Waiting:
    """The future, for its answer; the request lets go of its task, which queues and futures would keep in memory."""
    future: Waiting = request.payload.future
    request.payload = None
    return future


def _begun(request: Request[Key]) -> bool:
    """Whether somebody still wants it, who cannot cancel it any more."""
    if request.payload.future.set_running_or_notify_cancel():
        return True
    request.payload = None
    return False


def _fail(request: Request[Key], error: Exception) -> None:
    future = _taken(request)
    if future.running() or future.set_running_or_notify_cancel():
        future.set_exception(error)

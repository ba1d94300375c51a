"""The one thread that owns the model: takes batches from the scheduler, and has the runner answer them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from deltahub import DeltahubError, Mixer, Resident, TaskModel
from deltahub_serve.passes import Answered, Counters, Pass
from deltahub_serve.runner import Key, Ran, Runner, key_of
from deltahub_serve.scheduler import Batch, Limits, Request, Scheduler
from deltahub_serve.sharing import Sharing
from deltahub_serve.waiting import Waiting, Work, begun, fail, taken

_MOST_FAILED = 8
"""Passes that fail in turn, in whatever tasks, until the device rather than a task is taken for broken."""


class Expired(Exception):
    """The deadline passed while the request was waiting."""


class Closed(Exception):
    """The engine takes no more requests."""


class Engine:
    """Runs requests of many tasks on one resident.

    ``submit`` may be called from any thread. Nothing else may touch the resident's module while the engine is open.

    Args:
        resident: owned from now on.
        limits: see `scheduler.Limits`.
        clock: monotonic seconds.
        threads: that torch uses for a pass; None leaves it to torch.
        observe: told about every pass before its answers are given, in the engine's thread; must be quick.
        mixer: on the resident, so that tasks can share passes; what these cost is measured before this returns.
        tokenizer: of the base, for that.
        unmixed: why there is no mixer.
    """

    def __init__(
        self,
        resident: Resident,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        threads: int | None = None,
        observe: Callable[[Pass], None] | None = None,
        mixer: Mixer | None = None,
        tokenizer: Any = None,
        unmixed: str = "there is no mixer",
    ) -> None:
        self.resident = resident
        self.counters = Counters()
        self._runner = Runner(resident, mixer, clock)
        self._tokenizer = tokenizer
        self._ready = threading.Event()
        self._threads = threads
        self._observe = observe
        self._clock = clock
        self._condition = threading.Condition()
        self._scheduler: Scheduler[Key] = Scheduler(limits or Limits(), clock)
        self._sharing = Sharing(self._runner, self._scheduler, unmixed)
        self._closing = False
        self._busy_since: float | None = None
        self._broken: str | None = None
        self._failing = 0
        self._failed_by = ""
        self._key: Key | None = None
        self._thread = threading.Thread(target=self._loop, name="deltahub-engine", daemon=True)
        self._thread.start()
        self._ready.wait()
        if not self._thread.is_alive():
            raise RuntimeError("the model's thread has ended at its start")

    def admit(self, model: TaskModel) -> int:
        """Makes a task ready to share passes, where that is wanted; bytes that are kept for it beside its own."""
        if self._scheduler.limits.mixing == "never":
            return 0
        return self._runner.admit((model.delta.task, None, model.delta.digest), model)

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
            row = self._runner.row(key, model, item, mixing=self._scheduler.limits.mixing != "never")
            tokens, mixable = len(item.tokens["input_ids"]), row.mixable is not None
            future.request = Request(key, delta.task, tokens, Work(row, future), latest, mixable)
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
                        fail(request, Closed("the server is shutting down"))
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

    @property
    def mixing(self) -> dict[str, Any]:
        """Whether tasks share passes, and what that costs; see `sharing.Sharing.told`."""
        return self._sharing.told()

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
        try:
            if self._threads is not None:
                torch.set_num_threads(self._threads)  # counts for the thread that calls it
            self._sharing.measure(self._tokenizer)
        finally:
            self._ready.set()
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
                fail(request, Expired("the deadline passed while the request was waiting"))
            if batch.key is not None and not self._run(batch):
                return
            del batch  # it would keep a task in memory while nothing waits

    def _run(self, batch: Batch[Key]) -> bool:
        """One pass; False where the resident can never be used again."""
        wanted = [request for request in batch.requests if begun(request)]
        if not wanted:
            return True
        try:
            self._answer(wanted)
        except Exception as error:  # noqa: BLE001  (torch may fail in any way; the thread must live on)
            if not isinstance(error, DeltahubError):  # those are told on purpose, of one task
                self._failing += 1
                self._failed_by = " ".join(str(error).split())[:200]
            return self._failed(wanted, error)
        return True

    def _failed(self, wanted: list[Request[Key]], error: Exception) -> bool:
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
                fail(request, Closed(self._broken))
            return False
        self._key = None
        self.counters.failures += 1
        tasks: dict[Key, list[Request[Key]]] = {}
        for request in wanted:
            tasks.setdefault(request.key, []).append(request)
        if len(tasks) > 1:
            return self._apart(list(tasks.values()), error)
        if len(wanted) == 1 or key_of(stamp) not in tasks:  # a swap that failed would fail for each row alike
            for request in wanted:
                fail(request, error)
            return True
        retried = [self._retry([request]) for request in wanted]  # a row must not spoil the others' answers
        return all(retried)

    def _apart(self, tasks: list[list[Request[Key]]], error: Exception) -> bool:
        """After a mixed pass that failed: the tasks one by one."""
        before = self.counters.failures
        retried = [self._retry(requests) for requests in tasks]
        self._sharing.failed(error, by_a_task=self.counters.failures > before)
        return all(retried)

    def _retry(self, requests: list[Request[Key]]) -> bool:
        row = requests[0].payload.row
        try:
            self._answer(requests)
        except Exception as error:  # noqa: BLE001  (as for the whole batch)
            self._runner.keep_alone(row, str(error))  # else it would fail every pass that it shares
            return self._failed(requests, error)
        return True

    def _answer(self, wanted: list[Request[Key]]) -> None:
        start = self._clock()
        done = self._runner.run([request.payload.row for request in wanted])
        self._key = key_of(self.resident.stamp)
        with self._condition:
            self._scheduler.took(len(wanted), done.ran + done.swapped)
        self._count(wanted, start, done)
        self._failing = 0
        for request, answer in zip(wanted, done.answers, strict=True):
            queued = start - request.arrived
            answered = Answered(answer, *request.key, queued, done.swapped, done.ran, len(wanted), done.tasks)
            taken(request).set_result(answered)

    def _count(self, wanted: list[Request[Key]], start: float, done: Ran) -> None:
        rows = tuple((request.task, request.tokens, start - request.arrived) for request in wanted)
        counters = self.counters
        counters.requests += len(wanted)
        counters.passes += 1
        counters.mixed += done.tasks > 1
        counters.swaps += done.swapped > 0
        counters.swap_seconds += done.swapped
        counters.run_seconds += done.ran
        counters.queue_seconds += sum(waited for *_, waited in rows)
        padded = len(rows) * max(tokens for _, tokens, _ in rows)
        self._sharing.took(done, padded)
        if self._observe is not None:
            self._observe(Pass(rows, padded, done.swapped, done.ran, done.tasks > 1))

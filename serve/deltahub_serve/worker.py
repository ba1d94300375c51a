"""One replica: a base in memory, its engine and its library, and the questions that they answer together."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TypeVar

from prometheus_client.metrics_core import Metric

from deltahub import Delta, DeltahubError, TaskModel, base_task
from deltahub.encoding import Encoded
from deltahub.replies import Seconds
from deltahub_serve import refusals
from deltahub_serve.catalogue import Catalogue
from deltahub_serve.config import Config, Live
from deltahub_serve.engine import Closed, Engine
from deltahub_serve.futures import ended
from deltahub_serve.library import Library
from deltahub_serve.metrics import Metrics
from deltahub_serve.passes import Answered
from deltahub_serve.questions import Question, Refusal, Refused, Reply, State, TaskCard
from deltahub_serve.refresher import Refresher
from deltahub_serve.runner import reference
from deltahub_serve.scheduler import Overloaded
from deltahub_serve.shelf import Loaded
from deltahub_serve.startup import open_mixer, open_parts
from deltahub_serve.trial import try_out

T = TypeVar("T")
_PREFETCH = 120.0
"""Seconds that the start waits for the tasks that are loaded before the first request."""


class Worker:
    """Answers in this process; a `questions.Backend`.

    Opening reads no record of any task but those that are prefetched or pinned, which is done when it returns; one
    that cannot be loaded is in the state's ``trouble``.

    Args:
        config: where hub and base are, and the limits.
        replica: its name, in replies and states.
        clock: monotonic seconds.
        stuck_after: seconds that one forward pass may take before the replica counts as broken.

    Raises:
        DeltahubError: hub, base or mask cannot be used; the message says what to do.
    """

    def __init__(
        self, config: Config, replica: str = "local", clock: Callable[[], float] = time.monotonic,
        *, stuck_after: float = 60.0,
    ) -> None:  # fmt: skip
        parts = open_parts(config)
        self.config = config
        self.replica = replica
        self.stuck_after = stuck_after
        self._live = config.live
        self._clock = clock
        self._since = clock()
        self._parts = parts
        self._meters = Metrics()
        mixer, unmixed = open_mixer(parts)
        self._engine = Engine(
            parts.resident, self._live.limits, clock, threads=parts.threads, observe=self._meters.passed, mixer=mixer,
            tokenizer=parts.tokenizer, unmixed=unmixed,
        )  # fmt: skip
        self._base = self._of_base()
        self._library = library = Library(
            parts.hub, self._answering, self._live.library, clock, lambda loaded: try_out(self._engine, loaded)
        )
        self._catalogue = Catalogue(library.listing, self._base_card(), library.loaded, library.last, clock)
        self._tokenizers = ThreadPoolExecutor(2, thread_name_prefix="deltahub-tokens")
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="deltahub-read")
        self._preparing = 0
        self._asked = 0
        self._idle = threading.Condition()
        self._closing = False
        self._library.configure(self._live.library, self._live.pinned)
        self._library.prefetch((*config.prefetch, *self._live.pinned), _PREFETCH)
        self._refresher = Refresher(self._library.refresh, self._live.refresh)

    async def ask(self, question: Question) -> Reply:
        """The answers to a question, all of one version of its task.

        Nobody is asked any more, and nothing of it waits in a queue, once the caller is cancelled.

        Raises:
            Refused: with one of `questions.REASONS`.
        """
        seconds = min(question.timeout or math.inf, self._live.timeout)
        deadline = self._clock() + seconds
        task, outcome = None, "failed"
        try:
            with self._counted():
                async with asyncio.timeout(seconds):
                    loaded = await self._find(question.name)
                    task = loaded.task
                    reply = await self._answer(question, loaded, deadline)
            outcome = "answered"
            return reply
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except TimeoutError:
            outcome = "timeout"
            raise refusals.late(seconds) from None
        except Refused as refused:
            outcome = refused.refusal.reason
            raise
        finally:
            self._meters.asked(task, outcome)

    async def cards(self) -> list[TaskCard]:
        return await self._read(self._catalogue.cards)

    async def card(self, name: str) -> TaskCard:
        return await self._read(self._catalogue.card, name)

    async def states(self) -> list[State]:
        return [self.state()]

    async def metrics(self) -> dict[str, list[Metric]]:
        state, age = self.state(), self._library.refresh_age()
        return {self.replica: await asyncio.to_thread(self._meters.families, state, age)}  # whatever the hub does

    async def refresh(self, names: tuple[str, ...] | None = None) -> dict[str, list[str]]:
        wanted = None if names is None else list(names)
        return {self.replica: await self._read(self._library.refresh, wanted)}

    async def pin(self, name: str) -> dict[str, str]:
        if name == self._parts.name:
            return {self.replica: name}
        return {self.replica: (await self._read(self._library.pin, name)).reference}

    async def unpin(self, name: str) -> dict[str, bool]:
        return {self.replica: self._library.unpin(name)}

    async def evict(self, task: str | None = None) -> dict[str, int]:
        return {self.replica: self._library.evict(task)}

    def state(self) -> State:
        """How it is; touches neither hub nor model."""
        parts, library, key = self._parts, self._library, self._engine.key
        mask = parts.resident.mask
        return State(
            replica=self.replica, base=parts.name, base_digest=parts.base.digest, mask=mask.digest if mask else None,
            device=str(parts.device), threads=parts.threads, dtype=parts.dtype,
            resident=None if key is None else reference(key),
            waiting=self._engine.waiting, loaded={loaded.reference: loaded.size for loaded in library.loaded()},
            budget=self._live.cache_bytes, pinned=library.pinned, trouble=dict(library.trouble),
            hub=library.watch.trouble(), broken=self.trouble(), uptime=self._clock() - self._since,
            counters=asdict(self._engine.counters) | asdict(library.counters),
            mixing={"mode": self._live.mixing} | self._engine.mixing,
        )  # fmt: skip

    def reconfigure(self, live: Live) -> None:
        """Applies ``live`` from now on; what is under way ends as it began. Loads no task while the caller waits."""
        self._live = live
        self._engine.set_limits(live.limits)
        self._library.configure(live.library, live.pinned)
        self._refresher.set_interval(live.refresh)

    def trouble(self, stuck_after: float | None = None) -> str | None:
        """Why it cannot answer any more, so that it must be replaced; None where it can."""
        return self._engine.trouble(self.stuck_after if stuck_after is None else stuck_after)

    def close(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Takes no more questions; with ``drain`` waits for those under way, at most ``timeout`` seconds.

        Not to be called in the event loop that the questions run in, which would wait for itself.

        Returns:
            False where something was still under way.
        """
        end = time.monotonic() + (self._live.timeout + 5.0 if timeout is None else timeout)
        with self._idle:
            self._closing = True
            if drain:
                self._idle.wait_for(lambda: not self._asked, max(0.0, end - time.monotonic()))
        done = self._engine.close(drain=drain, timeout=max(0.1, end - time.monotonic()))
        for pool in (self._tokenizers, self._readers):
            pool.shutdown(wait=False, cancel_futures=True)
        self._library.close(wait=False)
        self._refresher.close()
        return done

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._idle:
            if self._closing:
                raise refusals.stopping()
            self._asked += 1
        try:
            yield
        finally:
            with self._idle:
                self._asked -= 1
                self._idle.notify_all()

    async def _find(self, name: str) -> Loaded:
        if name == self._parts.name:
            if isinstance(self._base, DeltahubError):
                raise refusals.of_lookup(self._base)
            return self._base
        future = self._library.get(name)
        try:
            if not future.done():
                await ended([future])
            return future.result()
        except Exception as error:  # whatever it was, it is told to the client and to nobody else
            raise refusals.of_lookup(error) from error
        finally:
            future.cancel()

    async def _answer(self, question: Question, loaded: Loaded, deadline: float) -> Reply:
        start, live = self._clock(), self._live
        most = min(self.config.max_inputs, live.queued, live.queued_per_task)
        refusals.check(question, loaded.reference, loaded.model.delta.manifest.kind, most)
        waiting = self._preparing + self._engine.waiting
        if waiting + len(question.texts) > live.queued:
            message = f"more than {live.queued} texts wait; ask again later"
            raise Refused(Refusal("overloaded", message, self._engine.drain(waiting)))
        encoded = await self._prepare(question, loaded)
        prepared = self._clock() - start
        try:
            futures = self._engine.submit(loaded.model, loaded.version, encoded, deadline=deadline)
        except (Overloaded, Closed) as error:
            raise refusals.of_pass(error) from None
        try:
            await ended(futures)
            found = [future.result() for future in futures]
        except Exception as error:  # whatever torch made of it is told to the client
            raise refusals.of_pass(error) from error
        finally:
            self._engine.cancel([future for future in futures if not future.done()])
            del futures  # a failure holds this frame, and they hold the failure
        return self._reply(loaded, encoded, found, prepared)

    async def _prepare(self, question: Question, loaded: Loaded) -> list[Encoded]:
        work = partial(loaded.model.prepare, question.texts, question.pairs, truncate=question.truncate)
        self._preparing += len(question.texts)
        try:
            return await self._in(self._tokenizers, work)
        except DeltahubError as error:
            raise refusals.of_input(error) from None
        finally:
            self._preparing -= len(question.texts)

    def _reply(self, loaded: Loaded, encoded: Sequence[Encoded], found: Sequence[Answered], prepared: float) -> Reply:
        slowest = max(found, key=lambda each: each.queued + each.swapped + each.ran)
        manifest = loaded.model.delta.manifest
        return Reply(
            task=loaded.task, version=slowest.version, digest=slowest.digest, kind=manifest.kind,
            labels=manifest.labels, answers=tuple(each.answer for each in found),
            tokens=tuple(len(item.tokens["input_ids"]) for item in encoded),
            seconds=Seconds(prepared, slowest.queued, slowest.swapped, slowest.ran),
            rows=max(each.rows for each in found), tasks=max(each.tasks for each in found), replica=self.replica,
        )  # fmt: skip

    async def _read(self, function: Callable[..., T], *arguments: object) -> T:
        """Runs what may wait for the hub on a thread, no longer than a question may take."""
        seconds = self._live.timeout
        try:
            async with asyncio.timeout(seconds):
                return await self._in(self._readers, partial(function, *arguments))
        except TimeoutError:
            raise refusals.late(seconds) from None
        except DeltahubError as error:
            raise refusals.of_lookup(error) from error

    async def _in(self, pool: Executor, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        except RuntimeError as error:
            if self._closing:  # the pool takes nothing any more
                raise refusals.stopping() from error
            raise

    def _of_base(self) -> Loaded | DeltahubError:
        """The base as a task of embeddings; its tasks can be served even where it says that it has another pooling."""
        try:
            delta = base_task(self._parts.base).with_manifest(task=self._parts.name)
            return Loaded(delta.task, None, self._answering(delta), 0)
        except DeltahubError as error:
            return error

    def _base_card(self) -> TaskCard:
        trouble = str(self._base) if isinstance(self._base, DeltahubError) else None
        return TaskCard(self._parts.name, "embeddings", (), None, (), {}, 0, trouble)

    def _answering(self, delta: Delta) -> TaskModel:
        model = TaskModel(self._parts.resident, self._parts.tokenizer, delta)
        model.nbytes += self._engine.admit(model)
        return model

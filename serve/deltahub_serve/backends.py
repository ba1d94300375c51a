"""Questions to replicas elsewhere: `RemoteBackend` for a gateway, `FleetBackend` for a replica with sisters."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ray.exceptions import ObjectLostError, RayActorError, TaskCancelledError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from deltahub.names import task_of
from deltahub_serve import refusals, routing
from deltahub_serve.questions import Backend, Question, Refusal, Refused, Reply, State, TaskCard

_GONE = (RayActorError, WorkerCrashedError, ObjectLostError, ReplicaUnavailableError, TaskCancelledError)
"""What a call ends with when the replica that had it is no more."""
_PAUSE = 0.05
_LONGEST = 3600.0
_EVERYONE = 30.0
"""Seconds that all replicas have to answer what is asked of all of them."""
_UNKNOWN = 3.0
"""Seconds until a handle that knows no replica is believed."""

V = TypeVar("V")


@dataclass(frozen=True)
class Declined:
    """A refusal as a value, since an exception would be logged, wrapped and searched on its way; and who gave it."""

    refusal: Refusal
    replica: str


async def declined(replica: str, backend: Backend, method: str, arguments: tuple[Any, ...]) -> Any:
    """What ``backend.method(*arguments)`` returns, or `Declined`."""
    try:
        return await getattr(backend, method)(*arguments)
    except Refused as refused:
        return Declined(refused.refusal, replica)


class Door:
    """Lets questions in until it is shut, and knows how many requests are inside."""

    def __init__(self) -> None:
        self.inside = 0
        self._shut = False

    def shut(self) -> int:
        """From now on `check` refuses; how many are inside."""
        self._shut = True
        return self.inside

    def check(self) -> None:
        """Raises Refused once the door is shut."""
        if self._shut:
            raise refusals.stopping()

    @contextlib.contextmanager
    def inside_of(self) -> Iterator[None]:
        """Counts a request that came before the door was shut, until the last byte of its answer."""
        counted = not self._shut
        self.inside += counted
        try:
            yield
        finally:
            self.inside -= counted


class RemoteBackend:
    """Asks replicas through a handle of the deployment ``Model``.

    A question whose replica died, or cannot answer any more, goes to another one: to answer twice does no harm.

    Args:
        handle: called when it is needed first, since a replica cannot have one of its own deployment while it starts.
        door: what every question passes.
        longest: seconds until a replica that says nothing is given up; a request's own limit is the replica's matter.
    """

    def __init__(self, handle: Callable[[], DeploymentHandle[Any]], door: Door, longest: float = _LONGEST) -> None:
        self._make = handle
        self._longest = longest
        self._made: DeploymentHandle[Any] | None = None
        self._door = door

    @property
    def _handle(self) -> DeploymentHandle[Any]:
        if self._made is None:
            self._made = self._make()
        return self._made

    async def ask(self, question: Question) -> Reply:
        self._door.check()
        reply: Reply = await self._one(question.name, "ask", question)
        return reply

    async def cards(self) -> list[TaskCard]:
        found: list[TaskCard] = await self._one("", "cards")
        return found

    async def card(self, name: str) -> TaskCard:
        found: TaskCard = await self._one(name, "card", name)
        return found

    async def states(self) -> list[State]:
        self._door.check()
        return [state for states in await self._all("states") for state in states]

    async def metrics(self) -> dict[str, str]:
        return _joined(await self._all("metrics"))

    async def refresh(self, names: tuple[str, ...] | None = None) -> dict[str, list[str]]:
        return _joined(await self._all("refresh", names))

    async def pin(self, name: str) -> dict[str, str]:
        return _joined(await self._all("pin", name))

    async def unpin(self, name: str) -> dict[str, bool]:
        return _joined(await self._all("unpin", name))

    async def evict(self, task: str | None = None) -> dict[str, int]:
        return _joined(await self._all("evict", task))

    async def _one(self, name: str, method: str, *arguments: Any) -> Any:
        """From the first replica that can answer, within the question's timeout."""
        task = task_of(name)[:200]
        timeout = arguments[0].timeout if method == "ask" else None
        clock = asyncio.get_running_loop().time
        end = clock() + (timeout or self._longest)
        avoid: tuple[str, ...] = ()
        while (left := end - clock()) > 0:
            if timeout is not None:
                arguments = (replace(arguments[0], timeout=left),)
            try:
                found = await self._try(routing.key(task, avoid), method, arguments, left)
            except _GONE:
                await asyncio.sleep(_PAUSE)
                continue
            if not isinstance(found, Declined):
                return found
            if found.refusal.reason != "unavailable" or found.replica in avoid:
                raise Refused(found.refusal)
            avoid = (*avoid, found.replica)
        raise refusals.late(timeout or self._longest)

    async def _try(self, key: str, method: str, arguments: tuple[Any, ...], left: float) -> Any:
        response = self._handle.options(multiplexed_model_id=key).call.remote(method, *arguments)
        try:
            async with asyncio.timeout(left):
                return await response
        except (asyncio.CancelledError, TimeoutError) as ended:
            response.cancel()  # type: ignore[no-untyped-call]
            if isinstance(ended, TimeoutError):
                raise refusals.late(left) from None
            raise
        except BackPressureError as full:
            raise Refused(Refusal("overloaded", "too many requests wait; ask again later", refusals.SOON)) from full
        except DeploymentUnavailableError as error:
            raise Refused(Refusal("unavailable", error.message, refusals.SOON)) from error

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        """From every replica that lives."""
        clock = asyncio.get_running_loop().time
        end = clock() + _UNKNOWN
        while True:
            try:
                found = await self._handle.broadcast("call", method, *arguments).results_async(
                    timeout_s=_EVERYONE, return_exceptions=True
                )
                break
            except DeploymentUnavailableError:  # a new handle does not know the replicas yet
                if clock() > end:
                    found = []
                    break
                await asyncio.sleep(_PAUSE)
            except TimeoutError:
                raise refusals.late(_EVERYONE) from None
        answers = [answer for answer in found if not isinstance(answer, _GONE)]
        if not answers:
            raise Refused(Refusal("unavailable", "no replica is running; ask again", refusals.SOON))
        for answer in answers:
            if isinstance(answer, Declined):
                raise Refused(answer.refusal)
            if isinstance(answer, BaseException):
                raise answer
        return answers


class FleetBackend(RemoteBackend):
    """A replica that takes requests itself: its own worker answers, and for what concerns all it asks all."""

    def __init__(
        self, worker: Backend, handle: Callable[[], DeploymentHandle[Any]], door: Door, longest: float = _LONGEST
    ) -> None:
        super().__init__(handle, door, longest)
        self._worker = worker

    async def ask(self, question: Question) -> Reply:
        self._door.check()
        return await self._worker.ask(question)

    async def cards(self) -> list[TaskCard]:
        return await self._worker.cards()

    async def card(self, name: str) -> TaskCard:
        return await self._worker.card(name)


def _joined(answers: list[dict[str, V]]) -> dict[str, V]:
    return {replica: found for answer in answers for replica, found in answer.items()}

"""Questions to replicas elsewhere: `RemoteBackend` for a gateway, `FleetBackend` for a replica with sisters."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from prometheus_client.metrics_core import Metric
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
_QUICK, _EVERYONE = 5.0, 40.0
"""Seconds that replicas have to answer what is asked of all: how they are, and what may wait for the hub in each."""
UNNAMED = "(unnamed)"
"""Stands for replicas that do not answer and have never said who they are."""
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
        self._latest: dict[str, State] = {}

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
        answers, missing = await self._all("states", within=_QUICK)
        found = {state.replica: state for states in answers for state in states}
        silent = f"no answer within {_QUICK:g} s"
        self._latest = found | {
            name: replace(self._latest[name], broken=silent) for name in missing if name in self._latest
        }
        return list(self._latest.values())

    async def metrics(self) -> dict[str, list[Metric]]:
        answers, _ = await self._all("metrics", within=_QUICK)
        return _joined(answers)

    async def refresh(self, names: tuple[str, ...] | None = None) -> dict[str, list[str] | None]:
        return await self._by_replica("refresh", names)

    async def pin(self, name: str) -> dict[str, str | None]:
        return await self._by_replica("pin", name)

    async def unpin(self, name: str) -> dict[str, bool | None]:
        return await self._by_replica("unpin", name)

    async def evict(self, task: str | None = None) -> dict[str, int | None]:
        return await self._by_replica("evict", task)

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

    async def _by_replica(self, method: str, *arguments: Any) -> dict[str, Any]:
        answers, missing = await self._all(method, *arguments, within=_EVERYONE)
        return _joined(answers) | dict.fromkeys(missing)

    async def _all(self, method: str, *arguments: Any, within: float) -> tuple[list[Any], list[str]]:
        """What every replica that lives answers within so many seconds, and the names of those that do not."""
        calls = await self._calls(method, arguments, within)
        if calls:
            await asyncio.wait(calls, timeout=within)
        answers, late, silent = [], [], 0
        for call in calls:
            if not call.done():
                call.cancel()
                silent += 1
            elif (error := call.exception()) is None:
                answers.append(call.result())
            elif not isinstance(error, _GONE):
                raise error
        for answer in [answer for answer in answers if isinstance(answer, Declined)]:
            if answer.refusal.reason != "timeout":
                raise Refused(answer.refusal)
            answers.remove(answer)
            late.append(answer.replica)
        if not answers and (late or silent):
            raise refusals.late(within)
        if not answers:
            raise Refused(Refusal("unavailable", "no replica is running; ask again", refusals.SOON))
        return answers, late + self._silent({name for answer in answers for name in _names(answer)} | set(late), silent)

    async def _calls(self, method: str, arguments: tuple[Any, ...], within: float) -> list[asyncio.Future[Any]]:
        """One to each replica that the handle knows."""
        clock = asyncio.get_running_loop().time
        end = clock() + _UNKNOWN
        while True:
            try:
                response = self._handle.broadcast("call", method, *arguments)
                async with asyncio.timeout(within):
                    each = await response._fetch_replica_results_async()  # what is public gives all answers or none
                return [asyncio.ensure_future(_answer(result)) for result in each]
            except DeploymentUnavailableError:  # a new handle does not know the replicas yet
                if clock() > end:
                    return []
                await asyncio.sleep(_PAUSE)
            except TimeoutError:
                raise refusals.late(within) from None

    def _silent(self, heard: set[str], number: int) -> list[str]:
        """Who they may be: Ray does not say which replica gave no answer, so those that have told their state."""
        known = [name for name in self._latest if name not in heard][:number]
        return known if len(known) == number else [*known, UNNAMED]


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


async def _answer(result: Any) -> Any:
    return await result.get_async()


def _names(answer: Any) -> list[str]:
    return [state.replica for state in answer] if isinstance(answer, list) else list(answer)

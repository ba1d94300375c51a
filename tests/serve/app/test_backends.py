"""Questions to replicas elsewhere, with a handle that has no Ray behind it."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from deltahub_serve import backends, routing
from deltahub_serve.backends import Declined, Door, RemoteBackend
from deltahub_serve.questions import Question, Refusal, Refused
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from tests.serve.web.canned import state

Answer = Callable[[str, str, tuple[Any, ...]], Coroutine[Any, Any, Any]]


class Response:
    """Runs as soon as it is made, as Ray's does."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self.task = asyncio.ensure_future(work)
        self.cancelled = False

    def __await__(self) -> Any:
        return asyncio.shield(self.task).__await__()

    def cancel(self) -> None:
        self.cancelled = True
        self.task.cancel()


@dataclass
class Result:
    """What one replica answers; ``...`` stands for one that never does."""

    answer: Any

    async def get_async(self) -> Any:
        if self.answer is ...:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Handle:
    """``handle.options(multiplexed_model_id=...).call.remote(...)`` and ``handle.broadcast(...)``."""

    def __init__(self, answer: Answer, everyone: list[Any] | None = None) -> None:
        self.answer, self.everyone = answer, everyone or []
        self.keys: list[str] = []
        self.responses: list[Response] = []

    def options(self, *, multiplexed_model_id: str) -> Handle:
        self.keys.append(multiplexed_model_id)
        return self

    @property
    def call(self) -> Handle:
        return self

    def remote(self, method: str, *arguments: Any) -> Response:
        self.responses.append(Response(self.answer(self.keys[-1], method, arguments)))
        return self.responses[-1]

    def broadcast(self, *_: Any) -> Handle:
        return self

    async def _fetch_replica_results_async(self) -> list[Result]:
        return [Result(answer) for answer in self.everyone]


def ask(handle: Handle, question: Question, door: Door | None = None) -> Any:
    return asyncio.run(RemoteBackend(lambda: handle, door or Door()).ask(question))  # type: ignore[arg-type,return-value]


def test_a_question_whose_replica_died_goes_to_another_with_the_time_that_is_left() -> None:
    asked: list[Question] = []

    async def answer(key: str, method: str, arguments: tuple[Any, ...]) -> Any:
        asked.append(arguments[0])
        if len(asked) < 3:
            raise ActorDiedError
        return "answer"

    assert ask(Handle(answer), Question("sst2", ("w1",), timeout=60.0)) == "answer"
    times = [question.timeout for question in asked]
    assert times == sorted(times, reverse=True)  # type: ignore[type-var]
    assert len(set(times)) == 3


def test_a_replica_that_cannot_answer_any_more_is_avoided_and_the_last_refusal_stands() -> None:
    def handle(*, all_broken: bool) -> Handle:
        async def answer(key: str, method: str, arguments: tuple[Any, ...]) -> Any:
            replica = routing.order(key, ["r1", "r2"])[0]
            if all_broken or "|" not in key:
                return Declined(Refusal("unavailable", f"{replica} is broken", 1.0), replica)
            return replica

        return Handle(answer)

    good = handle(all_broken=False)
    assert ask(good, Question("sst2@3", ("w1",))) == routing.order("sst2", ["r1", "r2"])[1]
    assert good.keys == ["sst2", f"sst2|{routing.order('sst2', ['r1', 'r2'])[0]}"]
    with pytest.raises(Refused, match="is broken"):
        ask(handle(all_broken=True), Question("sst2", ("w1",)))


def test_other_refusals_are_not_asked_again() -> None:
    async def answer(key: str, method: str, arguments: tuple[Any, ...]) -> Any:
        return Declined(Refusal("unknown", "no such task"), "r1")

    handle = Handle(answer)
    with pytest.raises(Refused, match="no such task"):
        ask(handle, Question("sst2", ("w1",)))
    assert len(handle.responses) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [(BackPressureError(9, 9), "overloaded"), (DeploymentUnavailableError("Model"), "unavailable")],  # type: ignore[arg-type]
)
def test_what_ray_refuses_is_a_refusal_with_an_advice(error: Exception, reason: str) -> None:
    async def answer(key: str, method: str, arguments: tuple[Any, ...]) -> Any:
        raise error

    with pytest.raises(Refused) as refused:
        ask(Handle(answer), Question("sst2", ("w1",)))
    assert refused.value.refusal.reason == reason
    assert refused.value.refusal.retry_after


def test_no_answer_in_time_and_a_client_that_left_both_cancel_the_work() -> None:
    async def answer(key: str, method: str, arguments: tuple[Any, ...]) -> Any:
        await asyncio.Event().wait()

    late = Handle(answer)
    with pytest.raises(Refused) as refused:
        ask(late, Question("sst2", ("w1",), timeout=0.05))
    assert refused.value.refusal.reason == "timeout"
    assert late.responses[0].cancelled

    async def leave() -> None:
        asking = asyncio.ensure_future(RemoteBackend(lambda: gone, Door()).ask(Question("sst2", ("w1",))))  # type: ignore[arg-type,return-value]
        while not gone.responses:
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    gone = Handle(answer)
    asyncio.run(leave())
    assert gone.responses[0].cancelled


def test_all_are_asked_and_the_dead_are_left_out() -> None:
    async def answer(*_: Any) -> Any: ...

    def backend(*everyone: Any) -> RemoteBackend:
        handle = Handle(answer, list(everyone))
        return RemoteBackend(lambda: handle, Door())  # type: ignore[arg-type,return-value]

    assert asyncio.run(backend({"r1": 1}, ActorDiedError(), {"r2": 2}).evict()) == {"r1": 1, "r2": 2}
    with pytest.raises(Refused, match="no replica is running"):
        asyncio.run(backend(ActorDiedError()).evict())
    with pytest.raises(Refused, match="no such task"):
        asyncio.run(backend({"r1": "a@1"}, Declined(Refusal("unknown", "no such task"), "r2")).pin("a"))


def test_who_does_not_answer_in_time_is_named_and_the_others_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(*_: Any) -> Any: ...

    handle = Handle(answer, [[state("r1")], [state("r2")], [state("r3")]])
    backend = RemoteBackend(lambda: handle, Door())  # type: ignore[arg-type,return-value]

    async def hear(everyone: list[Any], method: str) -> Any:
        handle.everyone = everyone
        return await getattr(backend, method)()

    assert [found.replica for found in asyncio.run(hear(handle.everyone, "states"))] == ["r1", "r2", "r3"]
    monkeypatch.setattr(backends, "_QUICK", 0.05)
    monkeypatch.setattr(backends, "_EVERYONE", 0.05)
    found = asyncio.run(hear([[state("r1")], ..., ActorDiedError()], "states"))
    assert {each.replica: each.broken for each in found} == {"r1": None, "r2": "no answer within 0.05 s"}
    slow = Declined(Refusal("timeout", "no answer after 30 s"), "r3")
    assert asyncio.run(hear([{"r1": 1}, ..., slow], "evict")) == {"r1": 1, "r2": None, "r3": None}
    assert asyncio.run(hear([{"r1": 1}, ..., ..., slow], "evict")) == {
        "r1": 1, "r2": None, "r3": None, backends.UNNAMED: None
    }  # fmt: skip
    assert asyncio.run(hear([{"r1": "text"}, ...], "metrics")) == {"r1": "text"}
    with pytest.raises(Refused, match="no answer after"):
        asyncio.run(hear([..., slow], "refresh"))


def test_a_shut_door_counts_who_is_inside_and_lets_nobody_in() -> None:
    door = Door()
    with door.inside_of():
        assert door.shut() == 1
        with door.inside_of():  # whoever knocks at a shut door is not waited for
            assert door.shut() == 1
        with pytest.raises(Refused) as refused:
            door.check()
    assert door.shut() == 0
    assert refused.value.refusal.reason == "unavailable"


def test_a_refusal_survives_the_way_between_processes() -> None:
    for value in (Declined(Refusal("unknown", "no", None, ("a",)), "r"), Refusal("overloaded", "later", 2.0)):
        assert pickle.loads(pickle.dumps(value)) == value
    assert pickle.loads(pickle.dumps(Refused(Refusal("unknown", "no")))).refusal == Refusal("unknown", "no")


names = st.sets(st.text("abcdef0123456789", min_size=1, max_size=8), min_size=1, max_size=8)


@given(st.text(max_size=20).filter(lambda task: "|" not in task), names, st.randoms())
def test_a_replica_that_goes_moves_only_its_own_tasks(task: str, replicas: set[str], choose: Any) -> None:
    listed = sorted(replicas)
    choose.shuffle(listed)
    found = routing.order(task, listed)
    assert sorted(found) == sorted(replicas)
    assert found == routing.order(task, sorted(replicas))
    gone = choose.choice(listed)
    assert routing.order(task, [name for name in listed if name != gone]) == [name for name in found if name != gone]
    assert routing.order(routing.key(task, (gone,)), listed)[-1] == gone


def test_tasks_are_spread_evenly() -> None:
    replicas = [f"r{n}" for n in range(4)]
    homes = [routing.order(f"task{n}", replicas)[0] for n in range(400)]
    assert all(70 <= homes.count(replica) <= 130 for replica in replicas)

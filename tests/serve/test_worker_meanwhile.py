"""What happens while something else is under way in a replica."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from deltahub_serve.questions import Question, Refused, Reply
from deltahub_serve.worker import Worker
from prometheus_client.core import Metric

from deltahub import Delta, Hub
from tests.serve.asking import TEXTS, ask, outcomes, plain, refused, warm
from tests.serve.conftest import Gate, Hold, MakeWorker


def test_a_version_pushed_while_a_question_is_under_way_does_not_change_it(
    worker: Worker, hub: Hub, make_task: Callable[..., Delta], gate: Gate, hold: Hold
) -> None:
    hold(warm(worker, "topic"), "run")

    async def push_meanwhile() -> tuple[Reply, Reply]:
        first = asyncio.create_task(worker.ask(Question("topic", TEXTS)))
        await asyncio.to_thread(gate.reached.wait, 60)
        hub.push(make_task("topic", seed=11))
        assert await worker.refresh(("topic",)) == {"local": ["topic"]}
        second = asyncio.create_task(worker.ask(Question("topic", TEXTS)))
        gate.open()
        return await first, await second

    first, second = asyncio.run(push_meanwhile())
    assert (first.version, second.version) == (2, 3)
    assert plain(first) != plain(second)


def test_cancelling_a_question_frees_the_queue(worker: Worker, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    model = warm(worker, "topic")
    passes = []

    def slow(batch: Any) -> Any:
        passes.append(len(batch))
        gate.through()
        raise AssertionError("nobody is left who wants this")

    monkeypatch.setattr(model, "run", slow)

    async def give_up() -> None:
        first = asyncio.create_task(worker.ask(Question("topic", ("w1",))))
        await asyncio.to_thread(gate.reached.wait, 60)
        many = asyncio.create_task(worker.ask(Question("topic", ("w1",) * 500)))
        while worker.state().waiting < 500:
            await asyncio.sleep(0)
        many.cancel()
        with pytest.raises(asyncio.CancelledError):
            await many
        assert worker.state().waiting == 0
        gate.open()
        with pytest.raises(Refused):
            await first

    asyncio.run(give_up())
    assert passes == [1]
    assert outcomes(worker) == {("topic", "answered"): 1.0, ("topic", "cancelled"): 1.0, ("topic", "failed"): 1.0}


def test_a_deadline_counts_while_a_task_is_loaded(worker: Worker, gate: Gate, hold: Hold) -> None:
    hold(worker._parts.hub, "pull")
    assert refused(worker, "topic", timeout=0.05) == "timeout"
    gate.open()
    assert ask(worker, "topic").version == 2


def test_while_a_task_is_loaded_others_answer_and_the_loop_goes_on(worker: Worker, gate: Gate, hold: Hold) -> None:
    ask(worker, "words")
    hold(worker._parts.hub, "pull")

    async def both() -> tuple[Reply, Reply]:
        waits = asyncio.create_task(worker.ask(Question("topic", TEXTS)))
        await asyncio.to_thread(gate.reached.wait, 60)
        quick = await worker.ask(Question("words", TEXTS))
        assert not waits.done()
        gate.open()
        return quick, await waits

    quick, slow_one = asyncio.run(both())
    assert (quick.task, slow_one.task) == ("words", "topic")


def test_more_than_may_wait_is_overload(make_worker: MakeWorker, gate: Gate, hold: Hold) -> None:
    worker = make_worker(live={"queued": 4})
    assert refused(worker, "topic", ("w1",) * 5) == "too_many"
    hold(warm(worker, "topic"), "prepare")

    async def ask_meanwhile() -> Refused:
        first = asyncio.create_task(worker.ask(Question("topic", ("w1",) * 2)))
        await asyncio.to_thread(gate.reached.wait, 60)
        with pytest.raises(Refused) as caught:
            await worker.ask(Question("topic", TEXTS))
        gate.open()
        assert len((await first).answers) == 2
        return caught.value

    refusal = asyncio.run(ask_meanwhile()).refusal
    assert refusal.reason == "overloaded"
    assert 1.0 <= refusal.retry_after <= 30.0
    assert len(ask(worker, "topic").answers) == len(TEXTS)


def test_closing_lets_end_what_is_under_way_and_takes_nothing_more(worker: Worker, gate: Gate, hold: Hold) -> None:
    hold(warm(worker, "topic"), "run")

    async def close_meanwhile() -> tuple[Reply, bool]:
        asked = asyncio.create_task(worker.ask(Question("topic", TEXTS)))
        await asyncio.to_thread(gate.reached.wait, 60)
        closing = asyncio.create_task(asyncio.to_thread(worker.close, True, 60))
        while not worker._closing:
            await asyncio.sleep(0)
        with pytest.raises(Refused) as caught:
            await worker.ask(Question("topic", TEXTS))
        assert caught.value.refusal.reason == "unavailable"
        gate.open()
        return await asked, await closing

    reply, closed = asyncio.run(close_meanwhile())
    assert reply.version == 2
    assert closed
    assert not [thread for thread in threading.enumerate() if thread is worker._refresher._thread]


def test_metrics_are_told_while_the_hub_holds_every_thread_that_reads_it(
    worker: Worker, gate: Gate, hold: Hold
) -> None:
    hold(worker._catalogue, "card")

    async def ask_meanwhile() -> dict[str, list[Metric]]:
        cards = [asyncio.create_task(worker.card("topic")) for _ in range(20)]
        await asyncio.to_thread(gate.reached.wait, 60)
        found = await asyncio.wait_for(worker.metrics(), 30)
        gate.open()
        await asyncio.gather(*cards)
        return found

    assert "deltahub_usable" in [family.name for family in asyncio.run(ask_meanwhile())["local"]]


def test_a_state_tells_of_a_pass_that_takes_longer_than_it_may(make_worker: MakeWorker, gate: Gate, hold: Hold) -> None:
    worker = make_worker(stuck_after=-1.0)
    hold(warm(worker, "topic"), "run")

    async def look_meanwhile() -> tuple[str | None, str | None]:
        asked = asyncio.create_task(worker.ask(Question("topic", TEXTS)))
        await asyncio.to_thread(gate.reached.wait, 60)
        found = worker.state().broken, worker.trouble(60.0)
        gate.open()
        await asked
        return found

    assert asyncio.run(look_meanwhile()) == ("one pass has taken more than -1 s", None)

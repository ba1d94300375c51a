"""The engine on a tiny real base: no answer from another task's weights, whatever happens around it."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from deltahub_serve.engine import Closed, Engine, Expired
from deltahub_serve.passes import Pass
from deltahub_serve.scheduler import Limits, Overloaded

from deltahub import Base, Delta, Mask, Resident, TaskModel
from deltahub.heads import load_tokenizer
from tests.serve.engine.conftest import models
from tests.tuning.conftest import WORDS


def text(choose: random.Random) -> str:
    return " ".join(choose.choices(WORDS, k=choose.randint(1, 12)))


def alone(base: Base, delta: Delta, texts: list[str]) -> list[object]:
    """What a process of its own answers, each text in a pass of its own."""
    resident = Resident.load(base, Mask.build(base, 0.05))
    model = TaskModel(resident, load_tokenizer(base), delta)
    resident.swap(delta)
    return [model.run([item])[0] for item in model.prepare(texts)]


def numbers(answer: object) -> list[float]:
    found = answer.as_dict()  # type: ignore[attr-defined]
    if "embedding" in found:
        return found["embedding"]
    if "words" in found:
        return [word["score"] for word in found["words"]]
    return list(found["scores"].values())


def crowd(
    engine: Engine, base: Base, deltas: list[Delta], meanwhile: Callable[[random.Random], None], turns: int = 25
) -> set[int]:
    """Eight clients ask tasks at random, and some change their mind; every answer must be its own task's.

    Args:
        meanwhile: called by each client before each of its requests.

    Returns:
        How many tasks shared the passes.
    """
    served = models(engine, deltas)
    choose = random.Random(0)
    texts = [text(choose) for _ in range(20)]
    expected = [alone(base, delta, texts) for delta in deltas]
    wrong: list[str] = []
    shared: set[int] = set()

    def client(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(turns):
            task, row = mine.randrange(len(deltas)), mine.randrange(len(texts))
            meanwhile(mine)
            future = engine.submit(served[task], task, served[task].prepare([texts[row]]))[0]
            if mine.random() < 0.1:
                engine.cancel([future])
                continue
            done = future.result(60)
            shared.add(done.tasks)
            close = torch.allclose(
                torch.tensor(numbers(done.answer)), torch.tensor(numbers(expected[task][row])), atol=1e-5
            )
            if not close or (done.task, done.version, done.digest) != (f"task{task}", task, deltas[task].digest):
                wrong.append(f"{task} {row}")

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert engine.waiting == 0
    return shared


def test_every_answer_is_of_its_own_task_under_many_clients(engine: Engine, base: Base, deltas: list[Delta]) -> None:
    assert crowd(engine, base, deltas, lambda _: None) == {1}
    assert engine.counters.swaps > 10


def test_requests_that_wait_share_a_pass(engine: Engine, deltas: list[Delta]) -> None:
    model = models(engine, deltas)[0]
    with engine._condition:  # the engine cannot take any before all are there
        futures = engine.submit(model, 1, model.prepare(["w1 w2"] * 6))
    assert {future.result(60).rows for future in futures} == {6}


def test_a_deadline_that_has_passed_is_not_answered(engine: Engine, deltas: list[Delta]) -> None:
    model = models(engine, deltas)[0]
    future = engine.submit(model, 1, model.prepare(["w1"]), deadline=engine._clock() - 1)[0]
    with pytest.raises(Expired):
        future.result(60)


def test_all_of_a_request_is_refused_or_none(engine: Engine, deltas: list[Delta]) -> None:
    model = models(engine, deltas)[0]
    engine.set_limits(Limits(queued=3))
    with engine._condition, pytest.raises(Overloaded):
        engine.submit(model, 1, model.prepare(["w1"] * 4))
    assert engine.waiting == 0


def test_closing_answers_what_waits_or_refuses_it(base: Base, deltas: list[Delta]) -> None:
    for drain in (True, False):
        engine = Engine(Resident.load(base, Mask.build(base, 0.05)))
        model = models(engine, deltas)[0]
        with engine._condition:
            futures = engine.submit(model, 1, model.prepare(["w1", "w2"]))
            if not drain:
                engine._closing = True
        assert engine.close(drain=drain, timeout=60)
        assert all((future.exception(60) is None) for future in futures) or not drain
        with pytest.raises(Closed):
            engine.submit(model, 1, model.prepare(["w1"]))


def test_every_pass_is_told_before_its_answers_are_there(base: Base, deltas: list[Delta]) -> None:
    told: list[Pass] = []
    engine = Engine(Resident.load(base, Mask.build(base, 0.05)), observe=told.append)
    one, two, *_ = models(engine, deltas)
    for model, texts in ((one, ["w1", "w2 w3 w4"]), (one, ["w1"]), (two, ["w1"])):
        with engine._condition:
            futures = engine.submit(model, 1, model.prepare(texts))
        assert [future.result(60).rows for future in futures] == [len(texts)] * len(texts)
    assert [([row[:2] for row in seen.rows], seen.padded, seen.mixed) for seen in told] == [
        ([("task0", 3), ("task0", 5)], 10, False), ([("task0", 3)], 3, False), ([("task1", 3)], 3, False),
    ]  # fmt: skip
    assert [seen.swapped > 0 for seen in told] == [True, False, True]
    assert all(seen.ran > 0 and min(waited for *_, waited in seen.rows) >= 0 for seen in told)
    engine.close()


def test_many_are_cancelled_at_once(engine: Engine, deltas: list[Delta]) -> None:
    model = models(engine, deltas)[0]
    with engine._condition:
        futures = engine.submit(model, 1, model.prepare(["w1"] * 5))
        engine.cancel(futures[:4])
        assert engine.waiting == 1
    assert all(future.cancelled() for future in futures[:4])
    assert futures[4].result(60).rows == 1


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is not freed at once is held by somebody, or by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_nothing_of_a_task_is_kept_once_its_requests_have_ended(
    engine: Engine, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch, no_collector: None
) -> None:
    answered, failing, cancelled, late, other = models(engine, deltas)[:5]
    held = [weakref.ref(model) for model in (answered, failing, cancelled, late)]
    monkeypatch.setattr(failing, "run", lambda batch: 1 / 0)
    later, passed = engine._clock() + 600, engine._clock() - 1
    with engine._condition:
        futures = engine.submit(cancelled, 1, cancelled.prepare(["w1", "w2"]), deadline=later)
        engine.cancel(futures)
        futures += engine.submit(answered, 1, answered.prepare(["w1", "w2"]), deadline=later)
        futures += engine.submit(late, 1, late.prepare(["w1"]), deadline=passed)
        failed = engine.submit(failing, 1, failing.prepare(["w1"]), deadline=later)
    assert isinstance(failed[0].exception(60), ZeroDivisionError)
    assert futures[2].result(60).task == "task0"
    monkeypatch.undo()
    del failed, answered, failing, cancelled, late  # the futures of the others are still there
    assert engine.submit(other, 1, other.prepare(["w1"]))[0].result(60)
    with engine._condition:  # the pass is over
        assert [model() for model in held] == [None] * 4

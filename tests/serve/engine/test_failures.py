"""What an engine does with passes that fail, and when it says that it cannot answer any more."""

from __future__ import annotations

import threading

import pytest
from deltahub_serve.engine import Closed, Engine

from deltahub import Delta, Mask
from deltahub.errors import DeltahubError, MismatchError, ResidentError
from tests.serve.engine.conftest import models
from tests.tasks import random_task
from tests.tuning.conftest import write_text_base


def test_a_row_that_fails_does_not_take_the_others_with_it(
    engine: Engine, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models(engine, deltas)[0]
    run, (bad, *good) = model.run, model.prepare(["w9 w9", "w1", "w2"])

    def fail_on_bad(batch):  # type: ignore[no-untyped-def]
        if bad in batch:
            raise RuntimeError("out of memory")
        return run(batch)

    monkeypatch.setattr(model, "run", fail_on_bad)
    with engine._condition:
        futures = engine.submit(model, 1, [bad, *good])
    assert [future.exception(60) is None for future in futures] == [False, True, True]
    assert engine.trouble(60) is None


def test_a_poisoned_resident_answers_nothing_any_more(
    engine: Engine, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, *_ = models(engine, deltas)
    assert engine.submit(one, 1, one.prepare(["w1"]))[0].result(60)

    def broken(*_: object) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(engine.resident, "_write_values", broken)
    monkeypatch.setattr(engine.resident, "_write_base_values", broken)
    with engine._condition:
        futures = engine.submit(two, 1, two.prepare(["w1", "w2"])) + engine.submit(one, 1, one.prepare(["w3"]))
    assert all(isinstance(future.exception(60), Closed) for future in futures)
    assert "device lost" in str(engine.trouble(60))
    with pytest.raises(Closed):
        engine.submit(one, 1, one.prepare(["w1"]))


def test_a_pass_that_takes_too_long_is_trouble(
    engine: Engine, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models(engine, deltas)[0]
    inside, go_on = threading.Event(), threading.Event()
    run = model.run

    def slow(batch):  # type: ignore[no-untyped-def]
        inside.set()
        go_on.wait(60)
        return run(batch)

    monkeypatch.setattr(model, "run", slow)
    future = engine.submit(model, 1, model.prepare(["w1"]))[0]
    assert inside.wait(60)
    assert "has taken more than" in str(engine.trouble(stuck_after=-1))
    go_on.set()
    assert future.result(60)
    assert engine.trouble(60) is None


def test_a_task_of_another_base_is_refused_before_it_is_asked(engine: Engine, deltas: list[Delta], tmp_path) -> None:
    other = write_text_base(tmp_path, "roberta")
    foreign = random_task(other, Mask.build(other, 0.05), kind="embeddings", seed=1)
    with pytest.raises(DeltahubError, match="was made on another base"):
        models(engine, [foreign])


def test_a_swap_that_fails_is_tried_once_for_all_rows_and_the_engine_goes_on(
    engine: Engine, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, *_ = models(engine, deltas)
    swap, tries = engine.resident.swap, []

    def fails(*arguments: object) -> None:
        tries.append(arguments)
        raise ResidentError("out of memory")

    monkeypatch.setattr(engine.resident, "swap", fails)
    with engine._condition:
        futures = engine.submit(one, 1, one.prepare(["w1", "w2", "w3"]))
    assert all(isinstance(future.exception(60), ResidentError) for future in futures)
    assert len(tries) == 1
    monkeypatch.setattr(engine.resident, "swap", swap)
    assert engine.submit(two, 1, two.prepare(["w1"]))[0].result(60).task == "task1"


def test_a_device_on_which_every_pass_fails_is_trouble(
    engine: Engine, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models(engine, deltas)[0]
    run = model.run

    def fail(error: Exception, times: int) -> None:
        def failing(batch):  # type: ignore[no-untyped-def]
            raise error

        monkeypatch.setattr(model, "run", failing)
        for _ in range(times):
            assert engine.submit(model, 1, model.prepare(["w1"]))[0].exception(60) is error

    fail(MismatchError("a head of another size"), 20)
    fail(RuntimeError("device lost"), 7)
    assert engine.trouble(60) is None
    fail(RuntimeError("device lost\nfor ever"), 1)
    assert engine.trouble(60) == "8 passes in turn have failed, the latest with: device lost for ever"
    monkeypatch.setattr(model, "run", run)
    assert engine.submit(model, 1, model.prepare(["w1"]))[0].result(60)
    assert engine.trouble(60) is None


def test_the_rows_of_one_batch_that_fail_count_once(
    engine: Engine, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models(engine, deltas)[0]
    monkeypatch.setattr(model, "run", lambda batch: 1 / 0)
    with engine._condition:
        futures = engine.submit(model, 1, model.prepare(["w1"] * 8))
    assert all(isinstance(future.exception(60), ZeroDivisionError) for future in futures)
    assert engine.trouble(60) is None

"""Passes that tasks share: every answer is of its own task, whichever way its pass was taken."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import get_args

import pytest
from deltahub_serve.engine import Engine
from deltahub_serve.passes import Pass
from deltahub_serve.runner import Runner
from deltahub_serve.scheduler import Limits, Mixing

import deltahub.answers
from deltahub import Base, Delta, Manifest, Mask, Mixer, Resident
from deltahub.errors import MismatchError, ResidentError
from deltahub.heads import load_tokenizer
from deltahub.resident import Stamp
from tests.serve.engine.conftest import models
from tests.serve.engine.test_passes import alone, crowd, numbers


def mixing_engine(base: Base, mixing: Mixing, told: list[Pass] | None = None) -> Engine:
    resident, tokenizer = Resident.load(base, Mask.build(base, 0.05)), load_tokenizer(base)
    observe = None if told is None else told.append
    limits = Limits(batch_rows=8, mixing=mixing)
    return Engine(resident, limits, mixer=Mixer(resident, tokenizer), tokenizer=tokenizer, observe=observe)


@pytest.fixture(params=get_args(Mixing))
def engine(base: Base, request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = mixing_engine(base, request.param)
    yield made
    made.close(drain=False)


@pytest.fixture
def always(base: Base) -> Iterator[Engine]:
    made = mixing_engine(base, "always")
    yield made
    made.close(drain=False)


def test_no_answer_is_of_another_task_while_the_way_changes(engine: Engine, base: Base, deltas: list[Delta]) -> None:
    def remix(chance: random.Random) -> None:
        if chance.random() < 0.05:  # as an operator would, while requests are answered
            engine.set_limits(Limits(batch_rows=8, mixing=chance.choice(get_args(Mixing))))

    crowd(engine, base, deltas, remix)
    assert engine.mixing["unmixed"] is None


def test_a_crowd_shares_passes_where_it_always_can(always: Engine, base: Base, deltas: list[Delta]) -> None:
    assert max(crowd(always, base, deltas, lambda _: None, turns=10)) > 1


def held(engine: Engine, deltas: list[Delta], *texts: tuple[int, str]) -> list[object]:
    """What comes of requests that all wait before the engine can take one."""
    served = models(engine, deltas)
    with engine._condition:
        futures = [engine.submit(served[task], 1, served[task].prepare([one]))[0] for task, one in texts]
    return [future.exception(60) or future.result(60) for future in futures]


def test_requests_of_many_tasks_share_a_pass(base: Base, deltas: list[Delta]) -> None:
    told: list[Pass] = []
    engine = mixing_engine(base, "always", told)
    found = held(engine, deltas, (0, "w1 w2"), (1, "w3"), (2, "w4"), (0, "w5"))
    engine.close()
    assert {(one.rows, one.tasks) for one in found} == {(4, 3)}  # type: ignore[attr-defined]
    assert [(len(seen.rows), seen.mixed, seen.padded) for seen in told] == [(4, True, 16)]
    assert (engine.counters.mixed, engine.counters.passes) == (1, 1)
    assert engine.key is None, "a mixed pass runs on the base's values"


def test_requests_of_one_task_run_merged(always: Engine, deltas: list[Delta]) -> None:
    found = held(always, deltas, (0, "w1 w2"), (0, "w3"))
    assert {one.tasks for one in found} == {1}  # type: ignore[attr-defined]
    assert always.key == ("task0", 1, deltas[0].digest)
    assert always.counters.mixed == 0


def test_a_row_that_fails_spoils_no_other_of_a_mixed_pass(
    always: Engine, base: Base, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = models(always, deltas)
    run = type(served[0]).run
    monkeypatch.setattr("deltahub.mixing.mixer.Mixer.run", lambda *_: 1 / 0)

    def fails(model: object, batch: object) -> object:
        if model.delta.task == "task1":  # type: ignore[attr-defined]
            raise MismatchError("no number")
        return run(model, batch)  # type: ignore[arg-type]

    monkeypatch.setattr("deltahub.TaskModel.run", fails)
    found = held(always, deltas, (0, "w1"), (1, "w1"), (2, "w1"))
    assert isinstance(found[1], MismatchError)
    for at in (0, 2):
        [wanted] = alone(base, deltas[at], ["w1"])
        assert numbers(found[at].answer) == numbers(wanted)  # type: ignore[attr-defined]


def test_a_task_that_failed_shares_no_pass_any_more(
    always: Engine, base: Base, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = models(always, deltas)[:3]
    answers = []

    def unlucky(kind: str, manifest: Manifest, *rest: object) -> object:
        answers.append(manifest.task)
        if manifest.task == "task1":
            raise MismatchError("infinity")
        return real(kind, manifest, *rest)  # type: ignore[arg-type]

    real = deltahub.answers.answers
    monkeypatch.setattr("deltahub.mixing.heads.answers", unlucky)
    monkeypatch.setattr("deltahub.task_model.answers", unlucky)
    for failures in (2, 3):  # in the shared pass and alone; then alone only
        with always._condition:
            futures = [always.submit(model, 1, model.prepare(["w1"]))[0] for model in served]
        assert isinstance(futures[1].exception(60), MismatchError)
        assert [futures[at].result(60).task for at in (0, 2)] == ["task0", "task2"]
        assert always.counters.failures == failures
    assert futures[0].result().tasks == 2
    again = models(always, deltas)[:2]  # as after an eviction
    with always._condition:
        futures = [always.submit(model, 1, model.prepare(["w1"]))[0] for model in again]
    assert isinstance(futures[1].exception(60), MismatchError)
    assert futures[0].result(60).tasks == 1
    assert always.counters.failures == 4


def test_an_answer_of_another_task_is_never_given(
    always: Engine, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were a mixed pass ever to answer for a wrong task, its stamp would tell, and the rows be asked again alone."""
    real = Mixer.run

    def crossed(mixer: Mixer, rows: object) -> object:
        found = real(mixer, rows)  # type: ignore[arg-type]
        return found[1:] + found[:1]

    monkeypatch.setattr(Mixer, "run", crossed)
    runner = Runner(always.resident, Mixer(always.resident, load_tokenizer(always.resident.base)))
    served = models(always, deltas)
    always.close()
    rows = [
        runner.row((model.delta.task, 1, model.delta.digest), model, model.prepare(["w1"])[0]) for model in served[:2]
    ]
    with pytest.raises(ResidentError, match="answered by other values"):
        runner.run(rows)
    monkeypatch.setattr(Mixer, "run", real)
    assert len(runner.run(rows).answers) == 2


def test_a_base_that_cannot_be_mixed_is_swapped(
    base: Base, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltahub.mixing.mixer.Mixer.run", lambda *_: 1 / 0)
    engine = mixing_engine(base, "always")
    assert "division" in engine.mixing["unmixed"]
    found = held(engine, deltas, (0, "w1"), (1, "w1"))
    engine.close()
    assert {one.tasks for one in found} == {1}  # type: ignore[attr-defined]


def test_tasks_that_cannot_be_mixed_do_not_join(
    always: Engine, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Mixer.admit

    def refuse(mixer: Mixer, model: object, *rest: object) -> object:
        if model.delta.task == "task1":  # type: ignore[attr-defined]
            raise MismatchError("whole embeddings")
        return real(mixer, model, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Mixer, "admit", refuse)
    found = held(always, deltas, (0, "w1"), (1, "w1"), (2, "w1"))
    assert [one.tasks for one in found] == [2, 1, 2]  # type: ignore[attr-defined]
    assert always.mixing["alone"] == {}, "the task is gone"
    kept = models(always, deltas)[1]
    always.submit(kept, 3, kept.prepare(["w1"]))[0].result(60)
    assert always.mixing["alone"] == {"task1@3": "whole embeddings"}


def test_a_stamp_says_who_answered(base: Base, deltas: list[Delta]) -> None:
    resident, tokenizer = Resident.load(base, Mask.build(base, 0.05)), load_tokenizer(base)
    mixer = Mixer(resident, tokenizer)
    rows = []
    for number, model in enumerate(models_on(resident, deltas[:3])):
        rows.append((mixer.admit(model, number), model.prepare(["w1"])[0]))
    assert [one.stamp for one in mixer.run(rows)] == [
        Stamp(f"task{number}", number, deltas[number].digest) for number in range(3)
    ]


def models_on(resident: Resident, deltas: list[Delta]) -> list[object]:
    from deltahub import TaskModel

    return [TaskModel(resident, load_tokenizer(resident.base), delta) for delta in deltas]


def test_mixing_that_fails_by_itself_is_given_up(
    always: Engine, base: Base, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task answers alone, so that it is none's fault; after the third time no pass is shared any more."""
    tried = []

    def full(*_: object) -> object:
        tried.append(1)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Mixer, "run", full)
    for _ in range(4):
        found = held(always, deltas, (0, "w1"), (0, "w2"), (1, "w1"))
        assert [one.tasks for one in found] == [1, 1, 1]  # type: ignore[attr-defined]
        assert [one.rows for one in found] == [2, 2, 1], "retried task by task"  # type: ignore[attr-defined]
    assert len(tried) == 3
    assert always.mixing == {"unmixed": "out of memory"}


def test_a_task_that_cannot_be_made_ready_is_swapped(
    always: Engine, deltas: list[Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> object:
        raise RuntimeError("the device is full")

    monkeypatch.setattr(Mixer, "admit", full)
    found = held(always, deltas, (0, "w1"), (1, "w1"))
    assert [one.tasks for one in found] == [1, 1]  # type: ignore[attr-defined]


def test_a_base_whose_tasks_are_all_refused_says_why(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> object:
        raise MismatchError("this architecture is strange")

    monkeypatch.setattr(Mixer, "admit", refuse)
    engine = mixing_engine(base, "auto")
    engine.close()
    assert engine.mixing == {"unmixed": "this architecture is strange"}

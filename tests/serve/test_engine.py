"""The engine on a tiny real base: no answer from another task's weights, whatever happens around it."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from deltahub_serve.engine import Closed, Engine, Expired
from deltahub_serve.passes import Pass
from deltahub_serve.scheduler import Limits, Overloaded

from deltahub import Base, Delta, Mask, Resident, TaskModel
from deltahub.errors import DeltahubError, MismatchError, ResidentError
from deltahub.heads import load_tokenizer
from tests.tasks import random_task
from tests.tuning.conftest import WORDS, write_text_base

KINDS = ("text-classification", "token-classification", "embeddings")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def deltas(base: Base) -> list[Delta]:
    mask = Mask.build(base, 0.05)
    return [random_task(base, mask, kind=KINDS[n % 3], seed=n).with_manifest(task=f"task{n}") for n in range(9)]


@pytest.fixture
def engine(base: Base, deltas: list[Delta]) -> Iterator[Engine]:
    made = Engine(Resident.load(base, Mask.build(base, 0.05)), Limits(batch_rows=8))
    yield made
    made.close(drain=False)


def models(engine: Engine, deltas: list[Delta]) -> list[TaskModel]:
    tokenizer = load_tokenizer(engine.resident.base)
    return [TaskModel(engine.resident, tokenizer, delta) for delta in deltas]


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


def test_every_answer_is_of_its_own_task_under_many_clients(engine: Engine, base: Base, deltas: list[Delta]) -> None:
    served = models(engine, deltas)
    choose = random.Random(0)
    texts = [text(choose) for _ in range(20)]
    expected = [alone(base, delta, texts) for delta in deltas]
    wrong: list[str] = []

    def client(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(25):
            task, row = mine.randrange(len(deltas)), mine.randrange(len(texts))
            future = engine.submit(served[task], task, served[task].prepare([texts[row]]))[0]
            if mine.random() < 0.1:
                engine.cancel([future])
                continue
            done = future.result(60)
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
    assert engine.counters.swaps > 10
    assert engine.waiting == 0


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


def test_every_pass_is_told_before_its_answers_are_there(base: Base, deltas: list[Delta]) -> None:
    told: list[Pass] = []
    engine = Engine(Resident.load(base, Mask.build(base, 0.05)), observe=told.append)
    one, two, *_ = models(engine, deltas)
    for model, texts in ((one, ["w1", "w2 w3 w4"]), (one, ["w1"]), (two, ["w1"])):
        with engine._condition:
            futures = engine.submit(model, 1, model.prepare(texts))
        assert [future.result(60).rows for future in futures] == [len(texts)] * len(texts)
    assert [(seen.task, seen.rows, seen.tokens, seen.padded) for seen in told] == [
        ("task0", 2, 3 + 5, 10), ("task0", 1, 3, 3), ("task1", 1, 3, 3),
    ]  # fmt: skip
    assert [seen.swapped > 0 for seen in told] == [True, False, True]
    assert all(seen.ran > 0 and min(seen.queued) >= 0 for seen in told)
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

"""One replica from question to answer, over a real hub in a folder."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deltahub_serve.config import Live
from deltahub_serve.questions import REASONS, Question, Refused, Reply
from deltahub_serve.worker import Worker

from deltahub import Base, Delta, Hub, Mask, Predictor, base_task
from deltahub.rawtensor import RawTensor
from tests.serve.conftest import KINDS, Gate, MakeWorker

TEXTS = ("w4", "w1 w2 w3", "w5 w6 w7 w8 w9")  # by length, as `Predictor` orders a batch


def ask(worker: Worker, name: str, texts: tuple[Any, ...] = TEXTS, **more: Any) -> Reply:
    return asyncio.run(worker.ask(Question(name, texts, **more)))


def refused(worker: Worker, name: str, texts: tuple[Any, ...] = TEXTS, **more: Any) -> str:
    """The reason; the message must be one line for people."""
    with pytest.raises(Refused) as caught:
        ask(worker, name, texts, **more)
    refusal = caught.value.refusal
    assert refusal.reason in REASONS
    assert "\n" not in refusal.message
    assert len(refusal.message) < 500
    assert pickle.loads(pickle.dumps(caught.value)).refusal == refusal
    return refusal.reason


def plain(reply: Reply) -> list[Any]:
    return [answer.as_dict() for answer in reply.answers]


@pytest.mark.parametrize("task", KINDS)
def test_a_task_answers_as_it_does_alone_in_the_same_batch(
    worker: Worker, serve_base: Base, serve_mask: Mask, hub: Hub, task: str
) -> None:
    reply = ask(worker, task)
    assert reply.rows == len(TEXTS), "so that the batch is the same"
    predictor = Predictor(serve_base, serve_mask)
    predictor.load(hub.pull(task))
    assert plain(reply) == [answer.as_dict() for answer in predictor.predict(TEXTS)]
    record = hub.version(task)
    assert (reply.reference, reply.digest, reply.kind) == (record.reference, record.digest, KINDS[task])
    assert reply.labels == record.manifest.labels
    assert reply.tokens == (3, 5, 7)


def test_pairs_and_words_are_taken(worker: Worker) -> None:
    assert len(ask(worker, "pairs", ("w1", "w2"), pairs=("w3", "w4")).answers) == 2
    words = ask(worker, "words", (("w1", "w2"),)).answers[0]
    assert [word.word for word in words.words] == ["w1", "w2"]  # type: ignore[union-attr]


def test_two_workers_of_one_hub_agree_to_the_bit(make_worker: MakeWorker) -> None:
    left, right = make_worker("left"), make_worker("right")
    for task in [*KINDS, "base"]:
        one, two = ask(left, task), ask(right, task)
        assert (plain(one), one.digest) == (plain(two), two.digest)
        assert (one.replica, two.replica) == ("left", "right")


def test_the_base_embeds_as_a_plain_forward_pass_does(worker: Worker, serve_base: Base) -> None:
    ask(worker, "topic")  # whose values must not be in the base's answers
    reply = ask(worker, "base")
    predictor = Predictor(serve_base)
    predictor.load(base_task(serve_base))
    assert plain(reply) == [{"embedding": row.tolist()} for row in predictor.embed(list(TEXTS))]
    assert (reply.reference, reply.version, reply.kind) == ("base", None, "embeddings")
    assert worker.state().resident == "base"


def test_a_version_whose_answers_are_no_numbers_never_takes_over(worker: Worker, hub: Hub) -> None:
    before = plain(ask(worker, "topic"))
    good = hub.pull("topic")
    head = {f"head.{name}": RawTensor.of_torch(torch.full_like(it, 3e38)) for name, it in good.head.items()}
    hub.push(Delta(good.manifest, {**good.tensors, **head}))
    assert asyncio.run(worker.refresh()) == {worker.replica: []}
    assert plain(ask(worker, "topic")) == before
    assert "NaN or infinity" in worker.state().trouble["topic"]
    assert refused(worker, "topic@3") == "unusable"


def test_a_name_a_number_and_a_tag(worker: Worker) -> None:
    names = ("topic", "topic@1", "topic:prod")
    assert [ask(worker, name).reference for name in names] == ["topic@2", "topic@1", "topic@1"]


@pytest.mark.parametrize(
    "name", ["", "..", "../../etc/passwd", "topic@", "topic@99", "topic@-1", "topic:nobody", "TOPIC", "a b", "x" * 9999]
)
def test_names_that_mean_nothing_are_unknown(worker: Worker, name: str) -> None:
    assert refused(worker, name) == "unknown"


def test_who_misspells_a_name_is_told_those_like_it(worker: Worker) -> None:
    with pytest.raises(Refused) as caught:
        ask(worker, "topik")
    assert caught.value.refusal.near == ("topic",)
    assert str(caught.value) == "there is no task topik; did you mean topic?"


def test_questions_that_cannot_be_answered_say_why(make_worker: MakeWorker) -> None:
    worker = make_worker(max_inputs=3)
    assert refused(worker, "topic", kinds=("embeddings",)) == "kind"
    assert refused(worker, "topic", ()) == "invalid"
    assert refused(worker, "topic", ("w1",) * 4) == "too_many"
    assert refused(worker, "topic", ("",) * 3, pairs=("",) * 3) == "invalid"
    assert refused(worker, "pairs", ("w1",)) == "invalid"
    assert refused(worker, "topic", ("\ud800",)) == "invalid"
    assert refused(worker, "topic", (("w1", "w2"),)) == "invalid"
    assert refused(worker, "topic", ("w1 " * 100,), truncate=False) == "too_long"
    assert len(ask(worker, "topic", ("w1 " * 100,)).answers) == 1
    assert worker.trouble() is None


def test_a_damaged_version_is_unusable_and_the_one_before_answers_for_the_plain_name(
    worker: Worker, hub: Hub, hub_folder: Path
) -> None:
    blob = hub.version("topic@2").sections[-1].data.blob
    path = next(hub_folder.rglob(blob))
    path.write_bytes(b"x" * path.stat().st_size)
    assert refused(worker, "topic@2") == "unusable"
    assert ask(worker, "topic").version == 1
    assert "topic@1 answers in its place" in worker.state().trouble["topic"]


def test_a_version_pushed_while_a_question_is_under_way_does_not_change_it(
    worker: Worker, hub: Hub, make_task: Callable[..., Delta], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(worker, "topic")
    model = worker._library.get("topic").result().model
    forward = model.run

    def slow(batch: Any) -> Any:
        gate.through()
        return forward(batch)

    monkeypatch.setattr(model, "run", slow)

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
    ask(worker, "topic")
    model = worker._library.get("topic").result().model
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
    assert 'outcome="cancelled",task="topic"} 1.0' in asyncio.run(worker.metrics())["local"]


def test_a_deadline_counts_while_a_task_is_loaded(worker: Worker, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    pull = worker._parts.hub.pull

    def slow(reference: str) -> Delta:
        gate.through()
        return pull(reference)

    monkeypatch.setattr(worker._parts.hub, "pull", slow)
    assert refused(worker, "topic", timeout=0.05) == "timeout"
    gate.open()
    assert ask(worker, "topic").version == 2


def test_while_a_task_is_loaded_others_answer_and_the_loop_goes_on(
    worker: Worker, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(worker, "words")
    pull = worker._parts.hub.pull

    def slow(reference: str) -> Delta:
        gate.through()
        return pull(reference)

    monkeypatch.setattr(worker._parts.hub, "pull", slow)

    async def both() -> tuple[Reply, Reply]:
        waits = asyncio.create_task(worker.ask(Question("topic", TEXTS)))
        await asyncio.to_thread(gate.reached.wait, 60)
        quick = await worker.ask(Question("words", TEXTS))
        assert not waits.done()
        gate.open()
        return quick, await waits

    quick, slow_one = asyncio.run(both())
    assert (quick.task, slow_one.task) == ("words", "topic")


def test_more_than_may_wait_is_overload(make_worker: MakeWorker, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = make_worker(live={"queued": 4})
    assert refused(worker, "topic", ("w1",) * 5) == "too_many"
    ask(worker, "topic")
    model = worker._library.get("topic").result().model
    prepare = model.prepare

    def slow(*arguments: Any, **more: Any) -> Any:
        gate.through()
        return prepare(*arguments, **more)

    monkeypatch.setattr(model, "prepare", slow)

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
    assert refusal.retry_after is not None
    assert len(ask(worker, "topic").answers) == len(TEXTS)


def test_a_pass_that_fails_is_told_and_the_next_one_answers(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(worker, "topic")
    model = worker._library.get("topic").result().model
    forward = model.run
    monkeypatch.setattr(model, "run", lambda batch: 1 / 0)
    assert refused(worker, "topic") == "failed"
    monkeypatch.setattr(model, "run", forward)
    assert ask(worker, "topic").version == 2


def test_a_hub_that_is_gone_is_told_and_what_is_loaded_answers_on(worker: Worker, hub_folder: Path) -> None:
    ask(worker, "topic")
    hub_folder.rename(hub_folder.with_name("away"))
    with pytest.raises(Refused, match="hub cannot be read"):
        asyncio.run(worker.refresh())
    assert ask(worker, "topic").version == 2
    assert refused(worker, "words") == "unavailable"
    assert "there is no hub" in str(worker.state().hub)
    assert [card.name for card in asyncio.run(worker.cards())] == ["base", "topic"]
    hub_folder.with_name("away").rename(hub_folder)
    asyncio.run(worker.refresh())
    assert worker.state().hub is None
    assert ask(worker, "words").version == 1


def test_torch_has_its_threads_inside_a_pass(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, expected in ((3, 3), (None, len(os.sched_getaffinity(0)))):
        worker = make_worker(threads=threads)
        ask(worker, "topic")
        model = worker._library.get("topic").result().model
        seen, forward = [], model.run

        def look(batch: Any, forward: Any = forward, seen: list[tuple[str, int]] = seen) -> Any:
            seen.append((threading.current_thread().name, torch.get_num_threads()))
            return forward(batch)

        monkeypatch.setattr(model, "run", look)
        ask(worker, "topic")
        assert seen == [("deltahub-engine", expected)]
        assert worker.state().threads == expected


def test_what_is_configured_may_change_at_any_time(make_worker: MakeWorker) -> None:
    worker = make_worker()
    for task in KINDS:
        ask(worker, task)
    assert len(worker.state().loaded) == len(KINDS)
    worker.reconfigure(Live(cache_bytes=0, refresh=3600, splits={"topic": {1: 1.0}}, queued=2, pinned=("labels",)))
    assert worker.state().loaded.keys() == {"labels@1"}
    assert ask(worker, "topic", ("w1",)).version == 1
    assert refused(worker, "topic") == "too_many"
    worker.reconfigure(Live(refresh=3600))
    assert ask(worker, "topic").version == 2
    assert worker.state().pinned == ()


def test_the_refresher_sees_a_push_by_itself(
    make_worker: MakeWorker, hub: Hub, make_task: Callable[..., Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker()
    assert ask(worker, "topic").version == 2
    hub.push(make_task("topic", seed=12))
    seen, refresh = threading.Event(), worker._library.refresh

    def tell() -> None:
        if refresh() == ["topic"]:
            seen.set()

    monkeypatch.setattr(worker._refresher, "_refresh", tell)
    worker.reconfigure(Live(refresh=0.01))
    assert seen.wait(60)
    assert ask(worker, "topic").version == 3


def test_pin_and_evict(worker: Worker) -> None:
    assert asyncio.run(worker.pin("topic:prod")) == {"local": "topic@1"}
    ask(worker, "words")
    assert asyncio.run(worker.evict()) == {"local": 1}
    assert worker.state().loaded.keys() == {"topic@1"}
    assert asyncio.run(worker.unpin("topic:prod")) == {"local": True}
    assert asyncio.run(worker.unpin("topic:prod")) == {"local": False}
    assert asyncio.run(worker.evict("topic")) == {"local": 1}
    with pytest.raises(Refused, match="no task lost"):
        asyncio.run(worker.pin("lost"))


def test_prefetched_tasks_are_there_and_one_that_cannot_be_had_stops_nothing(make_worker: MakeWorker) -> None:
    worker = make_worker(prefetch=("words", "lost"), live={"pinned": ("topic",)})
    assert worker.state().loaded.keys() == {"words@1", "topic@2"}
    assert worker.state().trouble.keys() == {"lost"}
    assert worker.state().pinned == ("topic",)


def test_closing_lets_end_what_is_under_way_and_takes_nothing_more(
    worker: Worker, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(worker, "topic")
    model = worker._library.get("topic").result().model
    forward = model.run

    def slow(batch: Any) -> Any:
        gate.through()
        return forward(batch)

    monkeypatch.setattr(model, "run", slow)

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


def test_a_task_of_a_kind_that_has_no_answers_is_unusable(
    worker: Worker, hub: Hub, make_task: Callable[..., Delta]
) -> None:
    hub.push(make_task("picture", seed=4).with_manifest(kind="image-classification"))
    assert refused(worker, "picture") == "unusable"


def test_a_question_that_ends_in_a_mistake_of_ours_counts_as_failed(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_reply", None)
    with pytest.raises(TypeError):
        ask(worker, "topic")
    text = asyncio.run(worker.metrics())["local"]
    assert 'outcome="failed",task="topic"} 1.0' in text
    assert 'outcome="cancelled"' not in text


def test_metrics_are_told_while_the_hub_holds_every_thread_that_reads_it(
    worker: Worker, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker._catalogue, "card", lambda name: gate.through())

    async def ask_meanwhile() -> dict[str, str]:
        cards = [asyncio.create_task(worker.card("topic")) for _ in range(20)]
        await asyncio.to_thread(gate.reached.wait, 60)
        found = await asyncio.wait_for(worker.metrics(), 30)
        gate.open()
        await asyncio.gather(*cards)
        return found

    assert "deltahub_usable" in asyncio.run(ask_meanwhile())["local"]


def test_a_state_tells_of_a_pass_that_takes_longer_than_it_may(
    make_worker: MakeWorker, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(stuck_after=-1.0)
    ask(worker, "topic")
    model = worker._library.get("topic").result().model
    run = model.run
    monkeypatch.setattr(model, "run", lambda batch: (gate.through(), run(batch))[1])

    async def look_meanwhile() -> tuple[str | None, str | None]:
        asked = asyncio.create_task(worker.ask(Question("topic", TEXTS)))
        await asyncio.to_thread(gate.reached.wait, 60)
        found = worker.state().broken, worker.trouble(60.0)
        gate.open()
        await asked
        return found

    assert asyncio.run(look_meanwhile()) == ("one pass has taken more than -1 s", None)


def test_what_is_evicted_is_freed_at_once(worker: Worker) -> None:
    ask(worker, "topic")
    gc.collect()
    model = weakref.ref(worker._library.get("topic").result().model)
    gc.disable()
    try:
        for _ in range(3):
            ask(worker, "topic")
        asyncio.run(worker.evict())
        ask(worker, "words")
        assert model() is None
    finally:
        gc.enable()

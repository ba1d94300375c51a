"""What can be set of a replica, and what it keeps in memory."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from deltahub_serve.config import Live
from deltahub_serve.questions import Question, Refused, Reply
from deltahub_serve.worker import Worker

from deltahub import Base, Delta, Hub
from tests.mixing.test_mixer import VECTORS, with_tensors
from tests.serve.asking import ask, refused, warm
from tests.serve.conftest import KINDS, MakeWorker


def test_torch_has_its_threads_inside_a_pass(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, expected in ((3, 3), (None, len(os.sched_getaffinity(0)))):
        worker = make_worker(threads=threads)
        model = warm(worker, "topic")
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


def test_mixing_is_told_and_can_be_changed(make_worker: MakeWorker) -> None:
    worker = make_worker(live={"mixing": "always"})
    told = worker.state().mixing
    assert (told["mode"], told["unmixed"], told["products"]) == ("always", None, "compiled")
    assert set(told) > {"swap_ms", "forward_ms", "mixing_ms"}
    tasks = ("topic", "words")
    for task in tasks:
        ask(worker, task)

    def together() -> set[int]:
        async def both() -> list[Reply]:
            with worker._engine._condition:  # the engine takes nothing before both wait
                asking = [asyncio.ensure_future(worker.ask(Question(task, ("w1", "w2")))) for task in tasks]
                while worker._engine.waiting < 4:
                    await asyncio.sleep(0)
            return list(await asyncio.gather(*asking))

        return {reply.tasks for reply in asyncio.run(both())}

    assert together() == {2}
    assert worker.state().counters["mixed"] == 1
    worker.reconfigure(Live(mixing="never"))
    assert worker.state().mixing["mode"] == "never"
    assert together() == {1}
    assert worker.state().counters["mixed"] == 1


def test_what_mixing_keeps_counts_as_the_tasks_memory(
    make_worker: MakeWorker, hub: Hub, make_task: Callable[..., Delta], serve_base: Base
) -> None:
    hub.push(with_tensors(serve_base, make_task("topic", seed=3), 0, *VECTORS))
    sizes = {}
    for mixing in ("never", "always"):
        worker = make_worker(live={"mixing": mixing})
        ask(worker, "topic")
        [sizes[mixing]] = worker.state().loaded.values()
    assert sizes["always"] > sizes["never"]


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

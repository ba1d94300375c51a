"""Questions while everything around them changes: no answer may come from another version than the reply says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from deltahub_serve.questions import Question
from deltahub_serve.worker import Worker

from deltahub import Base, Delta, Hub, Mask, Predictor
from tests.conftest import SOAK
from tests.serve.conftest import MakeWorker
from tests.tuning.conftest import WORDS

TASKS = ("topic", "labels", "vectors")
ROUNDS = 200 if SOAK else 20


def numbers(answer: Any) -> list[float]:
    found = answer.as_dict()
    return found["embedding"] if "embedding" in found else list(found["scores"].values())


async def client(worker: Worker, seed: int, told: list[tuple[str, str, list[float]]]) -> None:
    choose = random.Random(seed)
    for _ in range(ROUNDS):
        task = choose.choice(TASKS)
        name = choose.choice([task, f"{task}:prod", f"{task}@1"])
        text = " ".join(choose.choices(WORDS, k=choose.randint(1, 9)))
        asked = asyncio.create_task(worker.ask(Question(name, (text,))))
        if choose.random() < 0.1:
            await asyncio.sleep(0)
            asked.cancel()
        try:
            reply = await asked
        except asyncio.CancelledError:
            continue
        assert "@1" not in name or reply.version == 1
        told.append((reply.reference, text, numbers(reply.answers[0])))


async def upset(worker: Worker, hub: Hub, make_task: Callable[..., Delta], ended: asyncio.Event) -> None:
    choose, kinds = random.Random(0), {task: hub.version(task).manifest.kind for task in TASKS}
    while not ended.is_set():
        task = choose.choice(TASKS)
        match choose.randrange(4):
            case 0 if len(hub.versions(task)) < 6:
                await asyncio.to_thread(hub.push, make_task(task, kinds[task], choose.randrange(1000)))
            case 1:
                hub.tag(task, choose.choice(hub.versions(task)).number, "prod")
            case 2:
                await worker.evict(choose.choice([task, None]))
            case _:
                await worker.refresh()
        await asyncio.sleep(0)


def test_every_answer_is_of_the_version_that_the_reply_names(
    make_worker: MakeWorker, hub: Hub, make_task: Callable[..., Delta], serve_base: Base, serve_mask: Mask
) -> None:
    worker = make_worker(live={"cache_bytes": 20_000, "batch_rows": 4})
    told: list[tuple[str, str, list[float]]] = []

    async def everything() -> None:
        ended = asyncio.Event()
        trouble = asyncio.create_task(upset(worker, hub, make_task, ended))
        await asyncio.gather(*[client(worker, seed, told) for seed in range(8)])
        ended.set()
        await trouble

    asyncio.run(everything())
    predictor = Predictor(serve_base, serve_mask)
    for reference in {reference for reference, *_ in told}:
        predictor.load(hub.pull(reference))
        mine = [(text, found) for which, text, found in told if which == reference]
        for (text, found), expected in zip(mine, predictor.predict([text for text, _ in mine]), strict=True):
            assert np.allclose(found, numbers(expected), atol=1e-5), (reference, text)
    assert len({reference for reference, *_ in told}) > 4, "no version was replaced while it was asked"
    assert len(told) > 0.8 * 8 * ROUNDS
    assert (worker.state().waiting, worker.trouble(), worker._asked, worker._preparing) == (0, None, 0, 0)

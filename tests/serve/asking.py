"""Questions to a worker in this process."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from deltahub_serve.questions import REASONS, Question, Refused, Reply
from deltahub_serve.worker import Worker

from deltahub import TaskModel

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


def warm(worker: Worker, name: str) -> TaskModel:
    """The model of a task that has been loaded and asked."""
    ask(worker, name)
    return worker._library.get(name).result().model


def outcomes(worker: Worker) -> dict[tuple[str, str], float]:
    """How many questions to each task have ended in which way."""
    told = {family.name: family.samples for family in asyncio.run(worker.metrics())["local"]}
    return {(it.labels["task"], it.labels["outcome"]): it.value for it in told["deltahub_requests"]}

"""A backend without a model: five tasks, one of each kind, that answer at once, late, or not at all."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
from deltahub_serve.questions import Question, Refusal, Refused, Reply, State, TaskCard
from prometheus_client.core import GaugeMetricFamily, Metric

from deltahub.answers import Answer, Embedding, LabelScores, Prediction, Score, WordLabel, WordLabels
from deltahub.names import task_of
from deltahub.replies import Seconds

LABELS = ("red", "green", "blue")
KINDS = {
    "topic": "text-classification",
    "tags": "multi-label-classification",
    "stars": "regression",
    "ner": "token-classification",
    "vectors": "embeddings",
}


class Canned:
    """Keeps the questions; ``refusal`` is raised by every method, ``error`` too.

    Attributes:
        hold: neither questions nor `states` are ever answered.
        asked, cancelled: tell another thread how far a question is.
        vector: of every text.
    """

    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.calls: list[tuple[object, ...]] = []
        self.refusal: Refusal | None = None
        self.error: Exception | None = None
        self.hold = False
        self.asked, self.cancelled = threading.Event(), threading.Event()
        self.vector = np.array([3.0, 4.0], np.float32)
        self.found = [state("one")]

    def _check(self) -> None:
        if self.refusal is not None:
            raise Refused(self.refusal)
        if self.error is not None:
            raise self.error

    async def ask(self, question: Question) -> Reply:
        self.questions.append(question)
        self.asked.set()
        if self.hold:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        self._check()
        name = task_of(question.name)
        if name not in KINDS:
            raise Refused(Refusal("unknown", f"there is no task {question.name!r}", near=("topic",)))
        if question.kinds and KINDS[name] not in question.kinds:
            raise Refused(Refusal("kind", f"{name} is a task of {KINDS[name]}"))
        return Reply(
            task=name, version=3, digest="d" * 64, kind=KINDS[name], labels=LABELS,
            answers=tuple(self._answer(KINDS[name], text) for text in question.texts),
            tokens=(5,) * len(question.texts), seconds=Seconds(0.001, 0.002, 0.0003, 0.004), rows=1, tasks=1,
            replica="one",
        )  # fmt: skip

    def _answer(self, kind: str, text: object) -> Answer:
        scores = dict(zip(LABELS, (0.2, 0.7, 0.1), strict=True))
        match kind:
            case "text-classification":
                return Prediction("green", 0.7, scores)
            case "multi-label-classification":
                return LabelScores(("green",), scores)
            case "regression":
                return Score(2.5)
            case "embeddings":
                return Embedding(self.vector)
        first = text if isinstance(text, str) else text[0]
        return WordLabels((WordLabel(first, "red", 0.9, 0, 0, len(first)),))

    async def cards(self) -> list[TaskCard]:
        self._check()
        return [TaskCard("base", "embeddings", (), None, (), {}, 0)] + [await self.card(name) for name in KINDS]

    async def card(self, name: str) -> TaskCard:
        self._check()
        if name not in KINDS:
            raise Refused(Refusal("unknown", f"there is no task {name!r}", near=("topic",)))
        return TaskCard(name, KINDS[name], LABELS, "base", (1, 3), {"prod": 3, "old": None}, 1700000000)

    async def states(self) -> list[State]:
        self._check()
        if self.hold:
            await asyncio.Event().wait()
        return self.found

    async def metrics(self) -> dict[str, list[Metric]]:
        self._check()
        return {"one": [GaugeMetricFamily("deltahub_up", "Up.", 1.0)]}

    async def refresh(self, names: tuple[str, ...] | None = None) -> dict[str, list[str]]:
        self._check()
        self.calls.append(("refresh", names))
        return {"one": ["topic"]}

    async def pin(self, name: str) -> dict[str, str]:
        self._check()
        self.calls.append(("pin", name))
        return {"one": "topic@3"}

    async def unpin(self, name: str) -> dict[str, bool]:
        self._check()
        self.calls.append(("unpin", name))
        return {"one": True}

    async def evict(self, task: str | None = None) -> dict[str, int]:
        self._check()
        self.calls.append(("evict", task))
        return {"one": 2}


def state(replica: str, *, hub: str | None = None, broken: str | None = None) -> State:
    return State(
        replica=replica, base="base", base_digest="b" * 64, mask=None, device="cpu", threads=1, dtype="float32",
        resident=None, waiting=0, loaded={"topic@3": 100}, budget=1000, pinned=(), trouble={}, hub=hub, broken=broken,
        uptime=1.5, mixing={"mode": "auto", "unmixed": None},
    )  # fmt: skip

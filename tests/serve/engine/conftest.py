"""An engine on a tiny real base, and tasks of several kinds for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from deltahub_serve.engine import Engine
from deltahub_serve.scheduler import Limits

from deltahub import Base, Delta, Mask, Resident, TaskModel
from deltahub.heads import load_tokenizer
from tests.tasks import random_task

KINDS = ("text-classification", "token-classification", "embeddings")


@pytest.fixture(scope="session")
def base(serve_base: Base) -> Base:
    return serve_base


@pytest.fixture(scope="session")
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

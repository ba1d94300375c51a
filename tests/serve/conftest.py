"""A tiny base with a task of every kind in a hub, and a worker that serves them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deltahub_serve.config import Config, Live
from deltahub_serve.worker import Worker

from deltahub import Base, Delta, Hub, Mask
from deltahub.names import TEXT_KINDS
from tests.tasks import random_task
from tests.tuning.conftest import write_text_base

KINDS = dict(zip(("topic", "labels", "score", "words", "vectors"), TEXT_KINDS, strict=True))
"""The task of each kind that the hub has."""


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def serve_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return write_text_base(tmp_path_factory.mktemp("serve-base"))


@pytest.fixture(scope="session")
def serve_mask(serve_base: Base) -> Mask:
    return Mask.build(serve_base, 0.05)


@pytest.fixture(scope="session")
def make_task(serve_base: Base, serve_mask: Mask) -> Callable[..., Delta]:
    """A random task of the base, as `tests.tasks.random_task` makes it."""

    def make(task: str, kind: str = "text-classification", seed: int = 0, **more: Any) -> Delta:
        return random_task(serve_base, serve_mask, kind, task=task, seed=seed, **more)

    return make


@pytest.fixture(scope="session")
def filled_hub(make_task: Callable[..., Delta], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub with a task of every kind, one of pairs, and ``topic`` in two versions; not to be changed."""
    hub = Hub.open(tmp_path_factory.mktemp("serve-hub") / "hub")
    for seed, (task, kind) in enumerate(KINDS.items()):
        hub.push(make_task(task, kind, seed), tags=("prod",))
    hub.push(make_task("pairs", seed=9, inputs={"pair": True}))
    hub.push(make_task("topic", seed=10))
    return Path(hub.store.url.removeprefix("file://"))


@pytest.fixture
def hub_folder(filled_hub: Path, tmp_path: Path) -> Path:
    """A copy of `filled_hub` of the test's own."""
    return Path(shutil.copytree(filled_hub, tmp_path / "hub"))


@pytest.fixture
def hub(hub_folder: Path) -> Hub:
    return Hub.open(hub_folder)


MakeWorker = Callable[..., Worker]


@pytest.fixture
def make_worker(serve_base: Base, hub_folder: Path) -> Iterator[MakeWorker]:
    """Workers that are closed at the end; a refresh happens when a test asks for it."""
    made: list[Worker] = []

    def make(
        replica: str = "local", *, live: dict[str, Any] | None = None, stuck_after: float = 60.0, **fields: Any
    ) -> Worker:
        settings = Live(**({"refresh": 3600.0} | (live or {})))
        chosen = {"hub": str(hub_folder), "base": str(serve_base.path), "base_name": "base", "device": "cpu"}
        config = Config(**(chosen | {"threads": 1, "live": settings} | fields))
        made.append(Worker(config, replica, stuck_after=stuck_after))
        return made[-1]

    yield make
    for worker in made:
        worker.close(drain=False, timeout=60)


@pytest.fixture
def worker(make_worker: MakeWorker) -> Worker:
    return make_worker()


class Gate:
    """Holds whoever calls ``through`` until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def through(self) -> None:
        self.reached.set()
        assert self._open.wait(60)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Opened at the end, so that no thread of a failed test waits for ever."""
    made = Gate()
    yield made
    made.open()


Hold = Callable[[Any, str], None]


@pytest.fixture
def hold(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Hold:
    """Makes every call of a method wait at the gate before it does what it did."""

    def put(holder: Any, method: str) -> None:
        held = getattr(holder, method)

        def slow(*arguments: Any, **more: Any) -> Any:
            gate.through()
            return held(*arguments, **more)

        monkeypatch.setattr(holder, method, slow)

    return put

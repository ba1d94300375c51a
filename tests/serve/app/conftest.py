"""One `deltahub serve` for all tests of the application: two replicas behind a gateway, on a tiny base."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `deltahub serve` has it, whose Ray these tests join

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Ray's own uses of pydantic, when it is imported
    import ray
    import ray.serve

from deltahub_serve.service import BUILDER, Launch, Service, prepare

from deltahub import Base, Delta, Hub, Mask, Predictor
from tests.serve.app.serving import Server, serving
from tests.tasks import random_task
from tests.tuning.conftest import write_text_base

TEXTS = ("w1 w2", "w3 w4 w5 w6", "w7", "w8 w9 w10 w1 w2 w3")


@dataclass
class World:
    """A hub with tasks ``task0`` to ``task5`` and what serves it by ``file``."""

    folder: Path
    base: Base
    mask: Mask
    hub: Hub
    deltas: dict[str, Delta]
    server: Server | None = None
    service: Service | None = None

    @property
    def file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def url(self) -> str:
        assert self.server is not None
        return self.server.url

    def ask(self, task: str, text: str, client: httpx.Client) -> dict[str, Any]:
        answer = client.post(f"{self.url}/tasks/{task}/predict", json={"inputs": [text]})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def replicas(self) -> dict[str, dict[str, Any]]:
        found = httpx.get(f"{self.url}/info", timeout=60).json()
        return {state["replica"]: state for state in found.get("replicas", ())}

    def push(self, task: str, seed: int, tags: tuple[str, ...] = ()) -> Delta:
        delta = random_task(self.base, self.mask, "text-classification", task=task, seed=seed)
        self.hub.push(delta, tags=tags)
        return delta

    def scores(self, delta: Delta, text: str) -> list[float]:
        """What a process of its own answers."""
        predictor = Predictor(self.base, self.mask)
        predictor.load(delta)
        return list(predictor.predict([text])[0].scores.values())  # type: ignore[union-attr]


def scores(reply: dict[str, Any]) -> list[float]:
    return list(reply["answers"][0]["scores"].values())


def clients(number: int, work: Callable[[int, httpx.Client], Any]) -> list[Any]:
    """``work`` by so many clients at a time, each with a connection of its own."""

    def one(client: int) -> Any:
        with httpx.Client(timeout=60) as connection:
            return work(client, connection)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


def configuration(world: World, **user_config: Any) -> str:
    live = {"refresh": 0.2, "cache_bytes": 1 << 24} | user_config
    return f"""
applications:
  - name: deltahub
    import_path: {BUILDER}
    args: {{hub: {world.folder / "hub"}, base: {world.folder / "base"}, threads: 1, replicas: 2, cpus: 0.5}}
    deployments:
      - {{name: Model, user_config: {live!r}}}
      - {{name: Gateway, ray_actor_options: {{num_cpus: 0}}}}
"""


@pytest.fixture(scope="session")
def hub_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("served")
    (folder / "base").mkdir()
    base = write_text_base(folder / "base")
    world = World(folder, base, Mask.build(base, 0.05), Hub.open(folder / "hub"), {})
    world.deltas = {f"task{n}": world.push(f"task{n}", seed=n) for n in range(6)}
    return world


@pytest.fixture(scope="package")  # Ray would slow every test that comes after it
def world(hub_world: World) -> Iterator[World]:
    """Ends with the test of SIGTERM."""
    hub_world.file.write_text(configuration(hub_world))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray leaves files and sockets to the garbage collector
        with serving("--config", str(hub_world.file)) as server:
            ray.init(server.ray(), logging_level="ERROR", log_to_driver=False)
            hub_world.server = server
            hub_world.service = prepare(Launch({}, hub_world.file), listening=int(server.url.rpartition(":")[2]))
            yield hub_world
            ray.shutdown()

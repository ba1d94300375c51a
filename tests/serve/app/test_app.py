"""The application in Ray Serve: two replicas behind a gateway."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from typing import Any

import httpx
import pytest
import ray
from deltahub_serve import cluster
from deltahub_serve.cluster import ServingError

from tests.serve.app.conftest import TEXTS, World, clients, scores
from tests.serve.app.serving import until

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]  # of Ray's own files and sockets


def test_every_answer_is_of_its_task_and_each_task_keeps_to_a_replica(world: World) -> None:
    expected = {(task, text): world.scores(delta, text) for task, delta in world.deltas.items() for text in TEXTS}

    def work(client: int, connection: httpx.Client) -> list[tuple[str, str]]:
        asked = [(f"task{(client + n) % 6}", TEXTS[n % 4]) for n in range(12)]
        found = []
        for task, text in asked:
            reply = world.ask(task, text, connection)
            assert (reply["task"], reply["digest"]) == (task, world.deltas[task].digest)
            assert scores(reply) == pytest.approx(expected[task, text], abs=1e-5)
            found.append((task, reply["replica"]))
        return found

    until(lambda: len(world.replicas()) == 2, "the gateway knows both replicas")
    homes = Counter(pair for found in clients(8, work) for pair in found)
    kept = sum(max(homes[task, replica] for replica in world.replicas()) for task in world.deltas)
    assert kept > 0.8 * 8 * 12, "tasks went to another replica without need, not only when one did not tell its load"


def test_a_killed_replica_loses_no_request(world: World) -> None:
    before = set(world.replicas())
    half = threading.Barrier(9)

    def work(client: int, connection: httpx.Client) -> int:
        for n in range(20):
            if n == 10:
                half.wait(120)
            task, text = f"task{(client + n) % 6}", TEXTS[n % 4]
            assert world.ask(task, text, connection)["digest"] == world.deltas[task].digest
        return 20

    def kill(pid: int) -> None:
        half.wait(120)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, args=(pid_of(sorted(before)[0]),))
    killer.start()
    assert sum(clients(8, work)) == 160
    killer.join()
    assert sorted(before)[0] not in world.replicas()


def actor(replica: str) -> Any:
    return ray.get_actor(f"SERVE_REPLICA::deltahub#Model#{replica}", namespace="serve")


def pid_of(replica: str) -> int:
    return int(ray.get(actor(replica).__ray_call__.remote(lambda _: os.getpid()), timeout=60))


def test_what_cannot_be_answered_is_refused_by_the_gateway_as_the_worker_says(world: World) -> None:
    answer = httpx.post(f"{world.url}/tasks/task99/predict", json={"inputs": ["w1"]}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (404, "unknown")
    assert answer.json()["error"]["near"]
    assert len(answer.headers.get_list("x-request-id")) == 1
    assert httpx.get(f"{world.url}/health", timeout=60).json()["wanted"] == 2


def test_a_push_and_a_moved_tag_are_served_without_a_restart(world: World) -> None:
    first = world.push("moving", seed=100, tags=("prod",))
    with httpx.Client(timeout=60) as client:
        question = f"{world.url}/tasks/moving:prod/predict", {"inputs": ["w1"]}
        until(lambda: client.post(question[0], json=question[1]).status_code == 200, "the new task is served")
        assert world.ask("moving:prod", "w1", client)["digest"] == first.digest
        second = world.push("moving", seed=101)
        until(lambda: world.ask("moving", "w1", client)["digest"] == second.digest, "the push is served")
        assert world.ask("moving:prod", "w1", client)["digest"] == first.digest
        world.hub.tag("moving", 2, "prod")
        until(lambda: world.ask("moving:prod", "w1", client)["digest"] == second.digest, "the tag is seen")


def test_an_application_that_cannot_start_says_why_in_one_line(world: World) -> None:
    assert world.service is not None
    schema = world.service.schema
    arguments = schema.applications[0].args | {"mask": "0" * 16, "replicas": 1, "gateways": 0}
    bad = schema.applications[0].model_copy(
        update={"name": "bad", "route_prefix": "/bad", "args": arguments, "deployments": []}
    )
    cluster.deploy(schema.model_copy(update={"applications": [*schema.applications, bad]}))
    with pytest.raises(ServingError, match=r"^no mask 0{16} of base .* in the hub: found \w+"):
        cluster.wait("bad", world.url, lambda _: None, 240)
    cluster.deploy(schema)
    with httpx.Client(timeout=60) as client:
        assert world.ask("task0", "w1", client)["task"] == "task0"


def test_a_replica_that_cannot_answer_any_more_is_replaced_and_the_other_answers_meanwhile(world: World) -> None:
    before = until(
        lambda: len(found := set(world.replicas())) == 2 and found,
        "both replicas run, one of them in place of the one that was killed",
    )
    broken = sorted(before)[0]

    def poison(held: Any) -> None:
        held._replica_impl._user_callable_wrapper._callable._worker._engine._broken = "poisoned by the test"

    ray.get(actor(broken).__ray_call__.remote(poison), timeout=60)
    with httpx.Client(timeout=60) as client:
        answered = {world.ask(f"task{n % 6}", "w1", client)["replica"] for n in range(12)}
    assert broken not in answered
    until(lambda: len(found := set(world.replicas())) == 2 and broken not in found, "a new replica")


def test_a_wrong_user_config_is_not_applied_and_the_replicas_stay(world: World) -> None:
    assert world.service is not None
    before = set(world.replicas())
    schema = world.service.schema.model_copy(deep=True)
    model = schema.applications[0].deployments[0]
    for budget in (-1, 54_321):
        model.user_config = {"cache_bytes": budget, "refresh": 0.2}
        cluster.deploy(schema)
    until(lambda: {state["budget"] for state in world.replicas().values()} == {54_321}, "the limit after the wrong one")
    until(lambda: set(world.replicas()) == before, "Ray lists the same replicas once it has updated each")

"""The application over a worker with a real base and real tasks: over HTTP the same numbers as without it."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from deltahub_serve.questions import Question, Reply
from deltahub_serve.web import application
from deltahub_serve.worker import Worker
from fastapi import FastAPI

from deltahub import Delta, Hub
from tests.serve.web.calls import call, post
from tests.serve.web.conftest import ADMIN_KEY, hashed

TEXT = "w1 w2 w39 w7"
LONG = " ".join(["w5"] * 100)


@pytest.fixture
def served(worker: Worker) -> FastAPI:
    return application(worker, worker.config.model_copy(update={"admin_keys": (hashed(ADMIN_KEY),)}))


def direct(worker: Worker, task: str, **more: Any) -> Reply:
    return asyncio.run(worker.ask(Question(task, (TEXT,), **more)))


def test_every_route_gives_what_the_worker_gives(served: FastAPI, worker: Worker) -> None:
    (topic,) = direct(worker, "topic").answers
    (labels,) = direct(worker, "labels").answers
    (score,) = direct(worker, "score").answers
    (words,) = direct(worker, "words").answers
    (vector,) = direct(worker, "vectors").answers
    (of_base,) = direct(worker, "base").answers

    def classified(task: str) -> Any:
        return post(served, "/v1/classify", {"model": task, "input": TEXT}).json()["data"][0]

    assert (classified("topic")["label"], classified("topic")["probs"]) == (topic.label, list(topic.scores.values()))
    assert classified("labels")["labels"] == list(labels.labels)
    assert classified("score")["score"] == score.score
    ranked = post(served, "/predict", {"model": "topic", "inputs": TEXT}).json()
    assert {each["label"]: each["score"] for each in ranked} == topic.scores
    assert [each["score"] for each in ranked] == sorted(topic.scores.values(), reverse=True)
    entities = post(served, "/token-classify", {"model": "words", "inputs": TEXT}).json()[0]
    assert [(each["entity"], each["score"], each["start"]) for each in entities] == [
        (word.label, word.score, word.start) for word in words.words
    ]
    for task, expected in (("vectors", vector), ("base", of_base)):
        body = {"model": task, "input": TEXT, "encoding_format": "base64"}
        found = post(served, "/v1/embeddings", body).json()["data"][0]["embedding"]
        assert base64.b64decode(found) == expected.vector.tobytes()
        embedded = post(served, "/embed", {"model": task, "inputs": TEXT}).json()[0]
        assert np.array(embedded, np.float32).tobytes() == expected.vector.tobytes()
    for task in ("topic", "labels", "score", "words", "vectors", "base"):
        found = post(served, f"/tasks/{task}/predict", {"inputs": TEXT}).json()
        assert found["answers"] == [_listed(direct(worker, task).answers[0].as_dict())]


def _listed(value: Any) -> Any:
    """Tuples as JSON has them."""
    if isinstance(value, dict):
        return {name: _listed(held) for name, held in value.items()}
    return [_listed(held) for held in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("path", "body", "answered"),
    [
        ("/v1/classify", {"model": "pairs", "input": [["w1", "w2"]]}, True),
        ("/predict", {"model": "pairs", "inputs": ["w1", "w2"]}, True),
        ("/tasks/pairs/predict", {"inputs": "w1", "pairs": "w2"}, True),
        ("/v1/classify", {"model": "pairs", "input": "w1"}, False),
        ("/predict", {"model": "topic", "inputs": ["w1", "w2"]}, False),
        ("/tasks/topic/predict", {"inputs": [["w1", "w2"]]}, False),
    ],
)
def test_pairs_go_to_tasks_that_compare(served: FastAPI, path: str, body: object, answered: bool) -> None:
    answer = post(served, path, body)
    assert answer.status_code == (200 if answered else 422 if path == "/predict" else 400), answer.text


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/classify", {"model": "topic", "input": LONG}, 400),
        ("/v1/embeddings", {"model": "vectors", "input": LONG}, 400),
        ("/predict", {"model": "topic", "inputs": LONG}, 413),
        ("/embed", {"model": "base", "inputs": LONG}, 413),
        ("/token-classify", {"model": "words", "inputs": LONG}, 413),
        ("/tasks/topic/predict", {"inputs": LONG, "truncate": False}, 413),
    ],
)
def test_what_is_too_long_is_refused_until_it_may_be_cut(
    served: FastAPI, path: str, body: dict[str, object], status: int
) -> None:
    answer = post(served, path, body)
    assert answer.status_code == status
    for said in ("102", "32", "truncate"):
        assert said in answer.text
    assert post(served, path, body | {"truncate": True}).status_code == 200


def test_the_native_route_cuts_unless_told_not_to(served: FastAPI) -> None:
    assert post(served, "/tasks/topic/predict", {"inputs": LONG}).json()["tokens"] == [32]


@pytest.mark.parametrize(
    "name", ["topic@9", "topic:staging", "topik", "../topic", "a/b/c", "topic@0", "x" * 400, " ", "é"]
)
def test_names_that_there_are_not(served: FastAPI, name: str) -> None:
    for path, body in (("/v1/classify", {"model": name, "input": "w1"}), ("/predict", {"model": name, "inputs": "w1"})):
        assert post(served, path, body).status_code == 404
    assert call(served, "GET", f"/v1/models/{quote(name, safe='')}").status_code == 404


def test_a_task_of_another_kind_is_refused(served: FastAPI) -> None:
    assert post(served, "/v1/embeddings", {"model": "topic", "input": "w1"}).status_code == 400
    assert post(served, "/token-classify", {"model": "topic", "inputs": "w1"}).status_code == 400


def test_versions_and_tags_answer_as_themselves(served: FastAPI) -> None:
    models = {
        name: post(served, "/v1/classify", {"model": name, "input": TEXT}).json()["model"]
        for name in ("topic", "topic@1", "topic:prod")
    }
    assert models == {"topic": "topic@2", "topic@1": "topic@1", "topic:prod": "topic@1"}
    card = call(served, "GET", "/v1/models/topic").json()
    assert (card["versions"], card["tags"]) == ([1, 2], {"prod": 1})


def test_a_push_is_served_after_the_admin_asked_for_it(
    served: FastAPI, hub: Hub, make_task: Callable[..., Delta]
) -> None:
    def version() -> str:
        return str(post(served, "/v1/classify", {"model": "topic", "input": TEXT}).json()["model"])

    admin = {"authorization": f"Bearer {ADMIN_KEY}"}
    assert version() == "topic@2"
    hub.push(make_task("topic", seed=20))
    assert version() == "topic@2"
    assert post(served, "/admin/refresh", {"names": ["topic"]}, headers=admin).json() == {
        "changed": {"local": ["topic"]}
    }
    assert version() == "topic@3"
    assert post(served, "/admin/pin", {"name": "score"}, headers=admin).json() == {"pinned": {"local": "score@1"}}
    assert call(served, "GET", "/admin/state", headers=admin).json()["replicas"][0]["pinned"] == ["score"]
    assert post(served, "/admin/unpin", {"name": "score"}, headers=admin).json() == {"unpinned": {"local": True}}
    assert post(served, "/admin/evict", {"task": "topic"}, headers=admin).json()["evicted"]["local"] >= 1
    assert post(served, "/admin/pin", {"name": "nothing"}, headers=admin).status_code == 404


def test_when_the_hub_is_gone_the_server_goes_on_and_says_so(served: FastAPI, hub_folder: Path, worker: Worker) -> None:
    body = {"model": "topic", "input": TEXT}
    before = post(served, "/v1/classify", body).json()["data"]
    shutil.rmtree(hub_folder)
    post(served, "/admin/refresh", {}, headers={"authorization": f"Bearer {ADMIN_KEY}"})
    assert post(served, "/v1/classify", body).json()["data"] == before
    health = call(served, "GET", "/health")
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    assert "hub" in health.json()["problems"][0]


def test_metrics_are_of_the_replica_and_of_the_server(served: FastAPI) -> None:
    post(served, "/v1/classify", {"model": "topic", "input": TEXT})
    text = call(served, "GET", "/metrics").text
    assert 'replica="local"' in text
    assert 'deltahub_http_requests_total{method="POST",route="/v1/classify",status="200"} 1.0' in text


def test_a_worker_that_was_closed_is_unavailable(served: FastAPI, worker: Worker) -> None:
    worker.close()
    answer = post(served, "/v1/classify", {"model": "topic", "input": TEXT})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


def test_many_clients_of_many_tasks_each_get_their_own_answer(served: FastAPI, worker: Worker) -> None:
    expected = {name: direct(worker, name).answers[0].score for name in ("topic@1", "topic@2", "score")}

    async def run() -> None:
        transport = httpx.ASGITransport(served)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def one(name: str) -> None:
                answer = await client.post(f"/tasks/{name}/predict", json={"inputs": TEXT})
                found = answer.json()
                assert f"{found['task']}@{found['version']}".startswith(name)
                assert found["answers"][0]["score"] == pytest.approx(expected[name], abs=1e-5)

            await asyncio.gather(*(one(name) for _ in range(20) for name in expected))

    asyncio.run(run())

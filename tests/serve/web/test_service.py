"""How the server says that it is, and what whoever runs it may do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from deltahub_serve.questions import Refusal
from deltahub_serve.web import service
from fastapi import FastAPI

from tests.serve.web.calls import call, post
from tests.serve.web.canned import Canned, state
from tests.serve.web.conftest import ADMIN_KEY


@pytest.mark.parametrize(
    ("states", "status", "said"),
    [
        ([state("one")], "ok", 200),
        ([state("one", hub="no route to /secret")], "degraded", 200),
        ([state("one"), state("two", broken="poisoned")], "degraded", 200),
        ([state("one", broken="poisoned")], "down", 503),
        ([], "down", 503),
    ],
)
def test_health(app: FastAPI, backend: Canned, states: list[object], status: str, said: int) -> None:
    backend.found = states  # type: ignore[assignment]
    answer = call(app, "GET", "/health")
    assert (answer.status_code, answer.json()["status"]) == (said, status)
    assert bool(answer.json()["problems"]) is (status != "ok")
    assert "secret" not in answer.text


def test_health_is_degraded_while_fewer_replicas_run_than_should(app: FastAPI) -> None:
    app.state.wanted = 2
    answer = call(app, "GET", "/health")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "degraded", "problems": ["1 replicas run where 2 should"], "replicas": 1, "healthy": 1, "wanted": 2
    }  # fmt: skip


def test_health_without_any_replica(app: FastAPI, backend: Canned) -> None:
    backend.refusal = Refusal("unavailable", "no replica is running")
    assert call(app, "GET", "/health").status_code == 503


def test_health_of_a_replica_that_does_not_say(app: FastAPI, backend: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltahub_serve.web.service._PATIENCE", 0.01)
    backend.hold = True
    assert call(app, "GET", "/health").status_code == 503


def test_info_tells_what_is_served(app: FastAPI) -> None:
    found = call(app, "GET", "/info").json()
    assert (found["model_id"], found["model_sha"], found["model_dtype"]) == ("base", "b" * 64, "float32")
    assert found["max_client_batch_size"] == 4
    assert found["replicas"][0]["loaded"] == {"topic@3": 100}
    assert found["replicas"][0]["mixing"] == {"mode": "auto", "unmixed": None}


def test_metrics_count_requests_by_route_and_not_by_what_clients_make_up(app: FastAPI) -> None:
    post(app, "/tasks/topic/predict", {"inputs": "a"})
    call(app, "GET", "/made-up/1")
    call(app, "GET", "/made-up/2")
    call(app, "FROB", "/tasks")
    text = call(app, "GET", "/metrics").text
    assert 'deltahub_http_requests_total{method="POST",route="/tasks/{task}/predict",status="200"} 1.0' in text
    assert 'deltahub_http_requests_total{method="GET",route="other",status="404"} 2.0' in text
    assert 'method="other"' in text
    assert 'deltahub_http_request_seconds_count{route="/tasks/{task}/predict"} 1.0' in text
    assert "deltahub_up" in text
    assert "made-up" not in text
    assert "FROB" not in text


def test_metrics_of_replicas_are_put_together_outside_the_loop(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    merge, loops = service.merge, []

    def look(texts: Mapping[str, str]) -> bytes:
        loops.append(asyncio._get_running_loop())
        return merge(texts)

    monkeypatch.setattr(service, "merge", look)
    assert call(app, "GET", "/metrics").status_code == 200
    assert loops == [None]


@pytest.mark.parametrize(
    ("path", "body", "called", "expected"),
    [
        ("/admin/refresh", None, ("refresh", None), {"changed": {"one": ["topic"]}}),
        ("/admin/refresh", {}, ("refresh", None), {"changed": {"one": ["topic"]}}),
        ("/admin/refresh", {"names": ["topic"]}, ("refresh", ("topic",)), {"changed": {"one": ["topic"]}}),
        ("/admin/pin", {"name": "topic"}, ("pin", "topic"), {"pinned": {"one": "topic@3"}}),
        ("/admin/unpin", {"name": "topic"}, ("unpin", "topic"), {"unpinned": {"one": True}}),
        ("/admin/evict", {"task": None}, ("evict", None), {"evicted": {"one": 2}}),
        ("/admin/evict", {"task": "topic"}, ("evict", "topic"), {"evicted": {"one": 2}}),
    ],
)
def test_admin_routes(
    guarded: FastAPI, backend: Canned, path: str, body: object, called: tuple[object, ...], expected: object
) -> None:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    answer = (
        call(guarded, "POST", path, headers=headers) if body is None else post(guarded, path, body, headers=headers)
    )
    assert answer.json() == expected
    assert backend.calls == [called]


def test_the_start_page_names_every_route_and_tells_no_more(guarded: FastAPI) -> None:
    found = call(guarded, "GET", "/").json()
    assert {"/v1/classify", "/tasks/{task}/predict", "/health"} <= set(found["routes"])
    assert set(found) == {"name", "version", "routes", "openapi"}

"""Who may ask, and who may change what is served."""

from __future__ import annotations

import logging

import pytest
from deltahub_serve.config import Config
from deltahub_serve.web import application
from fastapi import FastAPI

from tests.serve.web.calls import call, listening, talk
from tests.serve.web.canned import Canned
from tests.serve.web.conftest import ADMIN_KEY, API_KEY, hashed

API, ADMIN = f"Bearer {API_KEY}", f"Bearer {ADMIN_KEY}"
OPEN = ["/", "/health"]
ASKING = ["/v1/models", "/tasks", "/info", "/metrics", "/openapi.json", "/nothing"]


def status(app: FastAPI, path: str, authorization: str | None) -> int:
    return call(app, "GET", path, headers={} if authorization is None else {"authorization": authorization}).status_code


@pytest.mark.parametrize("path", OPEN)
def test_what_needs_no_key(guarded: FastAPI, path: str) -> None:
    assert status(guarded, path, None) == 200


@pytest.mark.parametrize("path", ASKING)
def test_everything_else_needs_one_of_the_keys(guarded: FastAPI, path: str) -> None:
    found = 404 if path == "/nothing" else 200
    wrong = (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Basic {API_KEY}",
        API_KEY,
        f"{API} x",
        f"Bearer {hashed(API_KEY)}",
    )
    assert {status(guarded, path, authorization) for authorization in wrong} == {401}
    right = (API, ADMIN, "Bearer another", f"bearer {API_KEY}")
    assert {status(guarded, path, authorization) for authorization in right} == {found}


@pytest.mark.parametrize(("authorization", "found"), [(None, 401), ("Bearer wrong", 401), (API, 403), (ADMIN, 200)])
def test_admin_routes_need_an_admin_key(guarded: FastAPI, authorization: str | None, found: int) -> None:
    assert status(guarded, "/admin/state", authorization) == found


def test_without_an_admin_key_nobody_is_an_admin(backend: Canned, config: Config, app: FastAPI) -> None:
    only_api = application(backend, config.model_copy(update={"api_keys": (hashed(API_KEY),)}))
    for shut in (app, only_api):
        answer = call(shut, "GET", "/admin/state", headers={"authorization": API})
        assert answer.status_code == 403
        assert "start the server with one" in answer.json()["error"]["message"]
        assert backend.calls == []


def test_without_an_api_key_everybody_may_ask(backend: Canned, config: Config) -> None:
    app = application(backend, config.model_copy(update={"admin_keys": (hashed(ADMIN_KEY),)}))
    assert status(app, "/tasks", None) == 200
    assert status(app, "/admin/state", None) == 401


def test_below_a_prefix_the_same_keys_are_needed(guarded: FastAPI) -> None:
    guarded.root_path = "/models"
    for path in ("/admin/state", "/models/admin/state"):
        assert status(guarded, path, None) == 401
        assert status(guarded, path, API) == 403
        assert status(guarded, path, ADMIN) == 200
    assert status(guarded, "/models/health", None) == 200
    assert status(guarded, "/models/tasks", None) == 401


def test_what_is_turned_away_is_never_read(guarded: FastAPI, backend: Canned) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100\r\n\r\n"
    with listening(guarded) as port:
        answer = talk(port, head)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b'www-authenticate: Bearer realm="deltahub"' in answer
    assert b'"code":"invalid_api_key"' in answer


def test_two_authorization_headers_are_none(guarded: FastAPI) -> None:
    answer = call(guarded, "GET", "/tasks", headers=[("authorization", API), ("authorization", API)])
    assert answer.status_code == 401


def test_keys_are_never_logged(guarded: FastAPI, backend: Canned, caplog: pytest.LogCaptureFixture) -> None:
    backend.error = RuntimeError("boom")
    with caplog.at_level(logging.DEBUG):
        call(guarded, "GET", "/tasks", headers={"authorization": API})
        call(guarded, "GET", "/tasks", headers={"authorization": "Bearer wrong-key"})
    assert "boom" in caplog.text
    assert API_KEY not in caplog.text
    assert "wrong-key" not in caplog.text

"""Every reason, in the words and with the status of the family that was asked."""

from __future__ import annotations

import logging

import pytest
from deltahub_serve.questions import REASONS, Refusal
from fastapi import FastAPI

from tests.serve.web.calls import call, post
from tests.serve.web.canned import Canned

ASKED = {
    "native": ("/tasks/topic/predict", {"inputs": "a"}),
    "openai": ("/v1/classify", {"model": "topic", "input": "a"}),
    "tei": ("/predict", {"model": "topic", "inputs": "a"}),
}
STATUS = {
    "unknown": (404, 404, 404),
    "kind": (400, 400, 400),
    "invalid": (400, 400, 422),
    "too_long": (413, 400, 413),
    "too_many": (413, 400, 413),
    "unusable": (424, 424, 424),
    "overloaded": (429, 429, 429),
    "timeout": (408, 408, 408),
    "unavailable": (503, 503, 503),
    "failed": (500, 500, 424),
}
OPENAI = {
    "unknown": ("invalid_request_error", "model", "model_not_found"),
    "kind": ("invalid_request_error", "model", "kind"),
    "invalid": ("invalid_request_error", None, "invalid"),
    "too_long": ("invalid_request_error", None, "context_length_exceeded"),
    "too_many": ("invalid_request_error", None, "too_many"),
    "unusable": ("server_error", "model", "unusable"),
    "overloaded": ("rate_limit_error", None, "rate_limit_exceeded"),
    "timeout": ("timeout_error", None, "timeout"),
    "unavailable": ("server_error", None, "unavailable"),
    "failed": ("server_error", None, "failed"),
}
TEI = {"unusable": "Backend", "overloaded": "Overloaded", "timeout": "Backend", "unavailable": "Unhealthy"} | {
    "failed": "Backend"
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_refusal_is_told_in_the_words_of_each_family(app: FastAPI, backend: Canned, reason: str) -> None:
    backend.refusal = Refusal(reason, "why not", retry_after=2.2, near=("tonic",))
    answers = [post(app, *ASKED[family]) for family in ("native", "openai", "tei")]
    assert tuple(answer.status_code for answer in answers) == STATUS[reason]
    assert {answer.headers["retry-after"] for answer in answers} == {"3"}
    native, openai, tei = (answer.json() for answer in answers)
    assert native == {"error": {"reason": reason, "message": "why not", "near": ["tonic"], "retry_after": 2.2}}
    kind, param, code = OPENAI[reason]
    told = "why not; did you mean tonic?"
    assert openai == {"error": {"message": told, "type": kind, "param": param, "code": code}}
    assert tei == {"error": told, "error_type": TEI.get(reason, "Validation")}


@pytest.mark.parametrize(("seconds", "header"), [(0.001, "1"), (1.0, "1"), (1.1, "2"), (None, None)])
def test_retry_after_is_whole_seconds(app: FastAPI, backend: Canned, seconds: float | None, header: str | None) -> None:
    backend.refusal = Refusal("overloaded", "later", retry_after=seconds)
    assert post(app, *ASKED["native"]).headers.get("retry-after") == header


def test_names_in_the_message_are_not_said_twice(app: FastAPI, backend: Canned) -> None:
    backend.refusal = Refusal("unknown", "no task; did you mean tonic?", near=("tonic",))
    assert post(app, *ASKED["openai"]).json()["error"]["message"] == "no task; did you mean tonic?"


@pytest.mark.parametrize("family", ASKED)
def test_what_nobody_foresaw_is_logged_and_told_without_details(
    app: FastAPI, backend: Canned, caplog: pytest.LogCaptureFixture, family: str
) -> None:
    backend.error = RuntimeError("secret detail")
    with caplog.at_level(logging.ERROR, "deltahub_serve.web"):
        answer = post(app, *ASKED[family], headers={"x-request-id": "mine-7"})
    assert answer.status_code == 500
    assert "mine-7" in answer.text
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "mine-7"
    assert "secret detail" in caplog.text
    assert "mine-7" in caplog.text
    body = answer.json()
    assert body["error_type"] == "Backend" if family == "tei" else body["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "where"),
    [
        ("GET", "/nothing", 404, ("error", "reason")),
        ("GET", "/v1/nothing", 404, ("error", "code")),
        ("GET", "/docs", 404, ("error", "reason")),
        ("DELETE", "/tasks", 405, ("error", "reason")),
        ("GET", "/tasks/topic/predict", 405, ("error", "reason")),
        ("GET", "/v1/classify", 405, ("error", "code")),
        ("GET", "/embed", 405, ("error_type",)),
        ("TRACE", "/v1/models", 405, ("error", "code")),
    ],
)
def test_unknown_routes_and_methods(app: FastAPI, method: str, path: str, status: int, where: tuple[str, ...]) -> None:
    answer = call(app, method, path)
    assert answer.status_code == status
    found = answer.json()
    for name in where:
        found = found[name]
    assert isinstance(found, str)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(("path", "status"), [("/v1/models/topik", 404), ("/tasks/topik", 404)])
def test_unknown_cards_name_what_is_like_them(app: FastAPI, path: str, status: int) -> None:
    answer = call(app, "GET", path)
    assert answer.status_code == status
    assert "topic" in answer.text

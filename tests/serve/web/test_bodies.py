"""What is no request of a route is refused in one short line, whatever it is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from deltahub_serve.config import Config
from fastapi import FastAPI

from tests.serve.web.calls import call, post
from tests.serve.web.canned import Canned

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "JSON, found at line 1 column 2"),
        (b'{"inputs": "a"} x', "Extra data"),
        (b'{"inputs": "a", "inputs": "b"}', "each name once"),
        (b'{"inputs": "a", "timeout": NaN}', "no NaN"),
        (b'{"inputs": "a", "timeout": 1e999}', "timeout: expected seconds"),
        (b'{"inputs": "a", "timeout": 1%s}' % (b"0" * 1500), "timeout: expected seconds"),
        (b'{"inputs": "\xff"}', "UTF-8, found byte 0xff at 12"),
        (b'{"inputs": "\\ud800"}', "half a surrogate pair"),
        (b'{"\\udfff": "a"}', "half a surrogate pair"),
        ('{"inputs": "a"}'.encode("utf-16"), "UTF-8"),
        (b'\xef\xbb\xbf{"inputs": "a"}', "BOM"),
        (b"", "a JSON object, found nothing"),
        (b"null", "a JSON object, found nothing"),
        (b"[1]", "a JSON object, found a list of 1 numbers"),
        (b'"a"', "a JSON object, found a text of 1 characters"),
    ],
)
def test_malformed_bodies(app: FastAPI, backend: Canned, body: bytes, said: str) -> None:
    answer = call(app, "POST", "/tasks/topic/predict", content=body, headers=JSON)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert backend.questions == []


@pytest.mark.parametrize("body", [b"[" * 500_000, b'{"a":' * 200_000, b"1" * 500_000])
def test_bodies_that_are_meant_to_break_a_parser(backend: Canned, config: Config, body: bytes) -> None:
    from deltahub_serve.web import application

    app = application(backend, config.model_copy(update={"max_body": 2_000_000}))
    answer = call(app, "POST", "/v1/embeddings", content=body, headers=JSON)
    assert answer.status_code == 400
    assert len(answer.content) < 500


def test_a_surrogate_pair_is_a_character(app: FastAPI, backend: Canned) -> None:
    assert call(app, "POST", "/tasks/topic/predict", content=b'{"inputs": "\\ud83d\\ude00"}', headers=JSON).is_success
    assert backend.questions[0].texts == ("😀",)


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=UTF-8", 200),
        ("application/vnd.mine+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/json; charset=latin-1", 415),
        (None, 415),
    ],
)
def test_the_content_type_says_json(app: FastAPI, told: str | None, status: int) -> None:
    headers = {} if told is None else {"content-type": told}
    answer = call(app, "POST", "/tasks/topic/predict", content=b'{"inputs": "a"}', headers=headers)
    assert answer.status_code == status


FIELDS = [
    ("/v1/classify", {}, 400, "input", "found nothing"),
    ("/v1/classify", {"input": 5}, 400, "input", "found the number 5"),
    ("/v1/classify", {"input": []}, 400, "input", "found an empty list"),
    ("/v1/classify", {"input": ["a", ["b", "c"]]}, 400, "input", "2 lists and texts"),
    ("/v1/classify", {"input": [["a"]]}, 400, "input", "[first, second]"),
    ("/v1/classify", {"input": {"text": "a"}}, 400, "input", "found an object"),
    ("/v1/classify", {"input": "a", "model": ""}, 400, "model", "found an empty text"),
    ("/v1/classify", {"input": "a", "model": 7}, 400, "model", "sst2@3"),
    ("/v1/classify", {"input": "a", "truncate": "yes"}, 400, "truncate", "true to cut"),
    ("/v1/classify", {"input": "a"}, 400, "model", "no default"),
    ("/v1/classify", {"input": "a", "temperature": 1}, 400, "temperature", "is no field"),
    ("/v1/embeddings", {"model": "vectors", "input": [1, 2]}, 400, "input", "token ids are not taken"),
    ("/v1/embeddings", {"model": "vectors", "input": [[1, 2]]}, 400, "input", "token ids are not taken"),
    ("/v1/embeddings", {"model": "vectors", "input": "a", "encoding_format": "hex"}, 400, "encoding_format", "base64"),
    ("/v1/embeddings", {"model": "vectors", "input": "a", "dimensions": 3}, 400, "dimensions", "expected 2"),
    ("/predict", {"inputs": ["a", "b", "c"]}, 422, "inputs", "a pair [first, second]"),
    ("/predict", {"inputs": []}, 422, "inputs", "found an empty list"),
    ("/predict", {"inputs": "a", "raw_scores": True}, 422, "raw_scores", "only probabilities"),
    ("/predict", {"model": "topic", "inputs": [["a"], ["a", "b"]]}, 422, "inputs", "found both"),
    ("/predict", {"inputs": "a"}, 422, "model", "no default"),
    ("/predict", {"inputs": "a", "truncation_direction": "Left"}, 422, "truncation_direction", "Right"),
    ("/embed", {"inputs": [["a"]]}, 422, "inputs", "found a list of 1 lists"),
    ("/embed", {"model": "vectors", "inputs": "a", "dimensions": 9}, 422, "dimensions", "found 9"),
    ("/token-classify", {"inputs": [[]]}, 422, "inputs", "lists of their words"),
    ("/tasks/topic/predict", {"inputs": "a", "pairs": ["b", "c"]}, 400, "pairs", "expected 1"),
    ("/tasks/topic/predict", {"inputs": "a", "timeout": -1}, 400, "timeout", "found the number -1"),
    ("/tasks/topic/predict", {"inputs": "a", "timeout": True}, 400, "timeout", "found true"),
    ("/tasks/topic/predict", {"inputs": {"a": 1}}, 400, "inputs", "found an object"),
    ("/tasks/topic/predict", {"inputs": ["a"] * 5}, 413, "", "at most 4 texts in a request, found 5"),
    ("/v1/classify", {"model": "topic", "input": ["a"] * 5}, 400, "", "at most 4 texts"),
    ("/embed", {"model": "vectors", "inputs": ["a"] * 5}, 413, "", "at most 4 texts"),
]


@pytest.mark.parametrize(("path", "body", "status", "field", "said"), FIELDS)
def test_a_wrong_field_is_named(app: FastAPI, path: str, body: object, status: int, field: str, said: str) -> None:
    answer = post(app, path, body)
    error = answer.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert answer.status_code == status
    assert message.strip("'").startswith(field)
    assert said in message


def test_errors_do_not_repeat_what_was_sent(backend: Canned, config: Config) -> None:
    from deltahub_serve.web import application

    app = application(backend, config.model_copy(update={"max_body": 2_000_000}))
    for body in ({"inputs": "a", "x" * 100_000: 1}, {"inputs": [1] * 300_000}, {"inputs": "a", "timeout": "z" * 10**6}):
        answer = post(app, "/tasks/topic/predict", body)
        assert answer.status_code == 400
        assert len(answer.content) < 500


@pytest.mark.parametrize("length", [None, "5", "5000"])
def test_a_body_of_too_many_bytes(app: FastAPI, backend: Canned, length: str | None) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 100

    headers = JSON | ({} if length is None else {"content-length": length})
    answer = call(app, "POST", "/v1/classify", content=body(), headers=headers)
    assert answer.status_code == 413
    assert "at most 2000 bytes" in answer.json()["error"]["message"]
    assert backend.questions == []


def test_a_body_of_just_the_most_bytes(app: FastAPI) -> None:
    body = json.dumps({"model": "topic", "input": "a"}).encode().ljust(2000)
    assert call(app, "POST", "/v1/classify", content=body, headers=JSON).status_code == 200

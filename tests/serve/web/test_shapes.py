"""Each route asks what it was asked, and answers in the shape of its family."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest
from deltahub_serve.config import Config
from deltahub_serve.questions import Question
from deltahub_serve.web import application
from fastapi import FastAPI

from tests.serve.web.calls import call, post
from tests.serve.web.canned import LABELS, Canned

CLASSIFIERS = ("text-classification", "multi-label-classification", "regression")
TOKENS, VECTORS = ("token-classification",), ("embeddings",)

ASKED = [
    ("/v1/classify", {"model": "topic@3", "input": "a"}, Question("topic@3", ("a",), None, CLASSIFIERS, False)),
    ("/classify", {"model": "tags:p", "input": ["a", "b"], "truncate": True, "user": "me"},
     Question("tags:p", ("a", "b"), None, CLASSIFIERS, True)),
    ("/classify", {"model": "topic", "input": [["a", "b"], ["c", "d"]]},
     Question("topic", ("a", "c"), ("b", "d"), CLASSIFIERS, False)),
    ("/classify", {"model": "topic", "input": {"text": "a", "text_pair": "b"}},
     Question("topic", ("a",), ("b",), CLASSIFIERS, False)),
    ("/classify", {"model": "topic", "input": [{"text": "a", "text_pair": "b"}, {"text": "c", "text_pair": ""}]},
     Question("topic", ("a", "c"), ("b", ""), CLASSIFIERS, False)),
    ("/v1/embeddings", {"model": "vectors", "input": ["a", ""], "dimensions": 2},
     Question("vectors", ("a", ""), None, VECTORS, False)),
    ("/predict", {"model": "topic", "inputs": "a"}, Question("topic", ("a",), None, CLASSIFIERS, False)),
    ("/predict", {"model": "topic", "inputs": ["a"]}, Question("topic", ("a",), None, CLASSIFIERS, False)),
    ("/predict", {"model": "topic", "inputs": ["a", "b"], "raw_scores": False, "truncate": True},
     Question("topic", ("a",), ("b",), CLASSIFIERS, True)),
    ("/predict", {"model": "topic", "inputs": [["a"], ["b"]], "truncate": None},
     Question("topic", ("a", "b"), None, CLASSIFIERS, False)),
    ("/predict", {"model": "topic", "inputs": [["a", "b"]]}, Question("topic", ("a",), ("b",), CLASSIFIERS, False)),
    ("/embed", {"model": "vectors", "inputs": ["a"], "prompt_name": None, "truncation_direction": "right"},
     Question("vectors", ("a",), None, VECTORS, False)),
    ("/token-classify", {"model": "ner", "inputs": "a b"}, Question("ner", ("a b",), None, TOKENS, False)),
    ("/token-classify", {"model": "ner", "inputs": [["a", "b"], ["c"]]},
     Question("ner", (("a", "b"), ("c",)), None, TOKENS, False)),
    ("/tasks/stars/predict", {"inputs": "a"}, Question("stars", ("a",))),
    ("/tasks/ner@2/predict", {"inputs": [["a"]], "truncate": False, "timeout": 2},
     Question("ner@2", (("a",),), None, (), False, 2.0)),
    ("/tasks/topic:prod/predict", {"inputs": "a", "pairs": "b"}, Question("topic:prod", ("a",), ("b",))),
    ("/tasks/topic/predict", {"inputs": ["a", "b"], "pairs": ["c", "d"]}, Question("topic", ("a", "b"), ("c", "d"))),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "question"), ASKED)
def test_a_request_becomes_a_question(
    app: FastAPI, backend: Canned, path: str, body: object, question: Question
) -> None:
    answer = post(app, path, body)
    assert answer.status_code == 200, answer.text
    assert backend.questions == [question]


def test_classify_has_the_shape_of_vllm(app: FastAPI) -> None:
    found = post(app, "/v1/classify", {"model": "topic", "input": ["a", "b"]}).json()
    assert found.pop("id").startswith("classify-")
    assert found.pop("created") > 1_700_000_000
    item = {"label": "green", "probs": [0.2, 0.7, 0.1], "num_classes": 3}
    assert found == {
        "object": "list", "model": "topic@3", "data": [{"index": 0, **item}, {"index": 1, **item}],
        "usage": {"prompt_tokens": 10, "total_tokens": 10},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "item"),
    [
        ("tags", {"label": "green", "probs": [0.2, 0.7, 0.1], "num_classes": 3, "labels": ["green"]}),
        ("stars", {"label": None, "probs": [], "num_classes": 0, "score": 2.5}),
    ],
)
def test_classify_tells_labels_and_scores(app: FastAPI, task: str, item: dict[str, object]) -> None:
    assert post(app, "/classify", {"model": task, "input": "a"}).json()["data"] == [{"index": 0, **item}]


def test_embeddings_keep_every_bit_in_both_encodings(app: FastAPI, backend: Canned) -> None:
    backend.vector = np.array([0.1, -1e-30, 3.4e38, math.pi], np.float32)
    for encoding in ("float", "base64"):
        body = {"model": "vectors", "input": "a", "encoding_format": encoding}
        found = post(app, "/v1/embeddings", body).json()
        assert found["model"] == "vectors@3"
        assert found["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
        (item,) = found["data"]
        assert (item["object"], item["index"]) == ("embedding", 0)
        given = item["embedding"]
        vector = np.frombuffer(base64.b64decode(given), "<f4") if encoding == "base64" else np.array(given, np.float32)
        assert vector.tobytes() == backend.vector.tobytes()


RANKED = [{"score": 0.7, "label": "green"}, {"score": 0.2, "label": "red"}, {"score": 0.1, "label": "blue"}]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": "topic", "inputs": "a"}, RANKED),
        ({"model": "topic", "inputs": ["a", "b"]}, RANKED),
        ({"model": "tags", "inputs": [["a"], ["b"]]}, [RANKED, RANKED]),
        ({"model": "stars", "inputs": [["a"]]}, [[{"score": 2.5, "label": "score"}]]),
    ],
)
def test_predict_ranks_the_labels_as_tei_does(app: FastAPI, body: object, expected: object) -> None:
    assert post(app, "/predict", body).json() == expected


@pytest.mark.parametrize(
    ("vector", "normalize", "expected"),
    [
        ([3, 4], None, [0.6, 0.8]),
        ([3, 4], True, [0.6, 0.8]),
        ([3, 4], False, [3.0, 4.0]),
        ([0.6, 0.8], True, [0.6, 0.8]),
        ([0, 0], True, [0.0, 0.0]),
        ([0.6, 0.8], False, None),
    ],
)
def test_embed_normalizes_what_is_not(
    app: FastAPI, backend: Canned, vector: list[float], normalize: bool | None, expected: list[float] | None
) -> None:
    backend.vector = np.array(vector, np.float32)
    answer = post(app, "/embed", {"model": "vectors", "inputs": "a", "normalize": normalize})
    if expected is None:
        assert answer.status_code == 422
        assert "normalize: expected true" in answer.json()["error"]
    else:
        assert answer.json() == [np.array(expected, np.float32).tolist()]


def test_token_classify_has_the_names_of_transformers(app: FastAPI) -> None:
    found = post(app, "/token-classify", {"model": "ner", "inputs": ["ab", "d"]}).json()
    assert found == [
        [{"entity": "red", "score": 0.9, "index": 0, "word": "ab", "start": 0, "end": 2}],
        [{"entity": "red", "score": 0.9, "index": 0, "word": "d", "start": 0, "end": 1}],
    ]


@pytest.mark.parametrize("task", ["topic", "tags", "stars", "ner", "vectors"])
def test_the_native_route_tells_all_that_is_known(app: FastAPI, task: str) -> None:
    found = post(app, f"/tasks/{task}/predict", {"inputs": ["a"]}).json()
    assert (found["task"], found["version"], found["digest"], found["replica"]) == (task, 3, "d" * 64, "one")
    assert found["labels"] == list(LABELS)
    assert found["tokens"] == [5]
    assert found["seconds"] == {"prepare": 0.001, "queue": 0.002, "swap": 0.0003, "run": 0.004}
    assert len(found["answers"]) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/classify", {"model": "topic", "input": "a"}),
        ("/embed", {"model": "vectors", "inputs": "a"}),
        ("/tasks/ner/predict", {"inputs": "a"}),
    ],
)
def test_headers_tell_who_answered_and_where_the_time_went(app: FastAPI, path: str, body: object) -> None:
    headers = post(app, path, body).headers
    assert (headers["x-task-version"], headers["x-task-digest"]) == ("3", "d" * 64)
    assert headers["x-task"] in ("topic", "vectors", "ner")
    times = [headers[f"x-{step}-time"] for step in ("tokenization", "queue", "swap", "inference")]
    assert times == ["1.000", "2.000", "0.300", "4.000"]
    assert headers["server-timing"].startswith("tokenization;dur=1.000, queue;dur=2.000")


@pytest.mark.parametrize(
    ("given", "echoed"),
    [("abc-1", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("ä", False), ("", False), (None, False)],
)
def test_a_request_keeps_the_name_that_its_client_gave_it(app: FastAPI, given: str | None, echoed: bool) -> None:
    headers = {} if given is None else {"x-request-id": given.encode()}
    found = call(app, "GET", "/health", headers=headers).headers["x-request-id"]
    assert (found == given) is echoed
    assert found.isascii()
    assert len(found) >= 5


def test_the_default_task_answers_who_names_none(backend: Canned, config: Config) -> None:
    app = application(backend, config.model_copy(update={"default_task": "topic"}))
    assert post(app, "/predict", {"inputs": "a"}).json() == RANKED
    assert post(app, "/v1/classify", {"input": "a"}).json()["model"] == "topic@3"
    assert post(app, "/predict", {"inputs": "a", "model": "stars"}).json() == [{"score": 2.5, "label": "score"}]


def test_models_and_tasks_list_the_same_cards(app: FastAPI) -> None:
    models, tasks = call(app, "GET", "/v1/models").json(), call(app, "GET", "/tasks").json()["tasks"]
    assert models["object"] == "list"
    assert [card["id"] for card in models["data"]] == [card["name"] for card in tasks]
    assert models["data"][1] == {
        "id": "topic", "object": "model", "owned_by": "deltahub", "kind": "text-classification",
        "labels": list(LABELS), "parent": "base", "versions": [1, 3], "tags": {"prod": 3, "old": None},
        "created": 1700000000, "trouble": None, "pair": False,
    }  # fmt: skip
    assert call(app, "GET", "/v1/models/topic").json() == models["data"][1]
    assert call(app, "GET", "/tasks/topic").json() == tasks[1]


def test_a_long_list_is_answered_as_a_short_one(backend: Canned, config: Config) -> None:
    app = application(backend, config.model_copy(update={"max_inputs": 100}))
    backend.vector = np.array([0.6, 0.8], np.float32)
    texts = ["a"] * 100
    bodies = {
        "/v1/embeddings": {"model": "vectors", "input": texts},
        "/v1/classify": {"model": "topic", "input": texts},
        "/embed": {"model": "vectors", "inputs": texts},
        "/predict": {"model": "topic", "inputs": [["a"]] * 100},
        "/token-classify": {"model": "ner", "inputs": texts},
        "/tasks/topic/predict": {"inputs": texts},
    }
    for path, body in bodies.items():
        found = post(app, path, body).json()
        rows = found if isinstance(found, list) else found.get("data") or found["answers"]
        assert len(rows) == 100
        if isinstance(rows[0], dict) and "index" in rows[0]:
            assert [row.pop("index") for row in rows] == list(range(100))
        assert all(row == rows[0] for row in rows)

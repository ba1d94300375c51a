"""The client against a server that says what the test has written for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from deltahub import Client
from deltahub.answers import Embedding, LabelScores, Prediction, Score, WordLabel, WordLabels, from_dict
from deltahub.errors import FormatError, ServerError, UsageError
from tests.scripted import Request, Response, Scripted, refusal, reply, served


def refused(script: Scripted, texts: Sequence[str] = ("x",), **options: Any) -> ServerError:
    """What a client says of a server that goes by ``script``."""
    with served(script) as server, Client(server.url, **options) as client, pytest.raises(ServerError) as caught:
        client.predict("length", texts)
    return caught.value


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client would have waited before it tried again."""
    made: list[float] = []
    monkeypatch.setattr("deltahub.client.time.sleep", made.append)
    return made


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("text-classification", Prediction("a", 0.75, {"a": 0.75, "b": 0.25})),
        ("multi-label-classification", LabelScores(("a",), {"a": 0.75, "b": 0.25})),
        ("regression", Score(-1.5)),
        ("token-classification", WordLabels((WordLabel("w", "X", 0.5, 0, 0, 1),))),
        ("token-classification", WordLabels((WordLabel("w", "X", 0.5, 0, None, None),))),
        ("embeddings", Embedding(np.array([0.1, -2.5], np.float32))),
    ],
)
def test_an_answer_survives_json_to_the_bit(kind: str, answer: Any) -> None:
    found: Any = from_dict(kind, json.loads(json.dumps(answer.as_dict())))
    if isinstance(answer, Embedding):
        assert found.vector.dtype == np.float32
        assert found.vector.tobytes() == answer.vector.tobytes()
    else:
        assert found == answer


@pytest.mark.parametrize(
    ("kind", "document", "said"),
    [
        ("text-classification", {"label": "a", "score": 1}, "no field 'scores'"),
        ("text-classification", {"label": 1, "score": 1, "scores": {}}, "expected a string, found int"),
        ("text-classification", {"label": "a", "score": True, "scores": {}}, "expected a finite number, found True"),
        ("text-classification", {"label": "a", "score": 1, "scores": [1]}, "expected the score of each label"),
        ("regression", {"score": float("nan")}, "expected a finite number, found nan"),
        ("regression", {"score": 10**400}, "too large"),
        ("regression", None, "NoneType"),
        ("token-classification", {"words": [WordLabel("w", "X", 1.0, 0, 0, None).as_dict()]}, "expected whole numbers"),
        ("embeddings", {"embedding": ["1"]}, "expected a finite number"),
        ("text-generation", {"text": ""}, "expected one of"),
    ],
)
def test_what_is_no_answer_is_refused(kind: str, document: Any, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        from_dict(kind, document)


def test_a_reply_says_who_answered_and_where_the_time_went() -> None:
    with served(Scripted()) as server, Client(server.url + "/") as client:
        found = client.predict("length:prod", ["one", "three"], truncate=False)
    assert found.reference == "length@3"
    assert found.answers == (Score(3.0), Score(5.0))
    assert (found.seconds.run, found.replica, found.tokens) == (1.0, "r1", (1, 1))
    assert server.requests == [
        Request(
            "POST", "/tasks/length%3Aprod/predict", None,
            {"inputs": ["one", "three"], "pairs": None, "truncate": False},
        )
    ]  # fmt: skip


def test_pairs_and_words_and_the_key_are_sent() -> None:
    with served(Scripted()) as server, Client(server.url, "secret-key") as client:
        client.predict("length", [["a", "b"]])
        client.predict("length", ("one", "two"), ("x", "y"))
    assert [request.body["inputs"] for request in server.requests] == [[["a", "b"]], ["one", "two"]]
    assert server.requests[1].body["pairs"] == ["x", "y"]
    assert {request.key for request in server.requests} == {"Bearer secret-key"}


def test_a_long_list_goes_in_parts_to_the_version_that_answered_first() -> None:
    texts = [str(number) * (number % 7 + 1) for number in range(700)]
    with served(Scripted()) as server, Client(server.url) as client:
        found = client.predict("length", texts)
    assert [answer.score for answer in found.answers if isinstance(answer, Score)] == [len(text) for text in texts]
    assert [len(request.body["inputs"]) for request in server.requests] == [256, 256, 188]
    assert [request.path for request in server.requests] == ["/tasks/length/predict"] + 2 * [
        "/tasks/length%403/predict"
    ]
    assert found.seconds.run == 3.0


def test_long_texts_go_in_parts_too() -> None:
    with served(Scripted()) as server, Client(server.url) as client:
        client.predict("length", ["ä" * 400_000, "b" * 300_000, "c" * 200_000, "d" * 1_500_000])
    assert [len(request.body["inputs"]) for request in server.requests] == [1, 2, 1]


def test_a_server_that_takes_less_at_a_time_gets_less() -> None:
    def few(request: Request) -> Response:
        if len(request.body["inputs"]) > 10:
            return refusal(413, "too_many")
        return 200, {}, reply(request)

    with served(Scripted(rest=few)) as server, Client(server.url) as client:
        assert len(client.predict("length", ["x"] * 40).answers) == 40
    assert [len(request.body["inputs"]) for request in server.requests] == [40, 20, 10, 10, 10, 10]


@pytest.mark.parametrize("response", [refusal(413, "too_long", "text 1 is too long"), refusal(413, "too_large")])
def test_a_text_that_is_too_long_is_not_sent_in_parts(response: Response) -> None:
    script = Scripted(rest=lambda _: response)
    error = refused(script, ["x"] * (2 if response[2]["error"]["reason"] == "too_long" else 1))
    assert (error.status, len(script.requests)) == (413, 1)


def test_parts_of_different_versions_make_no_reply() -> None:
    def changing(request: Request) -> Response:
        return 200, {}, reply(request) | {"digest": f"{len(request.body['inputs'])}"}

    assert str(refused(Scripted(rest=changing), ["x"] * 300)) == "length@3 changed while it was asked; ask again"


@pytest.mark.parametrize(
    "failure",
    [
        refusal(429, "overloaded", retry_after=0.25),
        refusal(503, "unavailable", retry_after=0.25),
        refusal(408, "timeout", retry_after=0.25),
        (429, {"Retry-After": "0.25"}, {"error": {"reason": "overloaded", "message": "later", "near": []}}),
    ],
)
def test_what_passes_is_tried_again_when_the_server_says(failure: Response, pauses: list[float]) -> None:
    with served(Scripted([failure, failure])) as server, Client(server.url) as client:
        assert client.predict("length", ["x"]).answers == (Score(1.0),)
    assert all(0.25 + longest / 2 <= pause <= 0.25 + longest for pause, longest in zip(pauses, (0.1, 0.2), strict=True))


@pytest.mark.parametrize("failure", [None, (503, {}, b"no healthy replica"), (502, {}, b"<html>")])
def test_without_a_word_of_the_server_pauses_grow(failure: Response | None, pauses: list[float]) -> None:
    with served(Scripted([failure] * 4)) as server, Client(server.url) as client:
        assert client.predict("length", ["x"]).answers == (Score(1.0),)
    assert all(longest / 2 <= pause <= longest for pause, longest in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=True))


def test_attempts_are_bounded(pauses: list[float]) -> None:
    script = Scripted(rest=lambda _: refusal(503, "unavailable", "the server is stopping", 0.5))
    error = refused(script, attempts=3)
    assert (str(error), error.retryable, error.retry_after) == ("the server is stopping", True, 0.5)
    assert len(script.requests) == 3
    assert len(pauses) == 2
    assert min(pauses) >= 0.5


def test_nobody_waits_longer_than_the_timeout(pauses: list[float]) -> None:
    script = Scripted(rest=lambda _: refusal(429, "overloaded", "later", 3600))
    assert str(refused(script, timeout=60)) == "later"
    assert (len(script.requests), pauses) == (1, [])


def test_a_server_that_says_nothing_is_given_up() -> None:
    done = threading.Event()

    def silent(request: Request) -> Response:
        done.wait()
        return 200, {}, reply(request)

    with served(Scripted(rest=silent)) as server, Client(server.url, timeout=0.2) as client:
        with pytest.raises(ServerError, match=r"no answer from http://127.*: expected one within 0.2 s"):
            client.predict("length", ["x"])
        done.set()


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, "invalid"), (401, "unauthorized"), (403, "forbidden"), (404, "unknown"), (424, "unusable"), (500, "failed")],
)
def test_nothing_else_is_tried_again(status: int, reason: str) -> None:
    script = Scripted(rest=lambda _: refusal(status, reason, "because", near=["lengths"]))
    error = refused(script)
    assert (str(error), len(script.requests)) == ("because", 1)
    assert (error.status, error.reason, error.near, error.retryable) == (status, reason, ("lengths",), False)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ((200, {}, b"<html>hello</html>"), "Expecting value"),
        ((200, {}, []), "list indices must be integers"),
        ((200, {}, {"answers": []}), "no field 'kind'"),
        ((200, {}, b'{"kind": ' + b"[" * 100_000), "recursion"),
        ((404, {}, b"<html>nothing here</html>"), "404 Not Found: <html>nothing here"),
        ((404, {}, {"error": "nothing here"}), "404 Not Found"),
        ((404, {}, {"error": {"reason": 3, "message": []}}), "404 Not Found"),
        ((200, {"Content-Encoding": "gzip"}, b"no gzip"), "DecodingError"),
    ],
)
def test_a_server_of_another_kind_is_named(response: Response, said: str) -> None:
    script = Scripted(rest=lambda _: response)
    error = str(refused(script))
    assert error.startswith(f"what answers at {script.url}: expected a deltahub server, found ")
    assert said in error
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": []}, "0 answers to 1 texts"),
        ({"kind": "text-classification"}, "no field 'label'"),
        ({"version": "3"}, "str in place of int"),
        ({"version": True}, "bool in place of int"),
        ({"seconds": {}}, "no field 'prepare'"),
        ({"tokens": [1, 1]}, "1 answers to 1 texts"),
    ],
)
def test_a_reply_that_is_not_whole_is_refused(change: dict[str, Any], said: str) -> None:
    assert said in str(refused(Scripted(rest=lambda request: (200, {}, reply(request) | change))))


def test_a_key_is_never_sent_to_where_a_redirect_leads() -> None:
    with served(Scripted()) as other:
        elsewhere = (307, {"Location": f"{other.url}/tasks/length/predict"}, b"")
        error = str(refused(Scripted(rest=lambda _: elsewhere), key="secret-key"))
    assert f"redirects to {other.url}" in error
    assert other.requests == []


def test_where_nobody_listens_says_so(pauses: list[float]) -> None:
    with served(Scripted()) as gone:
        pass
    with Client(gone.url) as client, pytest.raises(ServerError, match=f"{gone.url} cannot be reached .*is the server"):
        client.predict("length", ["x"])
    assert len(pauses) == 4


def test_no_proxy_stands_before_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with served(Scripted()) as server, Client(server.url) as client:
        assert client.predict("length", ["x"]).answers == (Score(1.0),)


def test_tasks_are_listed_with_what_they_take() -> None:
    card = {"name": "same", "kind": "regression", "labels": [], "pair": True, "versions": [1, 2], "tags": {"prod": 2}}
    with served(Scripted([(200, {}, {"tasks": [card]}), (200, {}, card)])) as server, Client(server.url) as client:
        assert client.tasks() == [client.task("same")]
    assert [request.path for request in server.requests] == ["/tasks", "/tasks/same"]


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://user:word@host", "http://h/?a=b"]
)
def test_what_is_no_url_of_a_server(url: str) -> None:
    with pytest.raises(UsageError, match=r"the URL of a server: expected one like http://127.0.0.1:8000") as caught:
        Client(url)
    assert "word@" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "two words", "schlüssel-ü", "line\nbreak"])
def test_what_is_no_key_is_not_shown(key: str) -> None:
    with pytest.raises(UsageError, match="printable ASCII characters") as caught:
        Client("http://127.0.0.1:1", key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "texts", "pairs", "said"),
    [
        ("length", [], None, "texts to ask about: expected a list of them, found none"),
        ("length", "one text", None, "texts to ask about: expected a list of them, found a string"),
        ("length", ["a", "b"], ["c"], "second texts: expected 2, found 1"),
        ("length", ["a", "\ud800"], None, "text 2 of 2: expected valid Unicode"),
        ("", ["a"], None, "the task to ask: expected a name"),
        ("..", ["a"], None, "the task to ask: expected a name"),
        ("\ud800", ["a"], None, "the task to ask: expected a name"),
    ],
)
def test_questions_that_cannot_be_meant_are_not_sent(task: str, texts: Any, pairs: Any, said: str) -> None:
    with Client("http://127.0.0.1:1", attempts=1) as client, pytest.raises(UsageError, match=said):
        client.predict(task, texts, pairs)

"""Over a real port: the official client, slow and lying senders, clients that go away."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import struct

import numpy as np
import openai
import pytest
from deltahub_serve.config import Config
from deltahub_serve.questions import Refusal
from deltahub_serve.web import application
from fastapi import FastAPI

from tests.serve.web.calls import listening, talk
from tests.serve.web.canned import KINDS, Canned
from tests.serve.web.conftest import API_KEY

BODY = json.dumps({"model": "topic", "input": "a"}).encode()


def head(length: object = len(BODY), path: str = "/v1/classify", extra: str = "") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{extra}\r\n"
    ).encode()


CLOSE = "connection: close\r\n"


def test_the_official_client(guarded: FastAPI, backend: Canned) -> None:
    backend.vector = np.array([0.1, 0.2, 0.3], np.float32)
    with (
        listening(guarded) as port,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=API_KEY, max_retries=0) as client,
    ):
        assert [model.id for model in client.models.list()] == ["base", *KINDS]
        assert client.models.retrieve("topic").id == "topic"
        for encoding in (openai.NOT_GIVEN, "float", "base64"):
            found = client.embeddings.create(model="vectors", input=["a", "b"], encoding_format=encoding)
            vectors = [item.embedding for item in found.data]
            if encoding == "base64":
                vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]
            assert all(np.array(vector, np.float32).tobytes() == backend.vector.tobytes() for vector in vectors)
            assert found.usage.total_tokens == 10
        with pytest.raises(openai.NotFoundError) as unknown:
            client.embeddings.create(model="nothing", input="a")
        assert unknown.value.code == "model_not_found"
        backend.refusal = Refusal("overloaded", "later", retry_after=3)
        with pytest.raises(openai.RateLimitError) as full:
            client.embeddings.create(model="vectors", input="a")
        assert full.value.response.headers["retry-after"] == "3"
        assert full.value.request_id == full.value.response.headers["x-request-id"]
        client.api_key = "wrong"
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


@pytest.mark.parametrize("sent", [head(100) + b"{", head(extra="expect: nothing\r\n"), head(100) + BODY])
def test_a_body_that_does_not_arrive_in_time(backend: Canned, config: Config, sent: bytes) -> None:
    app = application(backend, config, read_timeout=0.2)
    with listening(app) as port:
        answer = talk(port, sent)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"too_slow"' in answer
    assert backend.questions == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head(len(BODY), extra=CLOSE) + BODY, 200),
        (head(len(BODY) - 1, extra=CLOSE) + BODY, 400),
        (head(10**7) + b"{", 413),
        (head("9" * 18) + b"{", 413),
        (head("9" * 5000), 400),
        (head("-5"), 400),
        (head(5, extra="transfer-encoding: chunked\r\n" + CLOSE) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), 400),
        (
            head().replace(b"content-length: %d" % len(BODY), b"transfer-encoding: chunked") + b"bb8\r\n" + b" " * 3000,
            413,
        ),
    ],
)
def test_lengths_that_lie(app: FastAPI, sent: bytes, status: int) -> None:
    with listening(app) as port:
        answer = talk(port, sent)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert talk(port, head(extra=CLOSE) + BODY).startswith(b"HTTP/1.1 200 ")


def test_who_goes_away_is_not_answered(app: FastAPI, backend: Canned) -> None:
    backend.hold = True
    with listening(app) as port:
        with socket.create_connection(("127.0.0.1", port)) as wire:
            wire.sendall(head() + BODY)
            assert backend.asked.wait(30)
        assert backend.cancelled.wait(30)
        backend.hold = False
        assert talk(port, head(extra=CLOSE) + BODY).startswith(b"HTTP/1.1 200 ")


def test_who_goes_away_in_the_middle_of_a_body_does_no_harm(app: FastAPI, backend: Canned) -> None:
    with listening(app) as port:
        with socket.create_connection(("127.0.0.1", port)) as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not end of stream
            wire.sendall(head(100) + b"{")
        assert talk(port, head(extra=CLOSE) + BODY).startswith(b"HTTP/1.1 200 ")
    assert len(backend.questions) == 1


def test_a_cancelled_handler_cancels_its_question(app: FastAPI, backend: Canned) -> None:
    """As Ray Serve does it, which cancels the whole call."""
    backend.hold = True
    scope = {
        "type": "http", "method": "POST", "path": "/v1/classify", "query_string": b"", "http_version": "1.1",
        "headers": [(b"content-type", b"application/json")], "scheme": "http", "server": ("x", 80),
    }  # fmt: skip

    async def run() -> None:
        parts = [{"type": "http.request", "body": BODY}]

        async def receive() -> dict[str, object]:
            if parts:
                return parts.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: object) -> None:
            raise AssertionError(message)

        handling = asyncio.create_task(app(scope, receive, send))  # type: ignore[arg-type]
        await asyncio.to_thread(backend.asked.wait, 30)
        handling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handling
        await asyncio.sleep(0)

    asyncio.run(run())
    assert backend.cancelled.is_set()

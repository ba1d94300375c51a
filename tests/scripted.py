"""A server of HTTP that says what a test has written for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Response = tuple[int, dict[str, str], Any]


@dataclass
class Request:
    method: str
    path: str
    key: str | None
    body: Any


@dataclass
class Scripted:
    """Answers requests by ``responses`` in turn, then by ``rest``; None closes the connection without an answer."""

    responses: list[Response | None] = field(default_factory=list)
    rest: Callable[[Request], Response] = lambda request: (200, {}, reply(request))
    requests: list[Request] = field(default_factory=list)
    url: str = ""


def reply(request: Request, version: int = 3) -> dict[str, Any]:
    texts = request.body["inputs"]
    return {
        "task": "length", "version": version, "digest": "d" * 64, "kind": "regression", "labels": [],
        "answers": [{"score": float(len(text))} for text in texts], "tokens": [1] * len(texts),
        "seconds": {"prepare": 0.5, "queue": 0.25, "swap": 0.0, "run": 1.0}, "replica": "r1",
    }  # fmt: skip


def refusal(status: int, reason: str, message: str = "no", retry_after: float | None = None, **more: Any) -> Response:
    return status, {}, {"error": {"reason": reason, "message": message, "retry_after": retry_after, **more}}


@contextmanager
def served(script: Scripted) -> Iterator[Scripted]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            request = Request(self.command, self.path, self.headers.get("Authorization"), body)
            script.requests.append(request)
            response = script.responses.pop(0) if script.responses else script.rest(request)
            if response is None:
                self.close_connection = True
                return
            status, headers, document = response
            content = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

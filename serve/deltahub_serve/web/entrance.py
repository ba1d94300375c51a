"""What every request passes: it gets an id, is counted and timed, and has an answer whatever happens."""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltahub_serve.web.errors import MANNERS, Fault, fault_response

_METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"})
_log = logging.getLogger("deltahub_serve.web")


class Traffic:
    """Counts of what this process was asked over HTTP, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "deltahub_http_requests_total", "Requests that ended, by route.", ("route", "method", "status"),
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "deltahub_http_request_seconds", "From the first byte of the head to the end of the answer.", ("route",),
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )  # fmt: skip

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        # by template, since a client can make up paths and methods without end
        route: str = getattr(scope.get("route"), "path_format", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class Entrance:
    """The outermost ASGI middleware."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self.app = app
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        identity = _identity(scope)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", identity)]
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except Exception:  # whatever failed, the client gets an answer, and the log tells why
            name = identity.decode("ascii")
            _log.exception("request %s to %s failed", name, ascii(scope["path"][:200]))
            if status:
                raise  # half an answer is out: only a broken connection can say that it is not whole
            fault = Fault("internal", f"the server failed; its log says more under request {name}")
            await fault_response(scope, fault)(scope, receive, answer)
        finally:
            self._traffic.count(scope, status or MANNERS["gone"].native, time.perf_counter() - started)


def _identity(scope: Scope) -> bytes:
    """What the client calls its request, if that may stand in a header and a log; else a name of ours."""
    given: Any = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if len(given) == 1 and 0 < len(given[0]) <= 128 and all(0x20 < byte < 0x7F for byte in given[0]):
        return bytes(given[0])
    return uuid.uuid4().hex.encode()

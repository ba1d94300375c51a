"""An S3 server on a socket of this machine: moto, with faults to order, and atomic conditional writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server
from werkzeug.test import run_wsgi_app

from tests.stores.faults import Fault

Environ = dict[str, object]


class _Handler(MotoRequestHandler):
    def log_request(self, *_: object) -> None:
        pass

    def connection_dropped(self, *_: object) -> None:
        self.close_connection = True


class S3Server:
    """Kinds of `Fault`: a status with an error code of S3 (``"503 SlowDown"``), ``"drop"`` (done, but no answer comes),
    ``"cut"`` (half of the body), ``"unconditional"`` (conditions are ignored), ``"page TEXT"`` (200, as a proxy has it)
    or ``"redirect 307 URL"``.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fill(self, bucket: str, keys: Iterable[str]) -> None:
        """Many empty objects, behind the back of the protocol."""
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        for key in keys:
            backend.put_object(bucket, key, b"")

    def overwrite(self, bucket: str, key: str, change: Callable[[bytes], bytes]) -> None:
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        backend.put_object(bucket, key, change(backend.get_object(bucket, key).value))

    def __call__(self, environ: Environ, start: Callable[..., object]) -> Iterable[bytes]:
        method, path = str(environ["REQUEST_METHOD"]), f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        headers = {name[5:].lower(): str(value) for name, value in environ.items() if name.startswith("HTTP_")}
        self.requests.append((method, path, headers))
        fault = next((fault for fault in self.faults if fault.meets(method, path)), None)
        kind, _, detail = fault.kind.partition(" ") if fault else ("", "", "")
        if fault:
            fault.met += 1
        if kind.isdigit():
            body = f"<Error><Code>{detail}</Code><Message>ordered</Message></Error>".encode()
            start(f"{kind} {detail}", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [b"" if method == "HEAD" else body]
        if kind == "page":
            start("200 OK", [("Content-Type", "text/html"), ("Content-Length", str(len(detail)))])
            return [b"" if method == "HEAD" else detail.encode()]
        if kind == "redirect":
            status, _, location = detail.partition(" ")
            start(f"{status} Elsewhere", [("Location", location), ("Content-Length", "0")])
            return [b""]
        if kind == "unconditional":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        chunks, status, found = self._answer(environ)
        if kind == "drop":
            raise ConnectionResetError
        start(status, [header for header in found if header[0].lower() != "server"])  # the socket's own comes first
        return _half(b"".join(chunks)) if kind == "cut" else chunks

    def _answer(self, environ: Environ) -> tuple[Iterable[bytes], str, Iterable[tuple[str, str]]]:
        """moto looks and then writes, which two threads may do at once; S3 does it as one step."""
        if environ.get("HTTP_IF_NONE_MATCH") != "*":
            return run_wsgi_app(self._app, environ)
        with self._lock:
            return run_wsgi_app(self._app, environ, buffered=True)


def _half(body: bytes) -> Iterable[bytes]:
    yield body[: len(body) // 2]
    raise ConnectionResetError

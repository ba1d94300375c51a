"""An S3 server in a process of its own, which counts requests and bytes; `served` starts it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

COUNTS = "/_counts"
BUCKET = "bench"


@dataclass(frozen=True)
class Counts:
    """What the server saw since it began: requests, those that list, and bytes of bodies in and out."""

    requests: int
    listings: int
    received: int
    sent: int

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, one.name) - getattr(other, one.name) for one in fields(self)))


class _Counting:
    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._counts = dict.fromkeys((one.name for one in fields(Counts)), 0)

    def __call__(self, environ: dict[str, object], start: Callable[..., object]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == COUNTS:
            body = json.dumps(self._counts).encode()
            start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
            return [body]
        listing = environ["REQUEST_METHOD"] == "GET" and "list-type" in str(environ["QUERY_STRING"])
        self._add(requests=1, listings=int(listing), received=int(str(environ.get("CONTENT_LENGTH") or 0)))
        return self._counted(self._app(environ, start))

    def _counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._add(sent=len(chunk))
            yield chunk

    def _add(self, **more: int) -> None:
        with self._lock:
            for name, count in more.items():
                self._counts[name] += count


def main() -> None:
    """Serves until standard input ends."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):
        def log_request(self, *_: object) -> None:
            pass

    app = _Counting(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


class Server:
    def __init__(self, url: str) -> None:
        self.url = url

    def counts(self) -> Counts:
        with urllib.request.urlopen(f"{self.url}{COUNTS}", timeout=60) as reply:
            return Counts(**json.load(reply))


@contextlib.contextmanager
def served() -> Iterator[Server]:
    """A server with an empty bucket; the environment of this process and its children leads to it."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    try:
        server = Server(f"http://127.0.0.1:{int(process.stdout.readline())}")
        os.environ |= {
            "AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "mine",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        request = urllib.request.Request(f"{server.url}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=60).close()
        yield server
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    main()

"""A real server in this process: a worker on a real base behind the web application, in a thread of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from deltahub_serve.config import Config
from deltahub_serve.web import application
from deltahub_serve.worker import Worker


@dataclass(frozen=True)
class Running:
    """A server that answers at ``url`` with what ``worker`` has."""

    url: str
    worker: Worker


@contextmanager
def running(config: Config, port: int = 0) -> Iterator[Running]:
    """Answers from the first line of the block on; port 0 takes a free one."""
    worker = Worker(config)
    settings = uvicorn.Config(application(worker, config), log_level="warning", lifespan="off", ws="none")
    server = uvicorn.Server(settings)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server")
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", worker)
        finally:
            server.should_exit = True
            thread.join()
            worker.close()

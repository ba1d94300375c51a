"""Requests to an application: in this process, or to a real server on a port."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI


def call(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def post(app: FastAPI, path: str, body: object, **options: Any) -> httpx.Response:
    return call(app, "POST", path, json=body, **options)


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """A server in a thread; its port."""
    listener = socket.create_server(("127.0.0.1", 0))  # takes connections from here on, so nobody waits for the start
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="error"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def talk(port: int, sent: bytes) -> bytes:
    """Sends raw bytes; everything that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as wire:
        wire.sendall(sent)
        received = b""
        while part := wire.recv(65536):
            received += part
    return received

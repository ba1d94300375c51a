"""`deltahub serve` as a process, as a user starts it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest


class Server:
    """A `deltahub serve`; ``words`` are the lines that it says to people."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url = ""
        self.words: list[str] = []
        self._reader = threading.Thread(target=lambda: self.words.extend(process.stderr or ()), daemon=True)
        self._reader.start()

    def hears(self, what: str) -> None:
        """Waits for a line with ``what``."""
        until(lambda: any(what in line for line in self.words), f"{what!r} in {self.words}")

    def family(self) -> dict[psutil.Process, list[str]]:
        """All processes that it has started, and theirs, with their command lines; for Ray's own these are titles."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # has ended meanwhile
                found[child] = child.cmdline()
        return found

    def ray(self) -> str:
        """Where other processes join its Ray."""
        option = "--gcs-address="
        said = [argument for command in self.family().values() for argument in command]
        return next(argument.removeprefix(option) for argument in said if argument.startswith(option))

    def ended(self) -> int:
        """Waits for its end and its last word; its exit code."""
        code = self.process.wait(120)
        self._reader.join(60)
        return code


@contextmanager
def begun(*options: str) -> Iterator[Server]:
    """A server that has just been started, and is killed at the end where it still runs."""
    command = [sys.executable, "-m", "deltahub.cli", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    server = Server(process)
    try:
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        server.ended()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """A server that answers."""
    with begun(*options) as server:
        assert server.process.stdout is not None
        server.url = server.process.stdout.readline().strip()
        assert server.url.startswith("http://127.0.0.1:"), "".join(server.words)
        yield server


def until(holds: Callable[[], Any], what: str) -> Any:
    """What ``holds`` returns as soon as that is true; asks again and again, which is all one can do."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.1)
    pytest.fail(f"not within 240 s: {what}")

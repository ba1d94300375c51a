"""Signals as things to wait for."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Signals:
    """SIGTERM, SIGINT and SIGHUP as things to wait for; the first two interrupt whatever is not `ready` for them."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._stop = self._reload = self._ready = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        for number in self._before:
            signal.signal(number, self._came)

    def ready(self) -> None:
        """From now on the first signal is for `wait`."""
        self._ready = True

    def wait(self, seconds: float) -> str | None:
        """``"stop"``, ``"reload"``, or None after so many seconds."""
        self._event.wait(seconds)
        self._event.clear()
        if self._stop:
            return "stop"
        reload, self._reload = self._reload, False
        return "reload" if reload else None

    def _came(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._reload = True
        elif self._stop or not self._ready:
            raise KeyboardInterrupt
        else:
            self._stop = True
        self._event.set()

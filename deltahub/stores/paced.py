"""A limit on what hubs may use of the line: bytes per second, and requests at once."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from deltahub.digest import BytesLike
from deltahub.errors import UsageError
from deltahub.stores.base import Store
from deltahub.stores.wrapped import WrappedStore

_LEAST_STEP = 64 << 10
_MOST_STEP = 8 << 20
_STEPS_PER_SECOND = 4
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Pace:
    """Shared by all threads, and by all hubs that are opened with it: what one uses, the others wait for.

    Args:
        bytes_per_second: of content, read and written together; None for no limit.
        at_once: requests under way at once at each hub; None for as many as its store does best.
        clock, sleep: for tests that do not want to wait.

    Raises:
        UsageError: a limit of nothing.
    """

    def __init__(
        self,
        bytes_per_second: float | None = None,
        at_once: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if bytes_per_second is not None and not bytes_per_second > 0:
            raise UsageError("a limit of the rate", expected="bytes per second above 0", got=bytes_per_second)
        if at_once is not None and at_once < 1:
            raise UsageError("requests at once", expected="1 or more", got=at_once)
        self.bytes_per_second, self.at_once = bytes_per_second, at_once
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._paid = 0.0  # when all that was taken so far has had its time

    @property
    def step(self) -> int:
        """Bytes to read at a time, so that the rate holds within a blob: those of a quarter of a second."""
        if self.bytes_per_second is None:
            return _MOST_STEP
        return int(min(_MOST_STEP, max(_LEAST_STEP, self.bytes_per_second / _STEPS_PER_SECOND)))

    def take(self, size: int) -> None:
        """Waits until ``size`` bytes have had their time."""
        if self.bytes_per_second is None or not size:
            return
        with self._lock:
            now = self._clock()
            self._paid = max(self._paid, now) + size / self.bytes_per_second
            wait = self._paid - now
        self._sleep(wait)


class PacedStore(WrappedStore):
    """A store used no faster than a pace allows.

    A blob is read in steps, and each step has its time before the next is asked for. What is written has its time
    before it is sent, and then goes as fast as the line takes it. Records are read in one piece: they may be replaced.
    """

    def __init__(self, inner: Store, pace: Pace) -> None:
        super().__init__(inner)
        self.pace = pace

    @property
    def at_once(self) -> int:
        return self.pace.at_once or self.inner.at_once

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        if self.pace.bytes_per_second is None or not key.startswith("blobs/") or size == 0:
            data = self.inner.get(key, start, size)
            self.pace.take(len(data))
            return data
        steps, have = [], 0
        while size is None or have < size:
            wanted = self.pace.step if size is None else min(self.pace.step, size - have)
            data = self.inner.get(key, start + have, wanted)
            self.pace.take(len(data))
            steps.append(data)
            have += len(data)
            if len(data) < wanted:
                break
        return steps[0] if len(steps) == 1 else b"".join(steps)

    def put(self, key: str, data: BytesLike, *, durable: bool = True) -> None:
        self.pace.take(memoryview(data).nbytes)
        self.inner.put(key, data, durable=durable)

    def put_new(self, key: str, data: BytesLike) -> bool:
        self.pace.take(memoryview(data).nbytes)
        return self.inner.put_new(key, data)


def bytes_of(text: str) -> int:
    """``"10MB"`` is 10,000,000; units B, kB, MB, GB, TB, in either case.

    Raises:
        UsageError: anything else.
    """
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([KMGT]?)B?", text.strip(), re.IGNORECASE | re.ASCII)
    if not match:
        raise UsageError(f"size {text[:40]!a}", expected="a number and B, kB, MB, GB or TB, such as 10MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])

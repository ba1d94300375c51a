"""A pull in a process of its own: ``python pulling.py URL CACHE OUT [BYTES]`` dies when that many bytes have come."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from deltahub import BlobCache, Hub
from deltahub.stores import Store, open_store
from deltahub.stores.cached import CachedStore
from deltahub.stores.wrapped import WrappedStore
from deltahub.transfer import pull_files


class Dying(WrappedStore):
    def __init__(self, inner: Store, last: int) -> None:
        super().__init__(inner)
        self._left, self._lock = last, threading.Lock()

    def get(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        data = super().get(key, start, size)
        with self._lock:
            self._left -= len(data)
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return data


def main() -> None:
    url, cache, out, *last = sys.argv[1:]
    store = open_store(url)
    if last:
        store = Dying(store, int(last[0]))
    pull_files(Hub(CachedStore(store, BlobCache(Path(cache), 10**10))), ["*"], out)


if __name__ == "__main__":
    main()

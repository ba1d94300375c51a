"""A thread that does something again and again until it is closed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from deltahub import DeltahubError

_LOG = logging.getLogger(__name__)


class Refresher:
    """Calls ``refresh`` every ``interval`` seconds; what it raises is logged, and it is called again."""

    def __init__(self, refresh: Callable[[], object], interval: float) -> None:
        self._refresh = refresh
        self._interval = interval
        self._changed = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="deltahub-refresh", daemon=True)
        self._thread.start()

    def set_interval(self, interval: float) -> None:
        """Counts from now on."""
        if interval != self._interval:
            self._interval = interval
            self._changed.set()

    def close(self, timeout: float = 1.0) -> bool:
        """Ends the thread; False where it is still at work after ``timeout`` seconds, since a hub may hang."""
        self._closing = True
        self._changed.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while not self._closing:
            if self._changed.wait(self._interval):
                self._changed.clear()
                continue
            try:
                self._refresh()
            except DeltahubError as error:
                _LOG.warning("what is in use could not be looked up again: %s", error)
            except Exception:  # noqa: BLE001  (whatever it is, the next look may go well)
                _LOG.exception("what is in use could not be looked up again")

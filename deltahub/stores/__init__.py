"""Where hubs live: one protocol (`base.Store`), one file per kind of place, and the table of URLs."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from urllib.parse import unquote

from deltahub.errors import UsageError
from deltahub.stores.base import Entry, Store
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore

__all__ = ["Entry", "LocalStore", "MemoryStore", "Store", "open_store"]

SUPPORTED = "a folder (/data/hub, ./hub), file:///data/hub or memory://name"

_memory: dict[str, MemoryStore] = {}  # memory://name must mean one store in the whole process
_memory_lock = threading.Lock()


def open_store(url: str | Path) -> Store:
    """The store at ``url``; touches nothing there.

    Raises:
        UsageError: a URL of a kind that is not supported, or with a part that is wrong.
    """
    if isinstance(url, Path):
        return LocalStore(url)
    scheme, separator, rest = url.partition("://")
    if not url or "\0" in url:
        raise UsageError(f"hub {url!a}", expected=SUPPORTED)
    if not separator:
        return LocalStore(Path(url))
    if scheme == "file":
        path = unquote(rest.removeprefix("localhost"))
        if not path.startswith("/") or "\0" in path:
            raise UsageError(f"hub {url!a}", expected="file:///absolute/path")
        return LocalStore(Path(path))
    if scheme == "memory":
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", rest):
            raise UsageError(f"hub {url!a}", expected="memory:// and a name of A-Z a-z 0-9 . _ -")
        with _memory_lock:
            return _memory.setdefault(rest, MemoryStore(rest))
    raise UsageError(f"hub {url!a}", expected=SUPPORTED, got=f"{ascii(scheme)[1:-1]}://")

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
from deltahub.stores.secrecy import masked

__all__ = ["Entry", "LocalStore", "MemoryStore", "Store", "open_store"]

SUPPORTED = (
    "a folder (/data/hub, ./hub), file:///data/hub, s3://bucket/prefix, hf://org/repo, another URL that fsspec knows "
    "(gs://, az://, sftp://) or memory://name"
)

_NO_PLACES = {
    "asynclocal", "async_wrapper", "asyncwrapper", "blockcache", "cached", "data", "dir", "filecache", "generic",
    "gist", "http", "https", "libarchive", "reference", "simplecache", "tar", "zip",
}  # fmt: skip
"""What fsspec takes for file systems and is none that a hub could be found in."""
_memory: dict[str, MemoryStore] = {}  # memory://name must mean one store in the whole process
_memory_lock = threading.Lock()


def open_store(url: str | Path) -> Store:
    """The store at ``url``; touches nothing there.

    Raises:
        UsageError: a URL of a kind that is not supported, with a secret in it, or with a part that is wrong; or the
            package for it is not installed.
    """
    if isinstance(url, Path):
        return LocalStore(url)
    scheme, separator, rest = url.partition("://")
    if not url or "\0" in url:
        raise UsageError(f"hub {masked(url)!a}", expected=SUPPORTED)
    if not separator:
        return LocalStore(Path(url))
    if scheme == "file":
        path = unquote(rest.removeprefix("localhost"))
        if not path.startswith("/") or "\0" in path:
            raise UsageError(f"hub {masked(url)!a}", expected="file:///absolute/path")
        return LocalStore(Path(path))
    if scheme == "memory":
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", rest):
            raise UsageError(f"hub {url!a}", expected="memory:// and a name of A-Z a-z 0-9 . _ -")
        with _memory_lock:
            return _memory.setdefault(rest, MemoryStore(rest))
    _refuse_secrets(url, rest)
    if scheme == "hf":
        from deltahub.stores.hf import opened

        return opened(url, rest)
    return _open_s3(url, rest) if scheme in ("s3", "s3a") else _open_fsspec(url, scheme, rest)


def _refuse_secrets(url: str, rest: str) -> None:
    """A URL is printed, logged, and seen in lists of processes."""
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if (at and ":" in user) or "?" in rest or "#" in rest:
        raise UsageError(
            f"hub {masked(re.split('[?#]', url)[0])!a}",
            expected="no password, key or query in a URL",
            hint="give credentials where the store's own tools look for them",
        )


def _open_s3(url: str, rest: str) -> Store:
    try:
        from deltahub.stores.s3 import S3Store
    except ImportError as error:
        raise UsageError(f"hub {url!a} needs s3fs", hint="pip install 'deltahub[s3]'") from error
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise UsageError(f"hub {masked(url)!a}", expected="s3://bucket/prefix")
    return S3Store(bucket, prefix)


def _open_fsspec(url: str, scheme: str, rest: str) -> Store:
    refused = UsageError(f"hub {url!a}", expected=SUPPORTED, got=f"{ascii(scheme)[1:-1]}://")
    if scheme in _NO_PLACES or "::" in url or not rest.strip("/") or ".." in rest.split("/"):
        raise refused
    try:
        from fsspec import get_filesystem_class

        from deltahub.stores.fsspec import connected

        return connected(url, scheme, get_filesystem_class(scheme))
    except ValueError:
        raise refused from None
    except ImportError as error:
        hint = "pip install 'deltahub[sftp]'" if scheme in ("sftp", "ssh") else str(error)
        raise UsageError(f"hub {url!a}: {scheme}:// needs a package", hint=hint) from error

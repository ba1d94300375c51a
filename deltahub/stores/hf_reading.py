"""Reading a file of a repo that may break off on the way: what has come is kept, and the rest asked for."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from huggingface_hub import get_session
from huggingface_hub.utils._http import hf_raise_for_status

from deltahub.errors import StoreError
from deltahub.stores.hf_client import BUSY_STATUS, BrokenOffError
from deltahub.stores.secrecy import masked

_MOST_REDIRECTS = 5
_LONGEST_REFUSAL = 64 << 10
_COMMIT = re.compile("[0-9a-f]{40}")


class Reading:
    """Bytes ``[start, start + size)``, or to the end, of one state of a file; `attempt` goes on where it stopped.

    The first answer names the commit that it is of, and what is left is read of that one.

    Args:
        repo: URL of the repo.
        headers: with the token, which no other host gets.
        timeout: seconds for the next byte.
    """

    def __init__(
        self, repo: str, revision: str, key: str, start: int, size: int | None, headers: dict[str, str], timeout: float
    ) -> None:
        self._repo, self._revision, self._key = repo, revision, key
        self._start, self._size = start, size
        self._headers, self._timeout = {**headers, "Accept-Encoding": "identity"}, timeout
        self._pinned = _COMMIT.fullmatch(revision) is not None
        self._forget()

    @property
    def kept(self) -> int:
        """Bytes that are not asked for again: those of a state that the server named."""
        return self.received if self._pinned else 0

    def _forget(self) -> None:
        self._parts: list[bytes] = []
        self.received = 0
        self._expected: int | None = None

    def attempt(self) -> bytes:
        """Raises whatever the client does; call it again where that may pass."""
        if not self._pinned:
            self._forget()
        if self.received != self._expected:
            self._read(f"{self._repo}/resolve/{quote(self._revision, safe='')}/{self._key}")
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _read(self, url: str) -> None:
        headers = {**self._headers, **self._range()}
        for _ in range(_MOST_REDIRECTS + 1):
            with get_session().stream(
                "GET", url, headers=headers, follow_redirects=False, timeout=self._timeout
            ) as reply:
                if reply.has_redirect_location:
                    self._pin(reply)
                    url, headers = _redirected(url, reply.headers["location"], headers)
                    continue
                if reply.status_code == 416 and not self.received:  # the range begins where the file ends, or later
                    self._expected = 0
                    return
                if reply.status_code >= 400:
                    _check_refusal(reply)
                    hf_raise_for_status(reply)
                self._pin(reply)
                self._check(reply)
                for piece in reply.iter_raw():
                    self._take(piece)
                if self.received != self._expected:
                    raise BrokenOffError(f"{self.received} of {self._expected} bytes came")
                return
        raise StoreError(f"{masked(url)} redirects more than {_MOST_REDIRECTS} times")

    def _range(self) -> dict[str, str]:
        first = self._start + self.received
        last = "" if self._size is None else self._start + self._size - 1
        return {"Range": f"bytes={first}-{last}"} if first or self._size is not None else {}

    def _pin(self, reply: Any) -> None:
        commit = reply.headers.get("x-repo-commit", "")
        if not self._pinned and _COMMIT.fullmatch(commit):
            self._revision, self._pinned = commit, True

    def _check(self, reply: Any) -> None:
        first = self._start + self.received
        ranged, length = reply.headers.get("content-range", ""), reply.headers.get("content-length", "")
        if first and not ranged.startswith(f"bytes {first}-"):
            raise StoreError("the server sends other bytes than it was asked for", expected=f"a range from {first}")
        if not re.fullmatch("[0-9]{1,18}", length):
            raise StoreError("the server does not tell how many bytes it sends", expected="a Content-Length")
        if self._expected is None:
            self._expected = int(length) if self._size is None else min(int(length), self._size)

    def _take(self, piece: bytes) -> None:
        """Holds no more than was announced, whatever comes."""
        self._parts.append(piece)
        self.received += len(piece)
        if self._expected is not None and self.received > self._expected:
            raise StoreError("the server sends more bytes than it was asked for", expected=self._expected)


def _check_refusal(reply: Any) -> None:
    """A server must not fill the memory by what it says is wrong: huggingface_hub reads all of it."""
    length = reply.headers.get("content-length", "")
    if re.fullmatch("[0-9]{1,18}", length) and int(length) <= _LONGEST_REFUSAL:
        return
    said = f"the server answers {reply.status_code}, at a length that it does not tell or that nobody wants"
    raise BrokenOffError(said) if reply.status_code in BUSY_STATUS else StoreError(said)


def _redirected(url: str, location: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Where a redirect leads, and the headers for it: the token is for the host that it was meant for."""
    target = urljoin(url, location)
    before, after = urlsplit(url), urlsplit(target)
    if after.scheme not in ("http", "https") or (before.scheme == "https" and after.scheme != "https"):
        raise StoreError(f"{masked(url)} redirects to {masked(target)[:200]}", expected="https, as it was")
    if (before.scheme, before.netloc) != (after.scheme, after.netloc):
        headers = {name: value for name, value in headers.items() if name.lower() not in ("authorization", "cookie")}
    return target, headers

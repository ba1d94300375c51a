"""Questions to a server over HTTP: the answers of `Predictor`, without a model in this process."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from deltahub.encoding import Text
from deltahub.errors import FormatError, ServerError, UsageError
from deltahub.replies import Reply, ServedTask, joined, of, read_reply, read_task

T = TypeVar("T")

_PASSING = (408, 429, 502, 503, 504)
_MOST_TEXTS = 256
_MOST_BYTES = 1_000_000
_LONGEST_CONNECT = 10.0
_LONGEST_PAUSE = 5.0
_LONGEST_WAIT = 86_400.0
_MALFORMED = (FormatError, KeyError, TypeError, ValueError, OverflowError, RecursionError)


class Client:
    """Asks a deltahub server; safe for many threads.

    What may pass is tried again after growing pauses: no connection, too much that waits, a replica that was lost.
    Redirects are refused, so that a key never goes to another host.

    Args:
        url: of the server, ``"http://127.0.0.1:8000"``.
        key: where the server asks for one.
        timeout: seconds that a request may take, with all its attempts; a long list of texts is several requests.
        attempts: how often a request is sent at most.

    Raises:
        UsageError: a URL, key, timeout or number of attempts that cannot be.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout: float = 60.0, attempts: int = 5) -> None:
        if not timeout > 0 or attempts < 1:
            raise UsageError(
                "a client", expected="a timeout above 0 s and 1 attempt or more", got=f"{timeout} s, {attempts}"
            )
        self.url = _checked_url(url)
        self.timeout = timeout
        self.attempts = attempts
        self._http = httpx.Client(
            headers={} if key is None else {"Authorization": f"Bearer {_checked_key(key)}"},
            mounts=dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]")),  # never through a proxy
        )

    def predict(
        self, task: str, texts: Sequence[Text], pairs: Sequence[str] | None = None, *, truncate: bool = True
    ) -> Reply:
        """One answer for each text; a list too long for one request goes in several, all to the same version.

        Args:
            task: ``"sst2"``, ``"sst2@3"``, ``"sst2:prod"``, or the name of the base for its embeddings.
            texts: for token classification each may also be given as its words.
            pairs: the second text of each, for a task that compares two.
            truncate: cut a text that is longer than the task takes; else it is refused.

        Raises:
            UsageError: no text, a string in place of a list, another number of pairs, or a text that is no Unicode.
            ServerError: the server refuses, fails, cannot be reached, or is none of ours.
        """
        sizes = _sizes(texts, pairs)
        name, most, start = task, _MOST_TEXTS, 0
        replies: list[Reply] = []
        while start < len(sizes):
            end = _end(sizes, start, most)
            part = None if pairs is None else list(pairs[start:end])
            body = _json({"inputs": list(texts[start:end]), "pairs": part, "truncate": truncate})
            try:
                document = self._send("POST", f"{_path(name)}/predict", body)
            except ServerError as error:
                if error.status != 413 or error.reason == "too_long" or end - start == 1:
                    raise
                most = (end - start) // 2  # this server takes less at a time
                continue
            replies.append(self._read(partial(read_reply, texts=end - start), document))
            name, start = replies[-1].reference, end
        return joined(replies)

    def tasks(self) -> list[ServedTask]:
        """The base, then every task by name. Raises as `predict`."""
        return self._read(lambda found: [read_task(card) for card in found["tasks"]], self._send("GET", "/tasks"))

    def task(self, name: str) -> ServedTask:
        """One of `tasks`. Raises as `predict`."""
        return self._read(read_task, self._send("GET", _path(name)))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, method: str, path: str, content: bytes | None = None) -> Any:
        """The document that the server answers; what may pass is tried again."""
        deadline = time.monotonic() + self.timeout
        for attempt in range(1, self.attempts):
            try:
                return self._once(method, path, content, deadline)
            except ServerError as error:
                longest = min(0.1 * 2 ** (attempt - 1), _LONGEST_PAUSE)
                pause = (error.retry_after or 0.0) + random.uniform(longest / 2, longest)  # noqa: S311  (no secret)
                if not error.retryable or time.monotonic() + pause >= deadline:
                    raise
            time.sleep(pause)
        return self._once(method, path, content, deadline)

    def _once(self, method: str, path: str, content: bytes | None, deadline: float) -> Any:
        left = max(deadline - time.monotonic(), 0.001)
        try:
            response = self._http.request(
                method, self.url + path, content=content, headers={"Content-Type": "application/json"},
                timeout=httpx.Timeout(left, connect=min(left, _LONGEST_CONNECT)),
            )  # fmt: skip
        except httpx.TimeoutException:
            raise ServerError(
                f"no answer from {self.url}", expected=f"one within {self.timeout:g} s", retryable=True
            ) from None
        except httpx.ConnectError as error:
            raise ServerError(
                f"{self.url} cannot be reached ({error})", hint="is the server running there?", retryable=True
            ) from None
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise ServerError(
                f"the connection to {self.url} broke before the answer was whole ({error})", hint="ask again",
                retryable=True,
            ) from None  # fmt: skip
        except httpx.HTTPError as error:
            raise self._strange(f"{type(error).__name__} {error}") from None
        if response.status_code != 200:
            raise self._refusal(response)
        return self._read(json.loads, response.content)

    def _refusal(self, response: httpx.Response) -> ServerError:
        status = response.status_code
        if response.has_redirect_location:
            return ServerError(
                f"{self.url} redirects to {response.headers['location'][:200]}", status=status,
                hint="give that URL if you trust it: neither texts nor keys are sent on",
            )  # fmt: skip
        try:
            told = response.json()["error"]
            message, reason = of(str, told["message"]), of(str, told["reason"])
            near = tuple(of(str, name) for name in told.get("near") or ())
            wait = told.get("retry_after") or response.headers.get("retry-after")
            retry_after = None if wait is None else max(0.0, min(float(wait), _LONGEST_WAIT))
        except _MALFORMED:
            return self._strange(f"{status} {response.reason_phrase}: {response.text[:80]}", status)
        return ServerError(
            message, status=status, reason=reason, near=near, retryable=status in _PASSING, retry_after=retry_after
        )

    def _read(self, parse: Callable[[Any], T], found: Any) -> T:
        try:
            return parse(found)
        except _MALFORMED as error:
            raise self._strange(f"no field {error}" if isinstance(error, KeyError) else str(error)[:160]) from None

    def _strange(self, found: str, status: int | None = None) -> ServerError:
        return ServerError(
            f"what answers at {self.url}", expected="a deltahub server", got=found, status=status,
            retryable=status in _PASSING,
        )  # fmt: skip


def _checked_url(url: str) -> str:
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parts = httpx.URL()
    if parts.scheme not in ("http", "https") or not parts.host or parts.userinfo or parts.query or parts.fragment:
        shown = "one with a user or password" if parts.userinfo else ascii(url)[:80]
        raise UsageError("the URL of a server", expected="one like http://127.0.0.1:8000", got=shown)
    return url.rstrip("/")


def _checked_key(key: str) -> str:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError("the key for a server", expected="printable ASCII characters without blanks")
    return key


def _path(name: str) -> str:
    try:
        quoted = quote(name, safe="")
    except UnicodeEncodeError:
        quoted = ""
    if not quoted.strip("."):  # dots alone would lead to another route
        raise UsageError("the task to ask", expected="a name like sst2, sst2@3 or sst2:prod", got=ascii(name)[:60])
    return f"/tasks/{quoted}"


def _json(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def _sizes(texts: Sequence[Text], pairs: Sequence[str] | None) -> list[int]:
    """Bytes of each question in a request."""
    if isinstance(texts, str) or not texts:
        raise UsageError("texts to ask about", expected="a list of them", got="a string" if texts else "none")
    if pairs is not None and len(pairs) != len(texts):
        raise UsageError("second texts", expected=len(texts), got=len(pairs))
    sizes = []
    for row, text in enumerate(texts):
        try:
            sizes.append(len(_json(text)) + (0 if pairs is None else len(_json(pairs[row]))) + 2)
        except UnicodeEncodeError:
            raise UsageError(
                f"text {row + 1} of {len(texts)}", expected="valid Unicode", got="half a surrogate pair"
            ) from None
    return sizes


def _end(sizes: Sequence[int], start: int, most: int) -> int:
    """Where a request that begins with text number ``start`` ends: one text or more, within both limits."""
    end, total = start + 1, sizes[start]
    while end < min(start + most, len(sizes)) and total + sizes[end] <= _MOST_BYTES:
        total += sizes[end]
        end += 1
    return end

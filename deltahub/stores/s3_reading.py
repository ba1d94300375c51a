"""Reading an object of S3 that may break off on the way: what has come is kept, and the rest asked for."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ClientError, IncompleteReadError

from deltahub.errors import StoreError
from deltahub.stores.s3_client import status, told

_PIECE = 1 << 20


class Reading:
    """Bytes ``[start, start + size)``, or to the end, of one state of an object; `attempt` goes on where it stopped."""

    def __init__(self, target: dict[str, str], start: int, size: int | None) -> None:
        self._target, self._start, self._size = target, start, size
        self._forget()

    def _forget(self) -> None:
        self._parts: list[bytes] = []
        self.received = 0
        self._tag = ""
        self._expected: int | None = None

    async def attempt(self, client: Any) -> bytes:
        """Raises whatever the client does; call it again where that may pass."""
        if self.received != self._expected:
            try:
                reply = await client.get_object(**self._target, **self._conditions())
            except ClientError as error:
                return self._without_reply(error)
            async with reply["Body"] as body:
                self._check(reply)
                while piece := await body.read(_PIECE):
                    self._take(piece)
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _conditions(self) -> dict[str, str]:
        first = self._start + self.received
        last = "" if self._size is None else self._start + self._size - 1
        ranged = {"Range": f"bytes={first}-{last}"} if first or self._size is not None else {}
        return {**ranged, "IfMatch": self._tag} if self._tag else ranged

    def _check(self, reply: dict[str, Any]) -> None:
        first = self._start + self.received
        if first and not str(reply.get("ContentRange", "")).startswith(f"bytes {first}-"):
            raise StoreError("the server sends other bytes than it was asked for", expected=f"a range from {first}")
        if self._expected is None:
            told(reply, "ContentLength", "ETag")
            self._expected = reply["ContentLength"] if self._size is None else min(reply["ContentLength"], self._size)
            self._tag = reply["ETag"]

    def _take(self, piece: bytes) -> None:
        """Holds no more than was announced, whatever comes."""
        self._parts.append(piece)
        self.received += len(piece)
        if self._expected is not None and self.received > self._expected:
            raise StoreError("the server sends more bytes than it was asked for", expected=self._expected)

    def _without_reply(self, error: ClientError) -> bytes:
        if status(error) == 416 and not self.received:  # the range begins where the object ends, or later
            return b""
        if status(error) == 412 and self._tag:  # replaced while it was read: begin again
            self._forget()
            raise IncompleteReadError(actual_bytes=0, expected_bytes=0) from error
        raise error

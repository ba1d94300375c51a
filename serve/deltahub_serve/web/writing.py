"""From plain values to the bytes of an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping

from starlette.responses import Response

_FEW = 32


def json_response(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Plain values as JSON: every float to its last bit, NaN and infinity refused by a ValueError."""
    return Response(_dumps(content).encode(), status, headers, media_type="application/json")


async def rows_response(
    rows: Iterable[object],
    count: int,
    headers: Mapping[str, str],
    *,
    name: str | None = None,
    beside: Mapping[str, object] | None = None,
) -> Response:
    """A list as JSON, one row for each of ``count`` texts.

    Many rows are written by another thread: a thousand vectors take about 0.3 s, and others want an answer meanwhile.

    Args:
        name, beside: the field that the list is, and the other fields; without them the list is all.
    """

    def write() -> bytes:
        text = f"[{','.join(_dumps(row) for row in rows)}]"
        if name is not None:
            text = f"{_dumps(beside)[:-1]},{_dumps(name)}:{text}}}"
        return text.encode()

    body = write() if count <= _FEW else await asyncio.to_thread(write)
    return Response(body, headers=headers, media_type="application/json")


def _dumps(content: object) -> str:
    return json.dumps(content, allow_nan=False, separators=(",", ":"))

"""From the bytes of a request to plain values: bounded in size and time, and nothing but strict JSON."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, get_args

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic.fields import FieldInfo
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from deltahub_serve.web.errors import Fault
from deltahub_serve.web.invalid import fault_of

_CLOSE = {"connection": "close"}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonRoute(APIRoute):
    """A route whose body, if it takes one, is read here."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def read_first(request: Request) -> Response:
            state = request.app.state
            body = await read_body(request, state.config.max_body, state.read_timeout)
            if body:
                _check_media_type(request.headers)
            try:
                return await handle(_ReadRequest(request, body, parse(body) if body else None))
            except RequestValidationError as error:
                raise fault_of(error, self._fields()) from None

        return read_first

    def _fields(self) -> Mapping[str, FieldInfo]:
        assert self.body_field is not None
        model: Any = self.body_field.field_info.annotation
        members = [part for part in (model, *get_args(model)) if hasattr(part, "model_fields")]
        found: Mapping[str, FieldInfo] = members[0].model_fields
        return found


class _ReadRequest(Request):
    """A request whose body is in memory already."""

    def __init__(self, request: Request, body: bytes, parsed: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._bytes = body
        self._parsed = parsed

    async def body(self) -> bytes:
        return self._bytes

    async def json(self) -> Any:
        return self._parsed


async def read_body(request: Request, most: int, timeout: float) -> bytes:
    """The whole body.

    Raises:
        Fault: ``too_large``, whatever Content-Length says; ``too_slow`` if it takes more than ``timeout`` seconds.
    """
    told = request.headers.get("content-length", "")
    if told.isascii() and told.isdigit() and (len(told) > 18 or int(told) > most):
        raise _too_large(most)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise _too_large(most)
                parts.append(part)
    except TimeoutError:
        raise Fault("too_slow", f"the body did not arrive within {timeout:g} s", headers=_CLOSE) from None
    except ClientDisconnect:
        raise Fault("gone", "the client went away") from None
    return b"".join(parts)


def parse(body: bytes) -> Any:
    """Strict JSON: UTF-8, no name twice in an object, no NaN, nothing that is not Unicode.

    Raises:
        Fault: ``malformed``.
    """
    try:
        parsed = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if _SURROGATE.search(body):
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"UTF-8, found byte {error.object[error.start]:#04x} at {error.start}") from None
    except UnicodeEncodeError:
        raise _malformed("Unicode, found half a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise _malformed(f"JSON, found at line {error.lineno} column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise _malformed("JSON of a few levels, found far more") from None
    except ValueError:  # an integer of thousands of digits
        raise _malformed("numbers of a usual length") from None
    return parsed


def _check_media_type(headers: Mapping[str, str]) -> None:
    """Only what no web page may send to another origin unasked; so a browser cannot be made to use a local server."""
    told = headers.get("content-type", "")
    kind, _, parameters = told.lower().partition(";")
    kind = kind.strip()
    charset = parameters.partition("charset=")[2].strip(' "')
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise Fault(
            "media_type", f"expected Content-Type: application/json, found {ascii(told[:60]) if told else 'none'}"
        )
    if charset not in ("", "utf-8", "utf8"):
        raise Fault("media_type", f"expected JSON in UTF-8, found charset {charset[:20]!a}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _malformed("each name once in an object, found one twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise _malformed(f"JSON, which has no {name}")


def _malformed(expected: str) -> Fault:
    return Fault("malformed", f"the body: expected {expected}")


def _too_large(most: int) -> Fault:
    return Fault("too_large", f"the body: expected at most {most} bytes; send fewer texts at a time", headers=_CLOSE)

"""The client that `s3.S3Store` works with: one attempt per request, no redirects, and what its errors mean."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp
from s3fs import S3FileSystem

from deltahub.errors import NotFoundError, StoreError, UsageError
from deltahub.stores.secrecy import masked

_BUSY_STATUS = {408, 429, 500, 502, 503, 504}
_BUSY_CODES = {"SlowDown", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "Throttling"}
_FAILURES = (BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError, asyncio.TimeoutError)


@dataclass(frozen=True)
class Patience:
    """How long a store waits for a server, in seconds.

    Attributes:
        attempts: how often a request is made before it has failed; an attempt that moved bytes starts the count anew.
        wait: before the second attempt; doubled before each further one, and shortened by up to a half at random.
        longest: the longest of these waits.
        connect: for a connection.
        read: for the next byte of an answer.
    """

    attempts: int = 6
    wait: float = 0.2
    longest: float = 10.0
    connect: float = 10.0
    read: float = 60.0


class ConditionError(StoreError):
    """A condition of the request does not hold: the object is there, or is another by now."""


class RedirectedError(BotoCoreError):  # type: ignore[misc]
    fmt = "redirected to {location}"


class _NoRedirects:
    """An HTTP session that gives a redirect back as what it is: a server must not send bytes and keys elsewhere."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, *arguments: Any, **options: Any) -> aiohttp.ClientResponse:
        return await self._session.request(*arguments, **{**options, "allow_redirects": False})


class _Session(AIOHTTPSession):  # type: ignore[misc]
    """Answers that redirect are errors, but where one names the region of a bucket: then botocore knows the host."""

    async def send(self, request: Any) -> Any:
        reply = await super().send(request)
        if 300 <= reply.status_code < 400 and "x-amz-bucket-region" not in reply.headers:
            reply.raw.close()
            raise RedirectedError(location=reply.headers.get("location", "an unknown place"))
        return reply

    async def _get_session(self, proxy_url: str | None) -> _NoRedirects:
        return _NoRedirects(await super()._get_session(proxy_url))


def connect(patience: Patience) -> S3FileSystem:
    """A file system of its own, with nothing cached, whose client tries every request once.

    Endpoint, region and credentials are those of botocore: AWS_* variables, ~/.aws, or the machine's role.
    """
    config = {
        "connect_timeout": patience.connect,
        "read_timeout": patience.read,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": 32,
        "response_checksum_validation": "when_required",  # a hub verifies all that it reads by sha256
        "http_session_cls": _Session,
    }
    session = AioSession()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=read_time)
    system = S3FileSystem(session=session, skip_instance_cache=True, use_listings_cache=False, config_kwargs=config)
    try:
        system.connect()
    except ValueError as error:
        raise UsageError(f"S3 cannot be asked ({error})", hint="check AWS_ENDPOINT_URL and AWS_REGION") from None
    return system


def read_time(text: str) -> datetime:
    """As botocore reads a time, which for those of listings takes longer than all the rest of an entry."""
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo:
            return found
    except ValueError:
        pass
    made: datetime = parse_timestamp(text)
    return made


def on_aws(client: Any) -> bool:
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def told(reply: dict[str, Any], *names: str) -> dict[str, Any]:
    """Returns ``reply``; raises StoreError where it lacks what S3 always tells: then a proxy or a page answered.

    An empty listing of such a page would make a collector delete everything.
    """
    if missing := [name for name in names if name not in reply]:
        raise StoreError(
            "the server does not answer as S3 does", expected=f"{', '.join(missing)} in its answer",
            hint="check AWS_ENDPOINT_URL, the proxy and the network",
        )  # fmt: skip
    return reply


def is_failure(error: BaseException) -> bool:
    """Whether `translated` knows what to say."""
    return isinstance(error, _FAILURES)


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, ClientError):
        return status(error) in _BUSY_STATUS or code(error) in _BUSY_CODES
    if isinstance(error, SSLError):
        return False
    passing = HTTPClientError, IncompleteReadError, ResponseParserError, aiohttp.ClientError, asyncio.TimeoutError
    return isinstance(error, passing)


def status(error: ClientError) -> int:
    found: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return found


def code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def translated(error: BaseException, bucket: str, what: str) -> StoreError | NotFoundError:
    """What a user is told; ``what`` is the URL of the object or folder."""
    if isinstance(error, ClientError):
        return _refusal(error, bucket, what)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreError(
            f"no credentials for {what}",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run `aws configure`",
        )
    if isinstance(error, RedirectedError):
        return StoreError(
            f"{what} is {masked(str(error))}, which is not followed", hint="check AWS_REGION and AWS_ENDPOINT_URL"
        )
    return StoreError(
        f"cannot reach {what} ({type(error).__name__}: {masked(str(error))})",
        hint="check the network and AWS_ENDPOINT_URL, then run the command again; nothing was half-written",
    )


def _refusal(error: ClientError, bucket: str, what: str) -> StoreError | NotFoundError:
    name, number = code(error), status(error)
    said = f"{error.operation_name}: {number} {name}"
    if name == "NoSuchBucket":
        return StoreError(
            f"there is no bucket {bucket}", hint="make it first, or check the URL, AWS_REGION and AWS_ENDPOINT_URL"
        )
    if number == 404:
        return NotFoundError(f"there is no {what}")
    if number == 412:
        return ConditionError(f"{what} is there, or has changed ({said})")
    if number in (401, 403):
        return StoreError(
            f"access to {what} is denied ({said})",
            hint="check the credentials, and that they may list, get, put and delete there",
        )
    if 300 <= number < 400:
        return StoreError(
            f"{what} redirects elsewhere, which is not followed ({said})", hint="check AWS_REGION and AWS_ENDPOINT_URL"
        )
    busy = is_passing(error)
    message = masked(str(error.response.get("Error", {}).get("Message", "")))[:200]
    return StoreError(
        f"{what}: the server {'is busy or broken' if busy else 'refused'} ({said} {message})",
        hint="run the command again later" if busy else None,
    )

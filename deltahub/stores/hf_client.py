"""What `hf.HfStore` asks the Hugging Face Hub by: attempts, waits, and what its errors mean."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from deltahub.errors import NotFoundError, StoreError
from deltahub.stores.secrecy import masked

BUSY_STATUS = {408, 425, 429, 500, 502, 503, 504}
_HttpError = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")  # httpx's, or httpx2's
ODD = (KeyError, TypeError, ValueError)
"""What huggingface_hub raises where an answer is not what it takes it for."""
_FINAL = {"UnsupportedProtocol", "TooManyRedirects"}
_LOGIN = "check the name, and `hf auth login` or HF_TOKEN with a token that may read it"
_WORDS = (
    (OfflineModeIsEnabled, "cannot be reached: HF_HUB_OFFLINE is set", "unset it to use a hub that is remote"),
    (HFValidationError, "is no repo", "give it as hf://org/repo or hf://org/repo@revision"),
    (GatedRepoError, "is gated", "ask for access on the repo's page, then `hf auth login`"),
    (RevisionNotFoundError, "has no such revision", "name a branch, tag or commit of the repo"),
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long a store waits for a server, in seconds.

    Attributes:
        attempts: how often a request is made before it has failed; one that moved bytes starts the count anew.
        wait: before the second attempt; doubled before each further one, and shortened by up to a half at random.
        longest: the longest of these waits, but for one that the server asks for.
        asked: the longest wait that a server may ask for.
        read: for the next byte of an answer.
    """

    attempts: int = 6
    wait: float = 0.5
    longest: float = 10.0
    asked: float = 60.0
    read: float = 60.0


class NoRepoError(StoreError, NotFoundError):
    """There is no such repo, or it is private and the token may not see it: the Hub does not tell which."""


class BrokenOffError(Exception):
    """An answer that ended before all of it had come."""


def is_failure(error: BaseException) -> bool:
    """Whether `translated` knows what to say."""
    return isinstance(cause(error), _HttpError | OfflineModeIsEnabled | BrokenOffError | HFValidationError)


def cause(error: BaseException) -> BaseException:
    """huggingface_hub puts what failed in an upload behind a RuntimeError."""
    return error.__cause__ if type(error) is RuntimeError and error.__cause__ else error


def status(error: BaseException) -> int:
    """Of HTTP; 0 where there was no response."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else 0


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, HfHubHTTPError):
        return status(error) in BUSY_STATUS
    return isinstance(error, BrokenOffError) or (isinstance(error, _HttpError) and type(error).__name__ not in _FINAL)


def attempted(
    request: Callable[[], Result], what: str, patience: Patience, moved: Callable[[], int] = lambda: 0
) -> Result:
    """Runs ``request`` until it succeeds, fails for good, or has failed too often without moving bytes.

    Raises:
        NotFoundError, NoRepoError, StoreError: in the words of `translated`.
    """
    failures, before = 0, moved()
    while True:
        try:
            return request()
        except Exception as error:
            found = cause(error)
            if not is_failure(found):
                if isinstance(error, ODD):
                    raise StoreError(
                        f"{what} is not answered as the Hugging Face Hub does ({type(error).__name__}: {error})"[:500],
                        hint="check HF_ENDPOINT, the proxy and the network",
                    ) from error
                raise
            failures, before = (1 if moved() > before else failures + 1), moved()
            if not is_passing(found) or failures >= patience.attempts:
                raise translated(found, what) from error
            pause(found, failures, patience)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Whoever pushes shows a progress of their own, and a log should have none."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def pause(error: BaseException, failures: int, patience: Patience) -> None:
    """Waits as long as the server asks for, or longer after each failure."""
    asked = error.response.headers.get("retry-after", "") if isinstance(error, HfHubHTTPError) else ""
    if re.fullmatch(r"[0-9]{1,6}", asked):
        time.sleep(min(int(asked), patience.asked))
        return
    wait = min(patience.wait * 2 ** (failures - 1), patience.longest)
    time.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 - spreads clients, hides nothing


def translated(error: BaseException, what: str) -> StoreError | NotFoundError:
    """What a user is told; ``what`` is the URL of the object or repo."""
    if isinstance(error, EntryNotFoundError):
        return NotFoundError(f"there is no {what}")
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        return NoRepoError(f"there is no repo for {what}, or it is private", hint=_LOGIN)
    for kind, problem, hint in _WORDS:
        if isinstance(error, kind):
            return StoreError(f"{what} {problem}", hint=hint)
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, what)
    return StoreError(
        f"cannot reach {what} ({type(error).__name__}: {masked(str(error))[:300]})",
        hint="check the network and HF_ENDPOINT, then run the command again; nothing was half-written",
    )


def _refusal(error: HfHubHTTPError, what: str) -> StoreError:
    number = status(error)
    said = masked(str(error.server_message or ""))[:200]
    if number in (401, 403):
        return StoreError(
            f"access to {what} is denied ({number} {said})".replace(" )", ")"),
            hint="`hf auth login`, or HF_TOKEN, with a token that may write there",
        )
    busy = is_passing(error)
    return StoreError(
        f"{what}: the server {'is busy or broken' if busy else 'refused'} ({number} {said})".replace(" )", ")"),
        hint="run the command again later" if busy else None,
    )

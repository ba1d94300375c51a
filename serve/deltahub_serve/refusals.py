"""From what went wrong to what a client is told."""

from __future__ import annotations

from deltahub import DeltahubError
from deltahub.errors import (
    CheckpointError,
    FormatError,
    IntegrityError,
    MismatchError,
    NotFoundError,
    StoreError,
    TooLongError,
    UsageError,
)
from deltahub_serve.engine import Closed, Expired
from deltahub_serve.futures import BusyError
from deltahub_serve.questions import Question, Refusal, Refused
from deltahub_serve.scheduler import Overloaded

SOON = 1.0
"""Seconds after which something that passes by itself may have passed."""


def late(seconds: float) -> Refused:
    return Refused(Refusal("timeout", f"no answer after {seconds:.3g} s; ask again, or allow more time", SOON))


def stopping() -> Refused:
    return Refused(Refusal("unavailable", "the server is shutting down; ask again", SOON))


def of_lookup(error: Exception) -> Refused:
    """Why a name gives no task."""
    match error:
        case NotFoundError() | UsageError():
            return Refused(Refusal("unknown", str(error), near=getattr(error, "near", ())))
        case BusyError():
            return Refused(Refusal("overloaded", str(error), SOON))
        case StoreError():  # what it says names the server's own places
            message = "the hub cannot be read now, and this is not in memory; ask again later"
            return Refused(Refusal("unavailable", message, SOON))
        case CheckpointError() | FormatError() | IntegrityError() | MismatchError():
            return Refused(Refusal("unusable", str(error)))
    return Refused(Refusal("failed", _line(error)))


def check(question: Question, reference: str, kind: str, most: int) -> None:
    """Refuses what a task of ``kind`` cannot be asked, or not with so many texts, before any work is done."""
    asked = len(question.texts)
    if question.kinds and kind not in question.kinds:
        expected = f"expected one of {', '.join(question.kinds)}"
        raise Refused(Refusal("kind", f"{reference} is a task of {kind}: {expected}; ask it on the route for its kind"))
    if not asked:
        raise Refused(Refusal("invalid", "no texts: expected one or more"))
    if asked > most:
        raise Refused(Refusal("too_many", f"{asked} texts at once: expected at most {most}; send them in parts"))


def of_input(error: DeltahubError) -> Refused:
    """Why texts are not taken."""
    if isinstance(error, TooLongError):
        return Refused(Refusal("too_long", str(error)))
    return Refused(Refusal("invalid" if isinstance(error, UsageError) else "unusable", str(error)))


def of_pass(error: BaseException) -> Refused:
    """Why the engine gave no answer."""
    match error:
        case Overloaded():
            return Refused(Refusal("overloaded", f"{error}; ask again later", error.retry_after))
        case Expired():
            return Refused(Refusal("timeout", str(error), SOON))
        case Closed():
            return Refused(Refusal("unavailable", _line(error), SOON))
        case MismatchError():
            return Refused(Refusal("unusable", str(error)))
    return Refused(Refusal("failed", _line(error)))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

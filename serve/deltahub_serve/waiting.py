"""Requests that wait: what the scheduler carries for the engine, and the future that the caller has."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from deltahub_serve.passes import Answered
from deltahub_serve.runner import Key, Row
from deltahub_serve.scheduler import Request


class Waiting(Future[Answered]):
    """The future of one request; `Engine.cancel` cancels it."""

    request: Request[Key]


@dataclass(frozen=True)
class Work:
    """A request's payload."""

    row: Row
    future: Waiting


def taken(request: Request[Key]) -> Waiting:
    """The future, for its answer; the request lets go of its task, which queues and futures would keep in memory."""
    future: Waiting = request.payload.future
    request.payload = None
    return future


def begun(request: Request[Key]) -> bool:
    """Whether somebody still wants it, who cannot cancel it any more."""
    if request.payload.future.set_running_or_notify_cancel():
        return True
    request.payload = None
    return False


def fail(request: Request[Key], error: Exception) -> None:
    """Gives ``error`` to whoever waits."""
    future = taken(request)
    if future.running() or future.set_running_or_notify_cancel():
        future.set_exception(error)

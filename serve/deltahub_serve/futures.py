"""Small futures: one that is done, one that failed, and one's own view of another."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TypeVar

from deltahub import DeltahubError

T = TypeVar("T")


class BusyError(DeltahubError):
    """Too much is being loaded; the same question may be answered later."""


def follow(job: Future[T]) -> Future[T]:
    """A future of one's own, which can be cancelled without a loss to others."""
    mine: Future[T] = Future()

    def pass_on(ended: Future[T]) -> None:
        if not mine.set_running_or_notify_cancel():
            return
        if ended.cancelled():
            mine.set_exception(BusyError("the server is shutting down"))
        elif (error := ended.exception()) is not None:
            mine.set_exception(error)
        else:
            mine.set_result(ended.result())

    job.add_done_callback(pass_on)
    return mine


def done(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future


def failed(error: DeltahubError) -> Future[T]:
    future: Future[T] = Future()
    future.set_exception(error)
    return future

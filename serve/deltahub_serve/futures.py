"""Small futures: one that is done, one that failed, one's own view of another, and waiting for many in a loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

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
        elif isinstance(error := ended.exception(), DeltahubError):
            mine.set_exception(alike(error))
        elif error is not None:
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
    """Its error is one of its own, so that who raises it lengthens no other one's traceback."""
    future: Future[T] = Future()
    future.set_exception(alike(error))
    return future


def alike(error: DeltahubError) -> DeltahubError:
    """The same error without where it happened and what led to it: frames keep alive whatever they had in hand."""
    made = type(error).__new__(type(error))
    made.args = error.args
    made.__dict__.update(error.__dict__)
    return made


async def ended(futures: Sequence[Future[Any]]) -> None:
    """Waits, without a thread, until all of ``futures`` have ended in whatever way."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    left = itertools.count(len(futures) - 1, -1)

    def tell() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def one(_: Future[Any]) -> None:
        if next(left) == 0:
            with contextlib.suppress(RuntimeError):  # whoever waited has gone, and their loop with them
                loop.call_soon_threadsafe(tell)

    for future in futures:
        future.add_done_callback(one)
    await waiter


def otherwise(job: Future[T], alternative: Callable[[DeltahubError], Future[T]]) -> Future[T]:
    """``job``, or where it fails what ``alternative`` then gives. Being too busy is no failure: it passes."""
    if job.done() and job.exception() is None:
        return job
    mine: Future[T] = Future()

    def settle(ended: Future[T]) -> None:
        if not mine.set_running_or_notify_cancel():
            return
        if (error := ended.exception()) is None:
            mine.set_result(ended.result())
        elif isinstance(error, DeltahubError) and not isinstance(error, BusyError):
            _pass_on(alternative(error), mine)
        else:
            mine.set_exception(error)

    job.add_done_callback(settle)
    return mine


def _pass_on(source: Future[T], target: Future[T]) -> None:
    def settle(ended: Future[T]) -> None:
        if (error := ended.exception()) is None:
            target.set_result(ended.result())
        else:
            target.set_exception(error)

    source.add_done_callback(settle)

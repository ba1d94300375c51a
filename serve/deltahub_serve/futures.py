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


def follow(job: Future[T], otherwise: Callable[[DeltahubError], Future[T]] | None = None) -> Future[T]:
    """A future of one's own, which can be cancelled without a loss to others.

    Args:
        otherwise: gives what is followed instead where ``job`` fails. Being too busy is no failure: it passes.
    """
    if job.done() and not job.cancelled() and job.exception() is None:
        return job
    mine: Future[T] = Future()

    def settle(ended: Future[T]) -> None:
        if mine.set_running_or_notify_cancel():
            _end(mine, ended, otherwise)

    job.add_done_callback(settle)
    return mine


def _end(mine: Future[T], ended: Future[T], otherwise: Callable[[DeltahubError], Future[T]] | None) -> None:
    if ended.cancelled():
        mine.set_exception(BusyError("the server is shutting down"))
    elif (error := ended.exception()) is None:
        mine.set_result(ended.result())
    elif not isinstance(error, DeltahubError):
        mine.set_exception(error)
    elif otherwise is None or isinstance(error, BusyError):
        mine.set_exception(alike(error))
    else:
        otherwise(error).add_done_callback(lambda other: _end(mine, other, None))


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

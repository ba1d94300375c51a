"""From a request to a question, and from the reply to the headers that every family shares."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar
from urllib.parse import quote

from starlette.requests import Request

from deltahub.encoding import Text
from deltahub_serve.config import Config
from deltahub_serve.questions import Backend, Question, Reply
from deltahub_serve.web.errors import Fault

T = TypeVar("T")


async def ask(
    request: Request,
    name: str | None,
    texts: Sequence[Text],
    pairs: Sequence[str] | None = None,
    *,
    kinds: tuple[str, ...] = (),
    truncate: bool,
    timeout: float | None = None,
) -> Reply:
    """The answers; what was begun is given up when the client goes away.

    Args:
        name: None takes the configured default task.

    Raises:
        Fault: no task at all, more texts than may be asked, or nobody who waits for the answer.
        Refused: by whoever would answer.
    """
    config: Config = request.app.state.config
    task = name if name is not None else config.default_task
    if task is None:
        raise Fault("invalid", "model: expected the name of a task, since this server has no default", param="model")
    if len(texts) > config.max_inputs:
        raise Fault("too_many", f"expected at most {config.max_inputs} texts in a request, found {len(texts)}")
    question = Question(
        task, tuple(text if isinstance(text, str) else tuple(text) for text in texts),
        None if pairs is None else tuple(pairs), kinds, truncate, timeout,
    )  # fmt: skip
    backend: Backend = request.app.state.backend
    return await _while_there(request, backend.ask(question))


def headers_of(reply: Reply) -> dict[str, str]:
    """Who answered, and milliseconds of each step; names as in Text Embeddings Inference where it has them."""
    seconds = reply.seconds
    steps = {"tokenization": seconds.prepare, "queue": seconds.queue, "swap": seconds.swap, "inference": seconds.run}
    headers = {f"x-{step}-time": f"{1000 * took:.3f}" for step, took in steps.items()}
    headers["server-timing"] = ", ".join(f"{step};dur={1000 * took:.3f}" for step, took in steps.items())
    headers["x-task"] = quote(reply.task, safe="/:@ ")  # the base may be called anything
    headers["x-task-digest"] = reply.digest
    headers["x-batch-rows"] = str(reply.rows)
    headers["x-batch-tasks"] = str(reply.tasks)
    headers["x-replica"] = quote(reply.replica, safe="#")
    if reply.version is not None:
        headers["x-task-version"] = str(reply.version)
    return headers


async def _while_there(request: Request, work: Awaitable[T]) -> T:
    """What ``work`` gives; it is cancelled as soon as the client has gone, or when this is cancelled."""
    asking = asyncio.ensure_future(work)
    asking.add_done_callback(_forget)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((asking, leaving), return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return asking.result()
        leaving.result()
        raise Fault("gone", "the client went away")
    finally:
        leaving.cancel()
        asking.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _forget(task: asyncio.Future[T]) -> None:
    """An error that nobody waits for any more is not worth a line in the log."""
    if not task.cancelled():
        task.exception()

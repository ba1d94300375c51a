"""The routes of deltahub's own: tasks of every kind, with all that is known about an answer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deltahub_serve.questions import TaskCard
from deltahub_serve.web.asking import ask, headers_of
from deltahub_serve.web.bodies import AskBody
from deltahub_serve.web.errors import NATIVE, Fault
from deltahub_serve.web.reading import JsonRoute
from deltahub_serve.web.replies import AskReply, Task, TaskList, responses
from deltahub_serve.web.writing import json_response, rows_response

router = APIRouter(route_class=JsonRoute, tags=["deltahub"])


@router.get("/tasks", responses=responses(NATIVE, TaskList))
async def cards(request: Request) -> Response:
    """The base, then every task by name."""
    found = await request.app.state.backend.cards()
    return json_response({"tasks": [card_fields(card) for card in found]})


@router.post("/tasks/{task:path}/predict", responses=responses(NATIVE, AskReply))
async def predict(request: Request, task: str, body: AskBody) -> Response:
    """Answers of a task of any kind."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    pairs = [body.pairs] if isinstance(body.pairs, str) else body.pairs
    if pairs is not None and len(pairs) != len(texts):
        raise Fault("invalid", f"pairs: expected {len(texts)}, one for each text, found {len(pairs)}", param="pairs")
    reply = await ask(request, task, texts, pairs, truncate=body.truncate, timeout=body.timeout)
    content = {
        "task": reply.task,
        "version": reply.version,
        "digest": reply.digest,
        "kind": reply.kind,
        "labels": reply.labels,
        "tokens": reply.tokens,
        "seconds": asdict(reply.seconds),
        "replica": reply.replica,
    }
    rows = (answer.as_dict() for answer in reply.answers)
    return await rows_response(rows, len(reply.answers), headers_of(reply), name="answers", beside=content)


@router.get("/tasks/{task:path}/predict", include_in_schema=False)
async def only_posted(task: str) -> Response:
    """Without it, the next route would take ``/predict`` for a part of the name."""
    raise Fault("no_method", f"expected POST, to ask {task[:60]!a}", headers={"allow": "POST"})


@router.get("/tasks/{task:path}", responses=responses(NATIVE, Task))
async def card(request: Request, task: str) -> Response:
    """One task, with the version of each tag."""
    return json_response(card_fields(await request.app.state.backend.card(task)))


def card_fields(card: TaskCard) -> dict[str, Any]:
    """Plain values for JSON."""
    return asdict(card)

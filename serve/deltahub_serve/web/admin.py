"""What whoever runs the server may do to it, with an admin key."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deltahub_serve.web.bodies import EvictBody, NameBody, RefreshBody
from deltahub_serve.web.errors import NATIVE
from deltahub_serve.web.reading import JsonRoute
from deltahub_serve.web.replies import Evicted, Pinned, Refreshed, States, Unpinned, responses
from deltahub_serve.web.writing import json_response

router = APIRouter(prefix="/admin", route_class=JsonRoute, tags=["admin"])


@router.get("/state", responses=responses(NATIVE, States))
async def state(request: Request) -> Response:
    """How each replica is."""
    return json_response({"replicas": [asdict(found) for found in await request.app.state.backend.states()]})


@router.post("/refresh", responses=responses(NATIVE, Refreshed))
async def refresh(request: Request, body: RefreshBody | None = None) -> Response:
    """Looks tasks up in the hub now; the names whose meaning changed."""
    names = None if body is None or body.names is None else tuple(body.names)
    return json_response({"changed": await request.app.state.backend.refresh(names)})


@router.post("/pin", responses=responses(NATIVE, Pinned))
async def pin(request: Request, body: NameBody) -> Response:
    """Loads a task everywhere and keeps it."""
    return json_response({"pinned": await request.app.state.backend.pin(body.name)})


@router.post("/unpin", responses=responses(NATIVE, Unpinned))
async def unpin(request: Request, body: NameBody) -> Response:
    """Lets a pinned task go; whether it was pinned."""
    return json_response({"unpinned": await request.app.state.backend.unpin(body.name)})


@router.post("/evict", responses=responses(NATIVE, Evicted))
async def evict(request: Request, body: EvictBody | None = None) -> Response:
    """Forgets a task's versions, or all that are not pinned; how many."""
    return json_response({"evicted": await request.app.state.backend.evict(None if body is None else body.task)})

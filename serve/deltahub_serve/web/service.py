"""How the server itself is: start page, health, information, metrics."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from prometheus_client import generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from deltahub_serve.config import Config
from deltahub_serve.metrics import merge
from deltahub_serve.questions import Refused, State
from deltahub_serve.web.errors import NATIVE, TEI
from deltahub_serve.web.reading import JsonRoute
from deltahub_serve.web.replies import Health, Info, Start, failures, responses
from deltahub_serve.web.writing import json_response

router = APIRouter(route_class=JsonRoute, tags=["server"])
VERSION = version("deltahub")
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE = 10.0
"""Seconds after which a replica that does not say how it is counts as none."""


@router.get("/", responses=responses(NATIVE, Start))
async def start(request: Request) -> Response:
    """What is here; needs no key, so it tells nothing about the base."""
    routes = sorted(request.app.openapi()["paths"])
    return json_response({"name": "deltahub", "version": VERSION, "routes": routes, "openapi": "/openapi.json"})


@router.get("/health", responses={**responses(NATIVE, Health), 503: {"model": Health}})
async def health(request: Request) -> Response:
    """200 while any replica can answer; ``degraded`` says that others are missing or wrong, or the hub is.

    Needs no key, so it tells no details; ``/info`` does.
    """
    try:
        async with asyncio.timeout(_PATIENCE):
            states = await request.app.state.backend.states()
    except (Refused, TimeoutError):
        states = []
    content = _health(states, request.app.state.wanted)
    return json_response(content, status=503 if content["status"] == "down" else 200)


@router.get("/info", responses=responses(TEI, Info))
async def info(request: Request) -> Response:
    """What is served and how each replica is."""
    config: Config = request.app.state.config
    states = await request.app.state.backend.states()
    first = states[0] if states else None
    content = {
        "model_id": config.base_name or (first.base if first else config.base),
        "model_sha": first.base_digest if first else None,
        "model_dtype": first.dtype if first else None,
        "max_client_batch_size": config.max_inputs,
        "default_task": config.default_task,
        "version": VERSION,
        "replicas": [asdict(state) for state in states],
    }
    return json_response(content)


@router.get("/metrics", response_class=PlainTextResponse, responses=failures(NATIVE))
async def metrics(request: Request) -> Response:
    """Prometheus text: of every replica, and of the HTTP requests that this process took."""
    told = await request.app.state.backend.metrics()
    replicas = await asyncio.to_thread(merge, told)  # takes long where there are many tasks
    traffic = generate_latest(request.app.state.traffic.registry)
    return Response(replicas + traffic, media_type=_PROMETHEUS)


def _health(states: list[State], wanted: int) -> dict[str, Any]:
    healthy = [state for state in states if state.broken is None]
    problems = []
    if len(healthy) < len(states):
        problems.append("a replica cannot answer any more")
    if len(states) < wanted:
        problems.append(f"{len(states)} replicas run where {wanted} should")
    if not healthy:
        problems = ["no replica can answer"]
    if any(state.hub is not None for state in states):
        problems.append("the hub cannot be read; tasks in memory are still served")
    status = "down" if not healthy else "degraded" if problems else "ok"
    return {
        "status": status, "problems": problems, "replicas": len(states), "healthy": len(healthy), "wanted": wanted
    }  # fmt: skip

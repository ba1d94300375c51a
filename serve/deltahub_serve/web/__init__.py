"""The web application: routes over a `questions.Backend`, wherever that has its models."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from deltahub_serve.config import Config
from deltahub_serve.questions import Backend, Refused
from deltahub_serve.web import admin, openai, service, tasks, tei
from deltahub_serve.web.auth import Keys
from deltahub_serve.web.document import describe
from deltahub_serve.web.entrance import Entrance, Traffic
from deltahub_serve.web.errors import Fault, fault_response

__all__ = ["application"]


def application(backend: Backend, config: Config, *, read_timeout: float = 30.0, wanted: int = 1) -> FastAPI:
    """The routes, behind keys where there are any.

    There is no page of documentation: the usual ones load scripts from elsewhere. ``/openapi.json`` has everything.

    Args:
        read_timeout: seconds that the body of a request may take to arrive.
        wanted: replicas that should answer; ``/health`` says where there are fewer.
    """
    traffic = Traffic()
    app = _Application(
        title="deltahub",
        version=service.VERSION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(Entrance, traffic=traffic),
            Middleware(Keys, api_keys=config.api_keys, admin_keys=config.admin_keys),
        ],
        exception_handlers={Fault: _fault, Refused: _refused, HTTPException: _no_route},
    )
    app.state.backend, app.state.config, app.state.traffic = backend, config, traffic
    app.state.read_timeout, app.state.wanted = read_timeout, wanted
    for family in (openai, tasks, tei, service, admin):  # a request tries them in this order
        app.include_router(family.router)
    return app


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            config: Config = self.state.config
            self.openapi_schema = describe(super().openapi(), config)
        return self.openapi_schema


async def _fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, Fault)
    return fault_response(request.scope, error)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return fault_response(request.scope, Fault.of(error.refusal))


async def _no_route(request: Request, error: Exception) -> Response:
    """What Starlette's router says where nothing answers this path, or not this method."""
    assert isinstance(error, HTTPException)
    shown = ascii(request.scope["path"][:100])
    if error.status_code == 405:
        fault = Fault("no_method", f"{shown} does not take {request.method[:20]}", headers=error.headers)
    else:
        fault = Fault("no_route", f"there is no route {shown}; /openapi.json has them all")
    return fault_response(request.scope, fault)

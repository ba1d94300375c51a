"""The Ray Serve application: ``serve run deltahub_serve.app:build hub=... base=...``, or ``serve deploy config.yaml``.

`Model` holds the base, one worker in each replica. `Gateway` takes requests and routes each to the replica that has its
task; without gateways each replica takes its own requests, which saves a hop.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from deltahub.errors import DeltahubError
from deltahub_serve.arguments import Plan, checked, plan
from deltahub_serve.backends import Door, FleetBackend, RemoteBackend, declined
from deltahub_serve.config import Config, Live
from deltahub_serve.routing import TaskRouter

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve.handle import DeploymentHandle
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from deltahub_serve.questions import Backend

MODEL, GATEWAY = "Model", "Gateway"
QUIET = {"log_level": "WARNING", "enable_access_log": False}
_ONGOING = 10_000
"""Requests that Ray lets into a replica: more than ever wait there, for the scheduler's own limits answer with 429."""
_CLOSE = 5.0
_DRAIN = 30.0
"""Seconds beyond a request's timeout for what has to end."""

logger = logging.getLogger("deltahub_serve")


def build(args: dict[str, Any]) -> serve.Application:
    """The application.

    Args:
        args: fields of `config.Config`, `config.Live` and `arguments.Plan`; keys also as ``api_keys_file`` and
            ``admin_keys_file``. ``hub`` and keys may come from ``DELTAHUB_HUB``, ``DELTAHUB_API_KEYS`` and
            ``DELTAHUB_ADMIN_KEYS`` instead.

    Raises:
        UsageError: an argument that is unknown, missing or wrong.
    """
    chosen = plan(args)
    common: dict[str, Any] = {
        "max_ongoing_requests": _ONGOING,
        "logging_config": QUIET,
        "max_constructor_retry_count": 1,
    }
    model: serve.Application = serve.deployment(
        name=MODEL,
        num_replicas=chosen.replicas,
        ray_actor_options={"num_cpus": chosen.cpus, "num_gpus": chosen.gpus},
        health_check_period_s=1.0,
        health_check_timeout_s=10.0,
        graceful_shutdown_timeout_s=chosen.config.live.timeout + _DRAIN,
        graceful_shutdown_wait_loop_s=0.2,
        request_router_config={"request_router_class": TaskRouter, "initial_backoff_s": 0.01},
        **common,
    )(Model if chosen.gateways else serve.ingress()(Model)).bind(chosen.model_dump(mode="json"))
    if not chosen.gateways:
        return model
    gateway: serve.Application = serve.deployment(
        name=GATEWAY,
        num_replicas=chosen.gateways,
        graceful_shutdown_timeout_s=chosen.config.live.timeout + _DRAIN,
        graceful_shutdown_wait_loop_s=0.2,
        **common,
    )(serve.ingress()(Gateway)).bind(chosen.config.model_dump(mode="json"), model, chosen.replicas)
    return gateway


class Gateway:
    """Takes requests for so many replicas of ``model``; has none itself. ``config`` is a `config.Config` as JSON."""

    def __init__(self, config: dict[str, Any], model: DeploymentHandle[Any], replicas: int) -> None:
        self._config = Config.model_validate(config)
        self._replicas = replicas
        self._door = Door()
        self._backend = RemoteBackend(lambda: model, self._door)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return _web(self._backend, self._config, self._door, self._replicas)

    async def drain(self) -> int:
        """Lets no more questions in; how many are still to be answered."""
        return self._door.shut()


class Model:
    """A replica: one base, one worker. ``chosen`` is an `arguments.Plan` as JSON."""

    def __init__(self, chosen: dict[str, Any]) -> None:
        from deltahub_serve.worker import Worker

        self._plan = Plan.model_validate(chosen)
        self._door = Door()
        context = serve.get_replica_context()
        self._replica = context.replica_tag
        self._place = (context.deployment, context.app_name)
        self._started = False
        self._worker = Worker(_with_threads(self._plan.config), self._replica, stuck_after=self._plan.stuck_after)

    def __serve_build_asgi_app__(self) -> FastAPI:
        plan = self._plan
        own = functools.partial(serve.get_deployment_handle, *self._place)
        return _web(FleetBackend(self._worker, own, self._door), plan.config, self._door, plan.replicas)

    async def call(self, method: str, *arguments: Any) -> Any:
        """A method of `questions.Backend`; a refusal comes back as `backends.Declined`."""
        return await declined(self._replica, self._worker, method, arguments)

    async def drain(self) -> int:
        """Lets no more questions in; how many are still to be answered."""
        return self._door.shut()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Applies a `config.Live` at once. A wrong one stops a replica that starts; one that runs keeps its own."""
        try:
            self._worker.reconfigure(checked(Live, self._plan.config.live.model_dump() | user_config))
        except DeltahubError as error:
            if not self._started:
                raise
            logger.error("user_config was not applied, the one before stays: %s", error)

    async def check_health(self) -> None:
        """Raises where this replica cannot answer any more, so that Ray puts another in its place."""
        self._started = True
        if trouble := self._worker.trouble():
            raise RuntimeError(trouble)

    def __del__(self) -> None:
        if worker := self.__dict__.pop("_worker", None):
            worker.close(drain=False, timeout=_CLOSE)  # Ray has waited for the requests, and calls this in their loop


class _RayManners:
    """Counts requests at the door, and takes our x-request-id out of answers: Ray's proxy adds the same by itself."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a lifespan lasts as long as the replica
            await self.app(scope, receive, send)
            return

        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [item for item in message["headers"] if item[0] != b"x-request-id"]
            await send(message)

        with self._door.inside_of():
            await self.app(scope, receive, pass_on)


def _web(backend: Backend, config: Config, door: Door, replicas: int) -> FastAPI:
    from deltahub_serve.web import application

    made = application(backend, config, wanted=replicas)
    made.add_middleware(_RayManners, door=door)
    return made


def _with_threads(config: Config) -> Config:
    """As many torch threads as Ray gave this replica CPUs; Ray's own way, OMP_NUM_THREADS, is not torch's alone."""
    if config.threads is not None:
        return config
    given = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
    return config.model_copy(update={"threads": max(1, int(given))})

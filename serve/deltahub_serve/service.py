"""What `deltahub serve` was told, made into a Ray Serve configuration; all that can be checked before Ray starts."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltahub import Base, Hub
from deltahub.errors import UsageError
from deltahub_serve.arguments import Plan, checked, plan
from deltahub_serve.config import Live

if TYPE_CHECKING:
    from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

BUILDER = "deltahub_serve.app:build"
_LIGHT = {"user_config", "num_replicas", "autoscaling_config"}
"""What Ray Serve changes of a deployment without a restart of its replicas."""


@dataclass(frozen=True)
class Launch:
    """What `deltahub serve` was told.

    Attributes:
        arguments: of `app.build`.
        file: a Ray Serve configuration in place of the arguments.
        host, port: where to listen; the file's, then 127.0.0.1 and 8000, where None; port 0 takes a free one.
        address: of a Ray cluster to join.
        environment: where keys are looked for.
    """

    arguments: Mapping[str, Any]
    file: Path | None = None
    host: str | None = None
    port: int | None = None
    address: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Service:
    """The application as Ray Serve takes it.

    Attributes:
        plan: what its arguments mean.
        live: what it begins with, ``user_config`` included.
    """

    schema: ServeDeploySchema
    plan: Plan
    live: Live

    @property
    def application(self) -> ServeApplicationSchema:
        return next(one for one in self.schema.applications if one.import_path == BUILDER)

    @property
    def name(self) -> str:
        return self.application.name

    @property
    def host(self) -> str:
        return self.schema.http_options.host

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  (compared, not bound)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.schema.http_options.port}"

    @property
    def cpus(self) -> float:
        """All that it can grow to ask for."""
        deployments = {one.name: one for one in self.application.deployments}
        planned = (("Model", self.plan.replicas, self.plan.cpus), ("Gateway", self.plan.gateways, 1.0))
        return sum(_most(deployments.get(name), count, cpus) for name, count, cpus in planned)

    def with_gpus(self, gpus: float) -> Service:
        planned = self.plan.model_copy(update={"gpus": gpus})
        self.application.args = planned.arguments()
        return replace(self, plan=planned)

    def heavier_changes(self, other: Service) -> list[str]:
        """What ``other`` changes that cannot be changed without a restart."""
        mine, its = self.application.args, other.application.args
        found = [name for name in sorted({*mine, *its}) if mine.get(name) != its.get(name)]
        return found + (["deployments"] if _fixed(self.application) != _fixed(other.application) else [])


def prepare(launch: Launch, *, listening: int | None = None) -> Service:
    """Everything that can be checked without Ray or the base in memory.

    Args:
        listening: the port that is ours already.

    Raises:
        DeltahubError: arguments, file, hub, base, keys or port that cannot be used.
    """
    from ray.serve.schema import ServeDeploySchema

    document = _read(launch.file) if launch.file else _document()
    http = dict(document.get("http_options") or {})
    http["host"] = launch.host or http.get("host", "127.0.0.1")
    http["port"] = launch.port if launch.port is not None else http.get("port", 8000)
    schema = checked(ServeDeploySchema, document | {"http_options": http})
    ours = [one for one in schema.applications if one.import_path == BUILDER]
    if len(ours) != 1:
        raise UsageError(
            f"--config {launch.file}", expected=f"one application with import_path {BUILDER}", got=len(ours)
        )
    planned = plan(ours[0].args if launch.file else _shared(launch.arguments), launch.environment)
    ours[0].args = planned.arguments()
    model = next((one for one in ours[0].deployments if one.name == "Model"), None)
    user_config = model.user_config if model and isinstance(model.user_config, dict) else {}
    live = checked(Live, planned.config.live.model_dump() | user_config)
    if listening is None:
        Hub.open(planned.config.hub, create=False)
        Base.open(planned.config.base, planned.config.revision)
        if launch.address is None:
            schema.http_options.port = free_port(schema.http_options.host, schema.http_options.port)
    else:
        schema.http_options.port = listening
    return Service(schema, planned, live)


def free_port(host: str, port: int) -> int:
    """``port``, or one that is free where it is 0.

    Raises:
        UsageError: it is taken, or ``host`` is no address of this machine.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port} ({error.strerror or error})",
            hint="give another --port; 0 takes a free one",
        ) from None


def _document() -> dict[str, Any]:
    application = {"name": "deltahub", "route_prefix": "/", "import_path": BUILDER, "args": {}}
    return {"proxy_location": "HeadOnly", "applications": [application]}


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path} cannot be read ({error})") from None
    if not isinstance(document, dict):
        raise UsageError(f"--config {path}", expected="a Ray Serve configuration", got=type(document).__name__)
    return document


def _shared(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """With this machine's CPUs shared among the replicas where nobody said how many each has."""
    replicas = int(arguments.get("replicas", 1))
    return {"cpus": max(1, len(os.sched_getaffinity(0)) // max(replicas, 1))} | dict(arguments)


def _most(given: DeploymentSchema | None, count: int, cpus: float) -> float:
    """CPUs of a deployment at its largest."""
    if given is None:
        return count * cpus
    scaling = given.autoscaling_config if isinstance(given.autoscaling_config, dict) else {}
    most = scaling.get("max_replicas") or (given.num_replicas if isinstance(given.num_replicas, int) else count)
    actor = given.ray_actor_options.model_dump() if hasattr(given.ray_actor_options, "model_dump") else {}
    return float(most * (cpus if actor.get("num_cpus") is None else actor["num_cpus"]))


def _fixed(application: ServeApplicationSchema) -> list[dict[str, Any]]:
    return [one.model_dump(exclude=_LIGHT, exclude_unset=True) for one in application.deployments]

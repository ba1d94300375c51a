"""Ray as `deltahub serve` uses it: started or joined, given the application, watched, drained, stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client  # Ray has no public call that deploys a configuration from Python
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, LoggingConfig, ServeDeploySchema

from deltahub.errors import DeltahubError
from deltahub_serve.questions import State

_POLL = 0.2
_SETTLE = 0.3
_UNKNOWN = 5.0
"""Seconds until a handle that knows no replica is believed."""
_OBJECTS = 256 << 20
"""Bytes of shared memory: only long embeddings travel through it."""


class ServingError(DeltahubError):
    """The application cannot start, or has died for good."""


class LostError(ServingError):
    """Ray does not say how the application is; it may again, since Ray restarts what it is made of."""


@contextlib.contextmanager
def started(address: str | None, cpus: float) -> Iterator[str]:
    """Ray, for as long as the block lasts; gives the folder where its processes, ours among them, write what they log.

    Args:
        address: of a cluster to join; None starts one for this process alone, which ends with it.
        cpus: CPUs that the application asks for; promised even where the machine has fewer.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    context: Any
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address is None:
            total = max(len(os.sched_getaffinity(0)), int(cpus + 0.999))
            context = ray.init(
                address="local", num_cpus=total, include_dashboard=False, object_store_memory=_OBJECTS,
                _node_ip_address="127.0.0.1", **quiet,
            )  # fmt: skip
        else:
            context = ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        raise ServingError(f"Ray did not start: {_last_line(str(error))}") from None
    try:
        yield str(context.address_info["session_dir"]) + "/logs"
    finally:
        ray.shutdown()


def gpus(replicas: int) -> float:
    """GPUs for each of so many replicas: one, or a share of one where there are fewer."""
    there = float(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    return min(1.0, int(100 * there / replicas) / 100) if there else 0.0


def deploy(schema: ServeDeploySchema) -> None:
    """Gives Ray the application, or what has changed of it; `wait` tells when it runs."""
    logs = schema.logging_config or LoggingConfig(log_level="WARNING", enable_access_log=False)
    try:
        with contextlib.suppress(TimeoutError):  # the proxy is late: `wait` asks for it, for as long as it may take
            serve.start(
                proxy_location=schema.proxy_location, http_options=schema.http_options.model_dump(), logging_config=logs
            )
        client = _get_global_client()
        assert client is not None
        client.deploy_apps(schema)
    except (RayError, RayServeException) as error:
        raise ServingError(f"Ray Serve refused the application: {_last_line(str(error))}") from None


def wait(application: str, url: str, step: Callable[[float], None], timeout: float) -> None:
    """Until the application runs and answers at ``url``.

    Args:
        step: called again and again with the seconds since the start.

    Raises:
        ServingError: it cannot run, or nothing answers in ``timeout`` seconds.
    """
    began = time.monotonic()
    while not (_runs(application) and _answers(url)):
        spent = time.monotonic() - began
        if spent > timeout:
            raise ServingError(f"nothing answers at {url} after {timeout:g} s")
        step(spent)
        time.sleep(_POLL)


def check(application: str) -> None:
    """Raises ServingError where the application has died for good, LostError where nobody knows."""
    _runs(application)


def _runs(application: str) -> bool:
    try:
        found = serve.status().applications.get(application)
    except (RayError, RayServeException, ConnectionError) as error:
        raise LostError(f"Ray Serve has died: {_last_line(str(error))}") from None
    if found is None:
        return False
    if found.status == ApplicationStatus.DEPLOY_FAILED:
        told = [deployment.message for deployment in found.deployments.values()] + [found.message]
        raise ServingError(next((line for text in told if (line := _reason(text))), _last_line(found.message)))
    return bool(found.status == ApplicationStatus.RUNNING)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/healthz", timeout=2) as response:  # noqa: S310  (our own http address)
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def drain(application: str, timeout: float) -> int:
    """Lets no more requests in and waits for those under way; how many are left after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    try:
        handle = serve.get_app_handle(application)
        left: int
        while (left := sum(_everyone(handle, "drain"))) and time.monotonic() < end:
            time.sleep(_POLL)
    except (RayError, RayServeException, TimeoutError):
        return 0  # nobody is there to wait for
    time.sleep(_SETTLE)  # the last answers are on their way through Ray's proxy, which says nothing of them
    return left


def stop() -> None:
    """Ends Ray Serve, whose replicas close by themselves."""
    with contextlib.suppress(RayError, RayServeException, TimeoutError):
        serve.shutdown()  # type: ignore[no-untyped-call]


def remove(application: str) -> None:
    """Takes the application out of a cluster that goes on."""
    with contextlib.suppress(RayError, RayServeException, TimeoutError):
        serve.delete(application)


def states(application: str) -> list[State]:
    """Of every replica."""
    answers = _everyone(serve.get_deployment_handle("Model", application), "call", "states")
    return [state for states in answers for state in states]


def _everyone(handle: DeploymentHandle[Any], method: str, *arguments: Any) -> list[Any]:
    """From every replica that lives."""
    end = time.monotonic() + _UNKNOWN
    while True:
        try:
            found = handle.broadcast(method, *arguments).results(timeout_s=60, return_exceptions=True)
        except DeploymentUnavailableError:  # a new handle does not know the replicas yet
            if time.monotonic() > end:
                return []
            time.sleep(_POLL)
            continue
        return [answer for answer in found if not isinstance(answer, BaseException)]


def _reason(text: str) -> str | None:
    """The line of a traceback that says what is wrong, without the name of its class."""
    found = re.findall(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt)): (.+)$", text, re.MULTILINE)
    named = [line for name, line in found if not name.startswith("Ray") and "Traceback" not in line]
    return named[-1].strip() if named else None


def _last_line(text: str) -> str:
    return ([line.strip() for line in text.splitlines() if line.strip()] or ["no reason given"])[-1][:300]

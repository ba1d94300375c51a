"""Ray Serve on this machine and what runs in it: ours, the dedicated model, the peer; nothing is left at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

TOOLS = Path(__file__).parents[1]
ADMIN_KEY = "bench-admin-key"
_LOGICAL_CPUS = 64  # replicas share the cores, as the applications take turns
_WAIT = 120.0


@contextlib.contextmanager
def ray_serve() -> Iterator[str]:
    """Starts Ray and its HTTP proxy on a free port; gives the address. Everything ends and is removed with it."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TOOLS), os.environ.get("PYTHONPATH")]))
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    folder = tempfile.mkdtemp(prefix="dh")  # short, as sockets lie in it
    port = free_port()
    stop = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local", num_cpus=_LOGICAL_CPUS, include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR, object_store_memory=200_000_000, _temp_dir=folder,
        )  # fmt: skip
        signal.signal(signal.SIGTERM, stop)  # Ray has put one in place that aborts
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
        yield f"http://127.0.0.1:{port}"
    finally:
        with _undisturbed():
            left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
            with contextlib.suppress(Exception):  # whatever state an interrupt left Ray in
                serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()
            end(left)
            shutil.rmtree(folder, ignore_errors=True)


def deploy(application: Any, name: str, address: str) -> str:
    """Runs an application under its name; returns its address once it answers."""
    from ray import serve

    serve.run(application, name=name, route_prefix=f"/{name}", logging_config={"log_level": "ERROR"})
    wait_for(f"{address}/{name}/health")
    return f"{address}/{name}"


def ours(hub: Path, base: str, threads: int, *, replicas: int = 1, live: Mapping[str, Any] | None = None) -> Any:
    """The application that `deltahub serve` starts."""
    from deltahub_serve.app import build
    from deltahub_serve.config import hashed_keys

    return build(
        {
            "hub": str(hub), "base": base, "threads": threads, "replicas": replicas, "device": "cpu",
            "admin_keys": hashed_keys(ADMIN_KEY), "live": dict(live or {}),
        }
    )  # fmt: skip


def replicas(name: str) -> list[psutil.Process]:
    """The processes of an application's models, of those that this process started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if f"ServeReplica:{name}:Model" in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_for(url: str, seconds: float = _WAIT) -> None:
    """Raises TimeoutError unless ``url`` answers with 200 in that time."""
    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                if reply.status == 200:
                    return
        except OSError as error:
            reason = error
        if time.monotonic() > until:
            raise TimeoutError(f"{url} does not answer ({reason})")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def end(processes: list[psutil.Process]) -> None:
    """Kills those that are still there; waits until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=20)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second signal must not stop the cleaning up."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

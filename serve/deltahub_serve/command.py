"""`deltahub serve`: starts Ray and the application, waits for signals, drains, stops."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from deltahub.errors import DeltahubError
from deltahub_serve import cluster
from deltahub_serve.service import Launch, Service, prepare
from deltahub_serve.signals import Signals

_START = 900.0
_LATE = 5.0
"""Seconds beyond a request's own timeout until it is given up."""
Say = Callable[[str], None]


def run(launch: Launch, say: Say, show: Say) -> None:
    """Serves until it is told to stop.

    SIGTERM or SIGINT: requests under way are answered, new ones get 503. A second one stops at once. SIGHUP: the file's
    ``user_config`` is read again and applied.

    Args:
        say: takes a line of words for people.
        show: takes the URL, once it answers.

    Raises:
        DeltahubError: it cannot start, or has died for good.
        KeyboardInterrupt: told to stop while it was starting, or for the second time.
    """
    service = prepare(launch)
    if not _is_loopback(service.host) and not service.plan.config.api_keys:
        say(f"warning: listening on {service.host} without a key: whoever reaches it may use it (--api-keys)")
    with Signals() as signals:
        say("starting Ray")
        with cluster.started(launch.address, service.cpus) as logs:
            say(f"logs go to {logs}")
            signals.install()  # ray.init put its own in place
            if launch.file is None and "gpus" not in launch.arguments and service.plan.config.device != "cpu":
                service = service.with_gpus(cluster.gpus(service.plan.replicas))
            try:
                _serve(service, launch, signals, say, show)
            except BaseException:
                if launch.address is not None:  # a Ray of our own ends with the block
                    cluster.remove(service.name)
                raise
    say("stopped")


def _serve(service: Service, launch: Launch, signals: Signals, say: Say, show: Say) -> None:
    say(f"loading {service.plan.config.base}")
    cluster.deploy(service.schema)
    cluster.wait(service.name, service.url, _progress(say), _START)
    signals.ready()
    show(service.url)
    _describe(service, say)
    while (told := signals.wait(1.0)) != "stop":
        cluster.check(service.name)
        if told == "reload":
            service = _reload(service, launch, say)
    say("stopping: requests under way are answered, new ones are refused; a second signal stops at once")
    if left := cluster.drain(service.name, service.live.timeout + _LATE):
        say(f"{left} requests were not answered in time")
    if launch.address is None:
        cluster.stop()
    else:
        cluster.remove(service.name)


def _reload(service: Service, launch: Launch, say: Say) -> Service:
    """Applies what may change while requests are answered; on any doubt nothing."""
    if launch.file is None:
        say("SIGHUP: nothing to read again, since there is no --config")
        return service
    try:
        changed = prepare(launch, listening=service.schema.http_options.port)
    except DeltahubError as error:
        say(f"SIGHUP: nothing was applied: {error}")
        return service
    if names := service.heavier_changes(changed):
        say(f"SIGHUP: nothing was applied: {', '.join(names)} cannot change without a restart")
        return service
    cluster.deploy(changed.schema)
    say(f"SIGHUP: {launch.file} is being applied")
    return changed


def _describe(service: Service, say: Say) -> None:
    states = cluster.states(service.name)
    for state in states[:1]:
        mask = f"mask {state.mask[:12]}" if state.mask else "no mask"
        say(f"base {state.base} ({state.base_digest[:12]}), {mask}, {state.device} with {state.threads} threads")
    say(f"hub {service.plan.config.hub}, {len(states)} replica{'s' * (len(states) != 1)}")
    say("Ctrl-C or SIGTERM stops it once requests under way are answered")


def _progress(say: Say) -> Callable[[float], None]:
    """Says every ten seconds that there is nothing new."""
    said = [0]

    def step(seconds: float) -> None:
        if seconds // 10 > said[0]:
            said[0] = int(seconds // 10)
            say(f"still loading after {seconds:.0f} s")

    return step


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

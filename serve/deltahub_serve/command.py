"""`deltahub serve`: starts Ray and the application, waits for signals, drains, stops."""

from __future__ import annotations

import contextlib
import ipaddress
import threading
import time
from collections.abc import Callable

from deltahub.errors import DeltahubError
from deltahub_serve import cluster
from deltahub_serve.service import Launch, Service, prepare
from deltahub_serve.signals import Signals

_START = 900.0
_LATE = 5.0
"""Seconds beyond a request's own timeout until it is given up."""
_POLL = 1.0
_LOST = 30.0
"""Seconds of Ray's silence after which it is taken for dead."""
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
    watch = Watch(service.name)
    watch.start()
    while (told := signals.wait(1.0)) != "stop":
        watch.check()
        if told == "reload":
            service = _reload(service, launch, say)
    say("stopping: requests under way are answered, new ones are refused; a second signal stops at once")
    if left := cluster.drain(service.name, service.live.timeout + _LATE):
        say(f"{left} requests were not answered in time")
    if launch.address is None:
        cluster.stop()
    else:
        cluster.remove(service.name)


class Watch:
    """Whether the application lives; a moment in which Ray does not say so is no death.

    Ray is asked by a thread of its own, since it may not answer for a minute, and signals must be heard meanwhile.
    """

    def __init__(self, application: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._application = application
        self._clock = clock
        self._heard = clock()
        self._death: cluster.ServingError | None = None

    def start(self) -> None:
        threading.Thread(target=self._ask_again_and_again, name="deltahub-watch", daemon=True).start()

    def check(self) -> None:
        """Raises ServingError where it has died for good, LostError where Ray has said nothing for long."""
        if self._death is not None:
            raise self._death
        if (silent := self._clock() - self._heard) > _LOST:
            raise cluster.LostError(f"Ray has not answered for {silent:.0f} s", hint="see its logs")

    def ask(self) -> None:
        """Asks Ray once; what it says is for `check`."""
        with contextlib.suppress(cluster.LostError):
            try:
                cluster.check(self._application)
            except cluster.LostError:
                raise
            except cluster.ServingError as error:
                self._death = error
            self._heard = self._clock()

    def _ask_again_and_again(self) -> None:
        while self._death is None:
            self.ask()
            time.sleep(_POLL)


def _reload(service: Service, launch: Launch, say: Say) -> Service:
    """Applies what may change while requests are answered; on any doubt nothing."""
    if launch.file is None:
        say("SIGHUP: nothing to read again, since there is no --config")
        return service
    try:
        changed = prepare(launch, listening=service.schema.http_options.port)
        if names := service.heavier_changes(changed):
            say(f"SIGHUP: nothing was applied: {', '.join(names)} cannot change without a restart")
            return service
        cluster.deploy(changed.schema)
    except DeltahubError as error:
        say(f"SIGHUP: nothing was applied: {error}")
        return service
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

"""`deltahub serve` as a user starts and stops it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import ray
from deltahub_serve import cluster, command

from deltahub.cli import main
from tests.serve.app.conftest import World, clients, configuration
from tests.serve.app.serving import begun, until

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]  # of Ray's own files and sockets


def test_sighup_applies_what_may_change_in_the_file_and_nothing_else(world: World) -> None:
    server = world.server
    assert server is not None
    before = until(lambda: len(found := set(world.replicas())) == 2 and found, "both replicas run")

    def reload(text: str) -> None:
        world.file.write_text(text)
        server.process.send_signal(signal.SIGHUP)

    def budgets() -> set[int]:
        return {state["budget"] for state in world.replicas().values()}

    reload(configuration(world, cache_bytes=12_345))
    server.hears("is being applied")
    until(lambda: budgets() == {12_345}, "the new limit")
    reload(configuration(world).replace("threads: 1", "threads: 1, max_inputs: 7"))
    server.hears("nothing was applied: max_inputs cannot change without a restart")
    reload(configuration(world, cache_bytes=-1))
    server.hears("nothing was applied: cache_bytes")
    until(lambda: set(world.replicas()) == before, "Ray lists the same replicas once it has updated each")
    assert budgets() == {12_345}


def test_sigterm_under_load_answers_what_is_under_way_and_refuses_the_rest(world: World) -> None:
    server = world.server
    assert server is not None
    ray.shutdown()  # a process that has joined a Ray ends with it
    loaded = threading.Barrier(5)

    def work(client: int, connection: httpx.Client) -> list[str]:
        seen: list[str] = []
        while True:
            if len(seen) == 10:
                loaded.wait(120)
            try:
                answer = connection.post(f"{server.url}/tasks/task{client}/predict", json={"inputs": ["w1 w2"]})
            except httpx.TransportError:
                return [*seen, "closed"]
            seen.append(str(answer.status_code))
            assert answer.status_code == 200 or answer.headers["retry-after"] == "1", answer.text

    stopper = threading.Thread(target=lambda: (loaded.wait(120), server.process.send_signal(signal.SIGTERM)))
    stopper.start()
    outcomes = clients(4, work)
    stopper.join()
    assert server.ended() == 0
    for seen in outcomes:
        answered = seen.count("200")
        assert answered >= 10
        assert seen == ["200"] * answered + ["503"] * seen.count("503") + ["closed"]
    assert server.words[-1] == "stopped\n"
    assert [line for line in server.words if "not answered" in line] == []


def test_a_killed_command_leaves_no_process(hub_world: World) -> None:
    with begun("--hub", str(hub_world.folder / "hub"), "--base", str(hub_world.folder / "base")) as server:

        def replica() -> bool:
            assert server.process.poll() is None, server.words
            return any("ServeReplica" in "".join(command) for command in server.family().values())

        until(replica, "a replica begins")
        family = server.family().items()
        children = [child for child, command in family if not "".join(command).endswith("Agent")]  # see it later
        server.process.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_what_cannot_be_served_is_said_in_one_line_before_anything_starts(
    hub_world: World, taken: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub, base = str(hub_world.folder / "hub"), str(hub_world.folder / "base")
    none, keys, file = str(tmp_path / "none"), tmp_path / "keys", tmp_path / "config.yaml"
    keys.write_text("short\n")
    file.write_text("applications: []")
    cases: list[tuple[list[str], int, str]] = [
        (["--hub", hub, "--base", base, "--port", str(taken)], 2, "Address already in use); give another --port"),
        (["--hub", hub, "--base", base, "--port", "70000"], 2, "--port: expected 0 to 65535"),
        (["--hub", none, "--base", base], 1, f"no hub at {none}"),
        (["--hub", hub, "--base", none], 1, none),
        (["--hub", hub], 2, "no base: expected --base BASE"),
        (["--hub", hub, "--base", base, "--replicas", "0"], 2, "replicas: Input should be greater than or equal to 1"),
        (["--hub", hub, "--base", base, "--cache", "much"], 2, "--cache: expected a size"),
        (["--hub", hub, "--base", base, "--split", "a=1"], 2, "expected TASK@VERSION=SHARE"),
        (["--hub", hub, "--base", base, "--api-keys", str(keys)], 2, "8 or more printable"),
        (["--hub", hub, "--base", base, "--api-keys", none], 2, f"the key file {none} cannot be read"),
        (["--config", str(file), "--hub", hub], 2, "--config and hub"),
        (["--config", str(file)], 2, "expected one application with import_path deltahub_serve.app:build"),
        (["--config", none], 2, "cannot be read"),
    ]
    for options, code, words in cases:
        assert main(["serve", *options]) == code, options
        told = capsys.readouterr()
        assert told.out == ""
        assert words in told.err, options
        assert told.err.count("\n") == 1, told.err


def test_without_ray_it_says_what_to_install(
    hub_world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ray", "deltahub_serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["serve", "--hub", str(hub_world.folder / "hub"), "--base", str(hub_world.folder / "base")]) == 1
    told = "deltahub: deltahub serve needs ray, which is not installed; pip install 'deltahub[serve]'\n"
    assert capsys.readouterr() == ("", told)


def test_the_second_signal_interrupts() -> None:
    from deltahub_serve.signals import Signals

    with Signals() as signals:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        signals.ready()
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.wait(60) == "reload"
        assert signals.wait(0) is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.wait(60) == "stop"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ray_may_be_silent_for_a_while_but_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now, silent = 0.0, True

    def check(_: str) -> None:
        if silent:
            raise cluster.LostError("no answer")

    monkeypatch.setattr(cluster, "check", check)
    watch = command.Watch("deltahub", lambda: now)
    for now, silent in ((0.0, True), (20.0, True), (25.0, False), (50.0, True)):  # noqa: B007  (both are looked at)
        watch.ask()
        watch.check()
    now = 56.0
    with pytest.raises(cluster.LostError, match="31 s"):
        watch.check()

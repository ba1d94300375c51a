"""`deltahub serve` as a user starts and stops it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from deltahub_serve import cluster, command

from deltahub.cli import main
from tests.serve.app.conftest import World, clients

pytestmark = pytest.mark.timeout(600)


class Server:
    """A `deltahub serve` that answers."""

    def __init__(self, process: subprocess.Popen[str], url: str, words: list[str]) -> None:
        self.process = process
        self.url = url
        self.words = words


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "deltahub.cli", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    words: list[str] = []
    assert process.stdout is not None
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: words.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), "".join(words)
        yield Server(process, url, words)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)
        reader.join(60)
        process.stdout.close()
        process.stderr.close()


def test_sigterm_under_load_answers_what_is_under_way_and_refuses_the_rest(hub_world: World) -> None:
    hub, base = str(hub_world.folder / "hub"), str(hub_world.folder / "base")
    with serving("--hub", hub, "--base", base, "--threads", "1", "--prefetch", "task0") as server:
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
        assert server.process.wait(120) == 0
    for seen in outcomes:
        answered = seen.count("200")
        assert answered >= 10
        assert seen == ["200"] * answered + ["503"] * seen.count("503") + ["closed"]
    assert server.words[-1] == "stopped\n"
    assert [line for line in server.words if "not answered" in line] == []


def test_sighup_applies_the_file_and_a_killed_command_leaves_no_process(hub_world: World, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"

    def write(cache_bytes: int, **more: object) -> None:
        arguments = {"hub": str(hub_world.folder / "hub"), "base": str(hub_world.folder / "base"), "threads": 1} | more
        file.write_text(
            f"applications: [{{name: a, import_path: 'deltahub_serve.app:build', args: {arguments!r}, "
            f"deployments: [{{name: Model, user_config: {{cache_bytes: {cache_bytes}}}}}]}}]"
        )

    def states() -> list[tuple[str, int]]:
        found = httpx.get(f"{server.url}/info", timeout=60).json()["replicas"]
        return [(state["replica"], state["budget"]) for state in found]

    def wait_for(what: str) -> None:
        end = time.monotonic() + 120
        while not any(what in line for line in server.words):
            assert time.monotonic() < end, "".join(server.words)
            time.sleep(0.05)

    write(1_000)
    with serving("--config", str(file)) as server:
        [(replica, budget)] = states()
        assert budget == 1_000
        write(2_000)
        server.process.send_signal(signal.SIGHUP)
        wait_for("is being applied")
        while states() != [(replica, 2_000)]:  # the test's own timeout ends this
            time.sleep(0.1)
        write(3_000, max_inputs=7)
        server.process.send_signal(signal.SIGHUP)
        wait_for("nothing was applied: max_inputs cannot change without a restart")
        write(-1)
        server.process.send_signal(signal.SIGHUP)
        wait_for("nothing was applied: cache_bytes")
        assert states() == [(replica, 2_000)]
        family = psutil.Process(server.process.pid).children(recursive=True)
        children = [child for child in family if not child.name().endswith("Agent")]  # these see it a minute later
        assert len(children) > 4
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


def test_without_ray_it_says_what_to_install(hub_world: World) -> None:
    program = "import sys; sys.modules['ray'] = None; from deltahub.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["serve", "--hub", str(hub_world.folder / "hub"), "--base", str(hub_world.folder / "base")]
    ran = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "deltahub: deltahub serve needs ray, which is not installed; pip install 'deltahub[serve]'\n"


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

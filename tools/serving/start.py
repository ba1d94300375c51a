"""Part ``start``: how long `deltahub serve` takes to its first answer, with few and with many tasks in the hub."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from deltahub import Hub
from serving import apps, checking, load, wire
from serving.load import Plan
from serving.made import KINDS, Maker, kind_of, numbered
from serving.reference import compute

FEW, MANY, DISTINCT = 10, 2000, 40
_WAIT = 180.0


def measure(maker: Maker, texts: Sequence[str], threads: int, *, quick: bool) -> dict[str, Any]:
    """Starts with each hub in turn."""
    sizes = (FEW, 100 if quick else MANY)
    rounds = 1 if quick else 5
    times: dict[int, list[float]] = {size: [] for size in sizes}
    tally = checking.Tally()
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            maker.push(Hub.open(Path(folder, f"{size}")), numbered(size), KINDS, distinct=DISTINCT)
        for number in range(rounds):
            for size in sizes if number % 2 == 0 else sizes[::-1]:
                hub = str(Path(folder, f"{size}"))
                task = numbered(size)[-1 - number]
                asked = wire.ask(task, kind_of_distinct(task), [texts[number]])
                begin = time.monotonic()
                with served(hub, maker.source, threads) as url:
                    _first_answer(f"{url}{asked.path}", asked.body, begin + _WAIT)
                    times[size].append(time.monotonic() - begin)
                    samples = load.run(Plan(url, [asked], 1))
                    checking.require_all(samples)
                known = compute(maker.source, hub, threads, checking.keys(samples))
                tally.add(checking.check(samples, known, alone=True))
    few, many = (times[size] for size in sizes)
    return {
        "tasks": list(sizes), "seconds": [statistics.median(few), statistics.median(many)],
        "ratio": statistics.median(b / a for a, b in zip(few, many, strict=True)), "rounds": rounds, **tally.summary(),
    }  # fmt: skip


def kind_of_distinct(task: str) -> str:
    """As `Maker.push` made it with DISTINCT different ones."""
    number = int(task.removeprefix("task-")) % DISTINCT
    return kind_of(f"task-{number:04d}", KINDS)


@contextlib.contextmanager
def served(hub: str, base: str, threads: int) -> Iterator[str]:
    """`deltahub serve` in a process; gives its address at once, ends it and all that it started."""
    port = apps.free_port()
    command = [
        sys.executable, "-m", "deltahub.cli", "serve", "--hub", hub, "--base", base, "--port", str(port),
        "--threads", str(threads),
    ]  # fmt: skip
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True, env=os.environ.copy())
        try:
            yield f"http://127.0.0.1:{port}"
        except BaseException:
            said.seek(0)
            sys.stderr.write(said.read()[-4000:].decode(errors="replace"))
            raise
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(psutil.Error):
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()
        apps.end(started)


def _first_answer(url: str, body: str, until: float) -> None:
    """Asks until there is an answer, every few milliseconds."""
    request = urllib.request.Request(url, body.encode(), {"content-type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                reply.read()
                return
        except urllib.error.HTTPError as error:
            reason: OSError = error
            if error.code not in (404, 503):  # the proxy is up before the application is
                raise
        except OSError as error:
            reason = error
        if time.monotonic() > until:
            raise TimeoutError(f"{url} does not answer ({reason})")
        time.sleep(0.01)

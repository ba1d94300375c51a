"""HTTP clients that each ask, wait for the answer, and ask again; they run in a process of their own.

Called with the files of a plan and of its result, this module is that process. A result has a line for each request.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PROGRESS = 100  # requests


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        name: how the task is called in it; ``"task"``, ``"task@3"`` or ``"task:tag"``.
        kind, texts: what the task is and what it is asked.
        path: beside the application's address.
        body: JSON.
        headers: beyond those of the plan.
    """

    name: str
    kind: str
    texts: tuple[str, ...]
    path: str
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What clients do.

    Attributes:
        url: of the application.
        asks: taken in turn by whichever client is free.
        clients: so many requests are under way at a time.
        seconds: asks are begun anew until then, and what ends in this time is the result; None asks each once.
        warm: seconds before that.
        timeout: seconds until a client gives an answer up.
    """

    url: str
    asks: Sequence[Ask]
    clients: int
    seconds: float | None = None
    warm: float = 0.0
    timeout: float = 120.0


@dataclass(frozen=True)
class Sample:
    """What became of a request.

    Attributes:
        ask: what was asked.
        start, end: seconds of the machine's monotonic clock.
        status: of HTTP; 0 where the connection failed.
        headers: in lower case.
        body: of the answer, or what the connection failed of.
    """

    ask: Ask
    start: float
    end: float
    status: int
    headers: Mapping[str, str]
    body: str

    @property
    def seconds(self) -> float:
        return self.end - self.start


def run(plan: Plan, on_progress: Callable[[int], None] | None = None) -> list[Sample]:
    """Samples in the order in which they ended; ``on_progress`` hears every so often how many there are."""
    with tempfile.TemporaryDirectory() as name:
        given, found = Path(name, "plan.json"), Path(name, "found.jsonl")
        given.write_text(json.dumps(asdict(plan)), encoding="utf-8")
        command = [sys.executable, __file__, str(given), str(found)]
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if on_progress:
                        on_progress(int(line))
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise RuntimeError(f"the clients ended with exit code {process.returncode}")
        rows = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]
    return [Sample(plan.asks[number], *rest) for number, *rest in rows]


async def _run(plan: dict[str, Any], out: Path) -> None:
    import aiohttp

    numbers = itertools.count()
    asks = plan["asks"]
    begin = time.monotonic() + plan["warm"]
    end = None if plan["seconds"] is None else begin + plan["seconds"]
    done = 0
    with out.open("w", encoding="utf-8") as file:

        async def client(session: aiohttp.ClientSession) -> None:
            nonlocal done
            while True:
                number = next(numbers)
                if (end is None and number >= len(asks)) or (end is not None and time.monotonic() >= end):
                    return
                start, ended, *rest = await _one(session, plan["url"], asks[number % len(asks)])
                if end is not None and not begin <= ended < end:
                    continue
                file.write(json.dumps([number % len(asks), start, ended, *rest]) + "\n")
                done += 1
                if done % PROGRESS == 0:
                    print(done, flush=True)

        timeout = aiohttp.ClientTimeout(total=plan["timeout"])
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=300)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(*(client(session) for _ in range(plan["clients"])))


async def _one(session: Any, url: str, ask: dict[str, Any]) -> tuple[float, float, int, dict[str, str], str]:
    import aiohttp

    headers = {"content-type": "application/json", **ask["headers"]}
    start = time.monotonic()
    try:
        async with session.post(url + ask["path"], data=ask["body"].encode(), headers=headers) as reply:
            text = await reply.text()
            kept = {name.lower(): value for name, value in reply.headers.items()}
            return start, time.monotonic(), reply.status, kept, text
    except (aiohttp.ClientError, TimeoutError) as error:
        return start, time.monotonic(), 0, {}, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    asyncio.run(_run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])))

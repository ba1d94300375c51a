"""Parts ``again``, ``broken`` and ``one_new``: what is there already does not travel a second time."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deltahub import Hub
from deltahub.delta import Delta
from deltahub.syncing import sync
from transfer import pulling
from transfer.made import made_delta
from transfer.server import BUCKET, Counts, Server

_BROKEN_AT = 0.9


def push_again(server: Server, deltas: Sequence[Delta]) -> dict[str, Any]:
    """The same tasks pushed twice; bytes are those of bodies, both ways."""
    counts = []
    for _ in range(2):
        hub, before = Hub.open(f"s3://{BUCKET}/again"), server.counts()
        for delta in deltas:
            hub.push(Delta(delta.manifest, delta.tensors))
        counts.append(server.counts() - before)
    first, second = counts
    return {"first": asdict(first), "second": asdict(second), "share": _bytes(second) / _bytes(first)}


def broken_pull(server: Server, deltas: Sequence[Delta], folder: Path) -> dict[str, Any]:
    """A pull killed when 90 % of the bytes had come, and run again by a new process; bytes out of the server.

    ``again`` are those that travelled twice: what was under way at the kill.
    """
    hub = Hub.open(f"s3://{BUCKET}/again")
    expected = {delta.task: b"".join(delta.dump()) for delta in deltas}
    total = sum(hub.version(task).stored for task in expected)
    out, before = folder / "pulled", server.counts()
    command = [sys.executable, pulling.__file__, hub.store.url, str(folder / "cache"), str(out)]
    killed = subprocess.run([*command, str(int(_BROKEN_AT * total))], check=False).returncode
    assert killed == -signal.SIGKILL
    middle = server.counts()
    subprocess.run(command, check=True)
    assert {path.stem: path.read_bytes() for path in out.glob("*.delta")} == expected
    first, second = middle - before, server.counts() - middle
    again = first.sent + second.sent - total
    return {
        "bytes": total, "first": first.sent, "second": second.sent, "second_share": second.sent / total,
        "again_share": again / total,
    }  # fmt: skip


def one_new(server: Server, folder: Path, tasks: int) -> dict[str, Any]:
    """A sync of a hub with one new task, against one listing of that hub and one push."""
    source = Hub.open(folder / "many")
    for number in range(tasks - 1):
        source.push(made_delta(f"task-{number:04d}", number, 64))
    target = Hub.open(f"s3://{BUCKET}/many")
    sync(source, target)
    new = made_delta("new", tasks)
    source.push(new)
    before = server.counts()
    report = sync(source, target)
    synced = server.counts() - before
    assert [copy.source for copy in report.copied] == ["new@1"]
    before = server.counts()
    target.tasks()
    target.push(made_delta("another", tasks + 1))
    pushed = server.counts() - before
    return {"tasks": tasks, "sync": asdict(synced), "listing_and_push": asdict(pushed)}


def _bytes(counts: Counts) -> int:
    return counts.received + counts.sent

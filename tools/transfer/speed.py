"""Part ``speed``: many tasks pushed and pulled, against s3fs with the same objects."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common

from deltahub import Hub
from deltahub.delta import Delta
from deltahub.stores.base import AT_ONCE
from deltahub.syncing import sync
from deltahub.transfer import pull_files
from transfer.plain import PlainS3
from transfer.server import BUCKET, Server


def measure(server: Server, deltas: Sequence[Delta], folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds, requests, and throughput as a part of the peer's; every byte that came back is compared."""
    local = Hub.open(folder / "local")
    for delta in deltas:
        local.push(delta)
    objects = {entry.key: local.store.get(entry.key) for entry in local.store.list()}
    blobs = {key: data for key, data in objects.items() if key.startswith("blobs/")}
    expected = {delta.task: b"".join(delta.dump()) for delta in deltas}
    plain, names = PlainS3(AT_ONCE), (f"speed{number}" for number in itertools.count())
    fresh = names.__next__
    hubs = [Hub.open(f"s3://{BUCKET}/{fresh()}") for _ in range(2 * rounds + 4)]  # a client takes long to make
    plain.put("there", objects)
    there = Hub.open(f"s3://{BUCKET}/there")

    def push() -> None:
        assert len(sync(local, hubs.pop()).copied) == len(deltas)

    def push_one_by_one() -> None:
        hub = hubs.pop()
        for delta in deltas:
            hub.push(Delta(delta.manifest, delta.tensors))

    def pull() -> None:
        out = folder / fresh()
        pull_files(there, ["*"], out)
        assert {path.stem: path.read_bytes() for path in out.iterdir()} == expected

    def pull_one_by_one() -> None:
        assert {task: b"".join(there.pull(task).dump()) for task in expected} == expected

    def get(some: Mapping[str, bytes]) -> None:
        assert plain.get("there", some) == some

    jobs: dict[str, Callable[[], None]] = {
        "s3fs put": lambda: plain.put(fresh(), objects), "s3fs put, blobs alone": lambda: plain.put(fresh(), blobs),
        "sync to S3": push, "push one by one": push_one_by_one,
        "s3fs get": lambda: get(objects), "s3fs get, blobs alone": lambda: get(blobs),
        "pull '*'": pull, "pull one by one": pull_one_by_one,
    }  # fmt: skip
    requests = {name: _requests(server, job) for name, job in jobs.items()}
    times = common.alternate(jobs, rounds)
    return {
        "tasks": len(deltas), "objects": len(objects), "blobs": len(blobs), "bytes": sum(map(len, blobs.values())),
        "jobs": {
            name: {
                "seconds": statistics.median(times[name]), "requests": requests[name],
                "throughput": common.ratio(times, _peer(name, jobs), name),
            }
            for name in jobs
        },
    }  # fmt: skip


def _requests(server: Server, job: Callable[[], object]) -> int:
    before = server.counts()
    job()
    return (server.counts() - before).requests


def _peer(name: str, jobs: Mapping[str, object]) -> str:
    """The four that write come first."""
    return "s3fs put" if name in list(jobs)[:4] else "s3fs get"

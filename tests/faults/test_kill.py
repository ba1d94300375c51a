"""Processes that are killed (SIGKILL) around any call by which a local store changes its folder."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from deltahub.hub import Hub
from deltahub.stores import LocalStore
from tests.faults.soundness import assert_sound
from tests.faults.stores import some
from tests.stores.test_contract import forked
from tests.test_hub import dump, tiny

CALLS = ("write", "fsync", "link", "replace", "unlink", "mkdir", "open")
FIRST, SECOND = tiny("a", 0), tiny("a", 1)


@pytest.mark.parametrize("job", ["push", "tag", "remove", "gc", "make"])
def test_a_process_killed_at_any_call_leaves_a_sound_hub(tmp_path, job):
    jobs: dict[str, Callable[[Hub], object]] = {
        "push": lambda hub: hub.push(SECOND, ["prod"]), "tag": lambda hub: hub.tag("a", 1, "prod"),
        "remove": lambda hub: hub.remove("a@2", force=True), "gc": lambda hub: hub.gc(grace_seconds=0),
        "make": lambda hub: hub.push(SECOND),
    }  # fmt: skip
    points = calls_of(lambda: jobs[job](made(tmp_path / "count", job)), tmp_path / "calls.json")
    assert len(points) > 8
    for step in some(len(points), 3):
        folder = tmp_path / str(step)
        code = forked(lambda last=step, place=folder: (killed_at(last), jobs[job](made(place, job))))
        assert code == -signal.SIGKILL, points[step]
        for mark in folder.glob("collecting/*"):
            os.utime(mark, (0, 0))  # a minute later: so long the next push waits for a collector
        hub = Hub.open(folder)
        kept = {"a@1": dump(FIRST)} if hub.tasks() and job != "make" else {}
        assert_sound(hub, kept if job != "gc" else {**kept, "a@2": dump(SECOND)}, [dump(FIRST), dump(SECOND)])
        hub.gc(grace_seconds=0)
        assert list(hub.store.unfinished()) == list(hub.store.list("pushing")) == []


def made(folder: Path, job: str) -> Hub:
    """The hub that ``job`` is done in; what makes it is not disturbed, unless that is the job."""
    if job == "make":
        return Hub.open(folder)
    _disturbed[0] = False
    hub = Hub.open(folder)
    hub.push(FIRST)
    if job in ("remove", "gc"):
        hub.push(SECOND, ["best"])
    if job == "gc":
        hub.push(tiny("gone", 7))
        hub.remove("gone")
    _disturbed[0] = True
    return hub


_disturbed = [True]


def calls_of(job: Callable[[], object], told: Path) -> list[str]:
    """The points of ``job``: before and after each call, and halfway through each write."""

    def child() -> None:
        points: list[str] = []
        disturb(points.append)
        job()
        told.write_text(json.dumps(points))

    assert forked(child) == 0
    return json.loads(told.read_text())


def killed_at(last: int) -> None:
    """Kills this process at its point number ``last``; only for children."""
    passed = [0]

    def point(_: str) -> None:
        if passed[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        passed[0] += 1

    disturb(point)


def disturb(point: Callable[[str], None]) -> None:
    """Has ``point`` called around every call of CALLS in this process."""

    def around(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if not _disturbed[0] or (name == "open" and not arguments[1] & os.O_CREAT):
                return real(*arguments, **options)
            point(f"before {name}")
            if name == "write" and len(arguments[1]) > 1:
                half = real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                point("in a write")
                return half + real(arguments[0], arguments[1][half:])
            result = real(*arguments, **options)
            point(f"after {name}")
            return result

        return call

    for name in CALLS:
        setattr(os, name, around(name, getattr(os, name)))
    Path.write_bytes = _write_bytes


def _write_bytes(path: Path, data: bytes) -> int:
    """As pathlib's, but through calls of `os`, which can be disturbed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        return os.write(descriptor, memoryview(data))
    finally:
        os.close(descriptor)


def test_the_calls_are_those_that_a_local_store_changes_its_folder_by(tmp_path):
    """Each appears around a push: a store that used others would be killed nowhere."""
    points = calls_of(lambda: Hub.open(tmp_path / "hub").push(FIRST, ["prod"]), tmp_path / "calls.json")
    assert {point.split()[-1] for point in points} == set(CALLS)
    assert isinstance(Hub.open(tmp_path / "hub").store, LocalStore)
    assert_sound(Hub.open(tmp_path / "hub"), {"a@1": dump(FIRST)})

"""What must hold after every fault, and how often it was looked at."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from deltahub.errors import DeltahubError
from deltahub.hub import Hub
from deltahub.stores import MemoryStore
from tests.faults.stores import copy_of
from tests.test_hub import dump, tiny

MARK = 61.0
"""Seconds after which a push waits no more for a collector that died."""


@dataclass
class Count:
    """Of one case: how often it was run, versions that were lost, and things that could be seen but were not whole."""

    runs: int = 0
    lost: int = 0
    half: int = 0


COUNTS: dict[str, Count] = {}
"""By case, which is the name of its test."""
_now = [Count()]


def begin(case: str) -> None:
    _now[0] = COUNTS.setdefault(case, Count())


def count_run() -> None:
    """For a case that asserts something else than `assert_sound` does."""
    _now[0].runs += 1


def assert_sound(hub: Hub, acknowledged: Mapping[str, bytes], pending: Collection[bytes] = ()) -> None:
    """After any fault: what was acknowledged is there, what else can be seen is whole, and the next command works.

    The next command is a push; in memory it comes a minute later, when it need not wait for a collector that died.

    Args:
        acknowledged: bytes of the deltas that a push returned for, by ``task@number``, and that nobody removed since.
        pending: bytes of deltas that were being pushed or removed, which may be there or not.
    """
    seen = visible(hub)
    lost = [name for name, data in acknowledged.items() if seen.get(name) != data]
    half = [name for name, data in seen.items() if name not in acknowledged and data not in pending]
    problems = hub.verify().problems
    _now[0].runs += 1
    _now[0].lost += len(lost)
    _now[0].half += len(half) + len(problems)
    assert (lost, half, problems) == ([], [], ())
    next_ = Hub(copy_of(hub.store, aged=MARK)) if isinstance(hub.store, MemoryStore) else hub
    number = next_.push(tiny("next", 99)).number
    assert dump(next_.pull(f"next@{number}")) == dump(tiny("next", 99))
    next_.remove("next")


def visible(hub: Hub) -> dict[str, bytes | None]:
    """The bytes of every version that a reader sees; None for one that cannot be had."""
    found: dict[str, bytes | None] = {}
    for info in hub.tasks():
        for number in info.numbers:
            try:
                found[f"{info.task}@{number}"] = dump(hub.pull(f"{info.task}@{number}"))
            except DeltahubError:
                found[f"{info.task}@{number}"] = None
    return found

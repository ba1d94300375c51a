"""Laws of a remote hub with several writers, for every kind of place that hubs are pushed to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from deltahub.hub import Hub
from tests.test_hub import dump, tiny


class SeveralWriters:
    """Subclass it where the fixture `new_hub` makes hubs that speak to one place, each as another process would.

    ``grace`` is the collector's, in seconds: 0 where the place itself keeps it from what a push relies on.
    """

    grace = 3600.0

    def test_two_pushers_at_once_get_two_versions(self, new_hub: Callable[[], Hub]):
        rounds, barrier = 3, threading.Barrier(2)

        def push(seed: int) -> list[int]:
            hub, numbers = new_hub(), []
            for turn in range(rounds):
                barrier.wait()
                numbers.append(hub.push(tiny("a", 2 * turn + seed), ["prod"]).number)
            return numbers

        with ThreadPoolExecutor(2) as pool:
            found = [number for numbers in pool.map(push, (1, 2)) for number in numbers]
        assert sorted(found) == list(range(1, 2 * rounds + 1))
        assert len({record.digest for record in new_hub().versions("a")}) == 2 * rounds

    def test_a_collector_beside_pushes_takes_nothing_of_theirs(self, new_hub: Callable[[], Hub]):
        """What the pushes rely upon is all garbage at first: versions that were removed."""
        hub, pushed = new_hub(), threading.Event()
        for seed in range(3):
            hub.push(tiny("a", seed))
        hub.remove("a")

        def collect() -> None:
            other = new_hub()
            while not pushed.is_set():
                other.gc(grace_seconds=self.grace)

        with ThreadPoolExecutor(1) as pool:
            collecting = pool.submit(collect)
            try:
                for seed in range(3):
                    hub.push(tiny("b", seed))
            finally:
                pushed.set()
            collecting.result()
        assert [dump(hub.pull(f"b@{seed + 1}")) for seed in range(3)] == [dump(tiny("b", seed)) for seed in range(3)]
        assert hub.verify().problems == ()

"""A push and a collection take turns at the store, switched at every pair of moments: the push loses nothing."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from deltahub import garbage
from deltahub.hub import Hub
from deltahub.stores import MemoryStore
from tests.conftest import SOAK
from tests.faults.stores import Watched, copy_of
from tests.test_hub import dump, tiny

GRACE = 3600.0
MOMENTS = (range(24), range(24)) if SOAK else (range(0, 24, 3), range(0, 24, 5))
"""How many operations the first one has done, and then the second one, when the other takes over."""


class Turns:
    """Lets one of two threads do store operations at a time, by the plan ``[(name, operations), ...]``, then both."""

    def __init__(self, plan: list[tuple[str, int]]) -> None:
        self._plan = [name for name, count in plan for _ in range(count)]
        self._busy = ""
        self._turn = threading.Condition()

    def take(self, name: str) -> None:
        """Ends the thread's operation before this one, and waits until the next is its own."""
        with self._turn:
            if self._busy == name:
                self._plan, self._busy = self._plan[1:], ""
                self._turn.notify_all()
            assert self._turn.wait_for(lambda: not self._plan or self._plan[0] == name, timeout=120)
            self._busy = name if self._plan else ""

    def drop(self, name: str) -> None:
        """The thread waits for the other: what the plan still gives to it first is the other's."""
        with self._turn:
            while self._plan and self._plan[0] == name:
                self._plan.pop(0)
            self._busy = "" if self._busy == name else self._busy
            self._turn.notify_all()

    def end(self, name: str) -> None:
        with self._turn:
            self._plan = [other for other in self._plan if other != name]
            self._busy = "" if self._busy == name else self._busy
            self._turn.notify_all()


def run(turns: Turns, store: MemoryStore, jobs: dict[str, Callable[[Hub], object]], *, remote: bool = False) -> None:
    failures: list[BaseException] = []

    def work(name: str, job: Callable[[Hub], object]) -> None:
        try:
            job(Hub(Watched(store, lambda *_: turns.take(name), remote=remote)))
        except BaseException as error:  # noqa: BLE001 - shown by the thread that started this one
            failures.append(error)
        finally:
            turns.end(name)

    threads = [threading.Thread(target=work, args=item, name=item[0]) for item in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert failures == []


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("first", ["push", "gc"])
def test_a_push_loses_nothing_to_a_collection_in_any_order(first, remote, monkeypatch):
    """The push finds its blobs old and needed by nothing: what the collector is about to delete."""
    hub = Hub.open(f"memory://turns-{first}-{remote}")
    for delta in (tiny("a", 1), tiny("a", 2)):
        hub.push(delta)
    hub.remove("a@1")
    [second] = {"push", "gc"} - {first}
    clock = itertools.count()
    for turns_of_first, turns_of_second, more in itertools.product(*MOMENTS, (0, 3)):
        store = copy_of(hub.store, aged=2 * GRACE)
        plan = [(first, turns_of_first), (second, turns_of_second), (first, more), (second, 99), (first, 99)]
        turns = Turns(plan)
        waiting = SimpleNamespace(
            time=garbage.time.time,
            monotonic=lambda: next(clock) * 1e-6,
            sleep=lambda _, turns=turns: turns.drop(threading.current_thread().name),
        )
        with monkeypatch.context() as patch:
            patch.setattr(garbage, "time", waiting)
            jobs = {"push": lambda hub: hub.push(tiny("a", 1), ["prod"]), "gc": lambda hub: hub.gc(grace_seconds=GRACE)}
            run(turns, store, jobs, remote=remote)
        assert dump(Hub(store).pull("a:prod")) == dump(tiny("a", 1)), plan
        assert dump(Hub(store).pull("a@2")) == dump(tiny("a", 2)), plan
        assert Hub(store).verify().problems == (), plan

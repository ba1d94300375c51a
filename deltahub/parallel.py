"""Several waits for a remote store at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from graphlib import TopologicalSorter
from queue import SimpleQueue
from typing import TypeVar

from deltahub.stores import Store

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads(*stores: Store) -> int:
    """How many jobs on ``stores`` should run at once."""
    return max(store.at_once for store in stores)


def for_each(
    job: Callable[[Item], Result],
    items: Iterable[Item],
    at_once: int,
    done: Callable[[Item, Result], object] | None = None,
) -> None:
    """Runs ``job`` for every item, and ``done`` in this thread as each one ends, in any order.

    The first failure, of a job or of ``done``, keeps jobs from beginning; it is raised when those under way have ended.
    """
    chosen = list(items)
    if at_once == 1 or len(chosen) < 2:
        for item in chosen:
            result = job(item)
            if done:
                done(item, result)
        return
    with ThreadPoolExecutor(min(at_once, len(chosen))) as pool:
        try:
            running = {pool.submit(job, item): item for item in chosen}
            for future in as_completed(running):
                result = future.result()
                if done:
                    done(running[future], result)
        finally:
            pool.shutdown(cancel_futures=True)


def in_order(
    jobs: Mapping[str, Callable[[], Result]],
    needs: Mapping[str, Iterable[str]],
    at_once: int,
    done: Callable[[str, Result], object],
) -> None:
    """Runs ``jobs``, and ``done`` in this thread as each one ends; one begins when ``done`` ran for all that it needs.

    Those that have just become possible go first. A failure is treated as in `for_each`.
    """
    order = TopologicalSorter({name: needs.get(name, ()) for name in jobs})
    order.prepare()
    ready = deque(order.get_ready())

    def note(name: str, result: Result) -> None:
        done(name, result)
        order.done(name)
        ready.extendleft(reversed(order.get_ready()))

    if at_once == 1:
        while ready:
            name = ready.popleft()
            note(name, jobs[name]())
        return
    running, ended = 0, SimpleQueue[tuple[str, Future[Result]]]()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while order.is_active():
                while ready and running < 2 * at_once:  # so that no thread waits for this one
                    name = ready.popleft()
                    pool.submit(jobs[name]).add_done_callback(partial(_put, ended, name))
                    running += 1
                name, future = ended.get()
                running -= 1
                note(name, future.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _put(ended: SimpleQueue[tuple[str, Future[Result]]], name: str, future: Future[Result]) -> None:
    ended.put((name, future))

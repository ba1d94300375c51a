"""Several waits for a remote store at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
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

"""Which runs are still wanted: a search for the learning rate with the first seed, then the other seeds at the best."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from quality.results import Job
from quality.rows import Row, next_rate


def wanted(
    rows: Sequence[Row],
    tasks: Sequence[str],
    seeds: Sequence[int],
    runs: Mapping[Job, Mapping[str, Any]],
    failed: Collection[Job],
    *,
    search: bool = True,
) -> Iterator[Job]:
    """Runs that can start now, most wanted first: rows that must be there before the others, tasks as given.

    Args:
        runs: what the finished ones measured.
        failed: those not to be tried again.
        search: False trains each row at the middle one of its rates.
    """
    for must in (True, False):
        for task in tasks:
            for row in (row for row in rows if row.must == must):
                yield from _of_task(row, task, seeds, runs, failed, search)


def tried(row: str, task: str, seed: int, runs: Mapping[Job, Mapping[str, Any]]) -> dict[float, Mapping[str, Any]]:
    """Finished runs of the search by learning rate, in ascending order."""
    found = {job.lr: run for job, run in runs.items() if (job.row, job.task, job.seed) == (row, task, seed)}
    return dict(sorted(found.items()))


def best_rate(found: Mapping[float, Mapping[str, Any]]) -> float:
    """The rate with the best validation accuracy; of equals by macro F1 too the lowest."""
    return max(found, key=lambda lr: (found[lr]["validation_accuracy"], found[lr]["validation_macro_f1"], -lr))


def _of_task(
    row: Row,
    task: str,
    seeds: Sequence[int],
    runs: Mapping[Job, Mapping[str, Any]],
    failed: Collection[Job],
    search: bool,
) -> Iterator[Job]:
    first = seeds[0]
    rates = row.rates if search else row.rates[len(row.rates) // 2 :][:1]
    begun = [Job(row.name, task, first, lr) for lr in rates]
    if left := [job for job in begun if job not in runs and job not in failed]:
        yield from left
        return
    found = tried(row.name, task, first, runs)
    if not found:
        return
    lost = [job.lr for job in failed if (job.row, job.task, job.seed) == (row.name, task, first)]
    best = best_rate(found)
    if search and (further := next_rate(best, {*found, *lost})) is not None:
        yield Job(row.name, task, first, further)
        return
    for seed in seeds[1:]:
        if (job := Job(row.name, task, seed, best)) not in runs and job not in failed:
            yield job

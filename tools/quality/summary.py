"""From runs to figures: the best rate of each row and task, means over seeds and tasks, and what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quality.plan import best_rate, tried, wanted
from quality.results import Results
from quality.rows import ROWS, Row

Run = Mapping[str, Any]
Figure = Callable[[Run], float | None]
"""Reads a figure from a run; None where the row has no such figure."""


@dataclass(frozen=True)
class Line:
    """A row's runs at the rates that were chosen for it.

    Attributes:
        tasks, seeds: of the whole table.
        runs: by task and seed; what is missing is not there.
        rates: the best rate so far on each task.
        searching: tasks on which the search for the rate goes on.
        at_end: tasks on which the best rate is the lowest or highest of those tried.
    """

    row: Row
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Mapping[str, Mapping[int, Run]]
    rates: Mapping[str, float]
    searching: tuple[str, ...]
    at_end: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every seed of every task is there; a mean over fewer would not stand beside the others."""
        return not self.searching and all(len(self.runs[task]) == len(self.seeds) for task in self.tasks)

    def of_task(self, task: str, figure: Figure) -> float | None:
        """Mean over the seeds that are there."""
        found = [value for run in self.runs[task].values() if (value := figure(run)) is not None]
        return statistics.fmean(found) if found else None

    def mean(self, figure: Figure) -> float | None:
        """Mean over tasks of the means over seeds; None where a run is missing or has no such figure."""
        found = [self.of_task(task, figure) for task in self.tasks]
        return statistics.fmean(v for v in found if v is not None) if self.complete and None not in found else None

    def spread(self, figure: Figure) -> float | None:
        """Standard deviation over the seeds of the mean over tasks."""
        if len(self.seeds) < 2 or self.mean(figure) is None:
            return None
        means = [[figure(self.runs[task][seed]) for task in self.tasks] for seed in self.seeds]
        return statistics.stdev(statistics.fmean(v for v in values if v is not None) for values in means)


def lines(results: Results) -> list[Line]:
    """A line for each row that has a run, failed ones counted; tasks and seeds are all that occur in the file."""
    jobs = [*results.runs, *results.failed]
    names = {job.row for job in jobs}
    tasks = tuple(task for task in results.tasks if any(job.task == task for job in jobs))
    others = sorted({job.seed for job in jobs} - {results.protocol.first_seed})
    return [
        _line(results, row, tasks, (results.protocol.first_seed, *others)) for row in ROWS.values() if row.name in names
    ]


def accuracy(rounding: str = "exact", what: str = "accuracy") -> Figure:
    """On the held-out rows, from the delta under ``rounding``."""
    return lambda run: run["test"].get(rounding, {}).get(what)


def stored(rounding: str = "exact", *parts: str) -> Figure:
    """Bytes in a hub under ``rounding`` of ``rest`` and ``head``, or of one of them."""
    return lambda run: (
        sum(found[p] for p in parts or ("rest", "head")) if (found := run["bytes"].get(rounding)) else None
    )


def relative_step(line: Line, yardstick: Line | None) -> float | None:
    """Mean over tasks of the time of a step against the yardstick's."""
    if yardstick is None or not (line.complete and yardstick.complete):
        return None
    pairs = [(_step(line, task), _step(yardstick, task)) for task in line.tasks]
    return statistics.fmean(own / other for own, other in pairs)


def missing(line: Line) -> list[str]:
    """What a reader must know before comparing the line with others."""
    found = [f"{task}: {len(line.runs[task])} of {len(line.seeds)} seeds" for task in line.tasks]
    found = [text for text, task in zip(found, line.tasks, strict=True) if len(line.runs[task]) < len(line.seeds)]
    return found + [f"{task}: the search for the learning rate goes on" for task in line.searching]


def _step(line: Line, task: str) -> float:
    return float(statistics.median(run["step_seconds"] for run in line.runs[task].values()))


def _line(results: Results, row: Row, tasks: Sequence[str], seeds: Sequence[int]) -> Line:
    first = results.protocol.first_seed
    runs: dict[str, dict[int, Run]] = {task: {} for task in tasks}
    rates: dict[str, float] = {}
    at_end = []
    for task in tasks:
        if not (search := tried(row.name, task, first, results.runs)):
            continue
        rates[task] = best = best_rate(search)
        runs[task] = {job.seed: run for job, run in results.runs.items()
                      if (job.row, job.task, job.lr) == (row.name, task, best)}  # fmt: skip
        if len(search) > 1 and best in (min(search), max(search)):
            at_end.append(task)
    protocol = results.protocol
    left = wanted([row], tasks, [first], results.runs, results.failed, search=protocol.search)
    searching = {job.task for job in left}
    return Line(row, tuple(tasks), tuple(seeds), runs, rates, tuple(t for t in tasks if t in searching), tuple(at_end))

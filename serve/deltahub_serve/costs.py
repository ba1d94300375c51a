"""What passes cost on this machine, measured once at the start, and which way is cheaper for the requests at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from deltahub import Delta, Manifest, TaskModel
from deltahub.encoding import Encoded
from deltahub.rawtensor import RawTensor
from deltahub_serve.runner import Row, Runner

_SIZES = ((1, 16), (4, 16), (16, 16), (16, 64))
"""Rows and tokens of the passes that are timed, each swapped, and mixed of few and of many tasks."""
_TASKS = 8
_REPEATS = 3
_LONG = 1.0
"""Seconds after which a job is not repeated."""
_BUDGET = 4.0
"""Seconds after which no further size is timed: what is larger is then told from what was seen."""
_TRY, _FAR, _FOLLOW = 50, 4.0, 0.2
"""The dearer way is taken each so many times, unless so many times dearer; share of a new pass in its way's factor."""


@dataclass(frozen=True)
class Costs:
    """Seconds of each step.

    Attributes:
        swap: to put a task's values in place, or the base's back.
        forward: of a swapped pass, by its tokens with padding; between two sizes, and past the last, a straight line.
        mixing: what a mixed pass takes on top: at all, for each token, and for each task.
    """

    swap: float
    forward: tuple[tuple[int, float], ...]
    mixing: tuple[float, float, float]

    def swapped(self, tokens: int) -> float:
        """Of a pass of one task and so many tokens, without the swap."""
        sizes = [size for size, _ in self.forward]
        seconds = [took for _, took in self.forward]
        found = float(np.interp(tokens, sizes, seconds))
        if tokens > sizes[-1] and len(sizes) > 1:
            found += (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]) * (tokens - sizes[-1])
        return found

    def mixed(self, tokens: int, tasks: int) -> float:
        """Of one pass of so many tokens and tasks, on the base's values."""
        fixed, each_token, each_task = self.mixing
        return self.swapped(tokens) + fixed + each_token * tokens + each_task * tasks

    def both(self, groups: Sequence[Sequence[int]], *, in_place: int | None, on_base: bool) -> tuple[float, float]:
        """What one mixed pass costs, and what a swapped one for each task.

        Args:
            groups: the tokens of each request, by task.
            in_place: number of the group whose values are in place.
            on_base: whether those of the base are.
        """
        apart = sum(self.swapped(len(group) * max(group)) for group in groups)
        apart += self.swap * (len(groups) - (in_place is not None))
        rows, longest = sum(map(len, groups)), max(map(max, groups))
        return self.mixed(rows * longest, len(groups)) + (0.0 if on_base else self.swap), apart

    def as_dict(self) -> dict[str, Any]:
        """For /info, in milliseconds."""
        fixed, token, task = (round(1e3 * seconds, 4) for seconds in self.mixing)
        return {
            "swap_ms": round(1e3 * self.swap, 4),
            "forward_ms": {str(tokens): round(1e3 * seconds, 3) for tokens, seconds in self.forward},
            "mixing_ms": {"pass": fixed, "token": token, "task": task},
        }


class Choice:
    """Which way is cheaper, by what was measured at the start and by what passes have taken since.

    A machine may be busy while it is measured, so each way has a factor that follows its passes. A way that is never
    taken would never be seen again: now and then the dearer one is taken, unless it is dearer by far.

    Args:
        costs: measured at the start.
    """

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.factors = {"swapped": 1.0, "mixed": 1.0}
        self._asked = 0

    def together(self, groups: Sequence[Sequence[int]], *, in_place: int | None, on_base: bool) -> bool:
        """Whether one mixed pass is cheaper than a swapped one for each task; arguments as of `Costs.both`."""
        mixed, apart = self.costs.both(groups, in_place=in_place, on_base=on_base)
        mixed, apart = mixed * self.factors["mixed"], apart * self.factors["swapped"]
        self._asked += 1
        other = self._asked % _TRY == 0 and max(mixed, apart) < _FAR * min(mixed, apart)
        return (mixed < apart) is not other

    def took(self, tokens: int, tasks: int, moved: bool, seconds: float) -> None:
        """Of a pass of so many tokens with padding; ``moved`` where values were put in place for it."""
        costs, way = self.costs, "mixed" if tasks > 1 else "swapped"
        thought = (costs.mixed(tokens, tasks) if tasks > 1 else costs.swapped(tokens)) + moved * costs.swap
        seen = min(seconds / max(thought, 1e-6), _FAR)  # one pass that was held up says little
        self.factors[way] += _FOLLOW * (seen - self.factors[way])

    def as_dict(self) -> dict[str, Any]:
        """For /info."""
        return self.costs.as_dict() | {"factors": {way: round(factor, 3) for way, factor in self.factors.items()}}


def fit(runner: Runner, tokenizer: Any, clock: Callable[[], float] = time.perf_counter) -> Costs:
    """Times a few passes of tasks that have the base's own values; on a slow machine those of two sizes only.

    Belongs to the thread that owns the resident.

    Raises:
        DeltahubError: this base cannot be run, or not with tasks mixed.
    """
    tasks = _tasks(runner, tokenizer)
    assert runner.mixer is not None
    runner.mixer.admit(tasks[0])  # says what is wrong where nothing can be mixed
    began = clock()
    swap = _timed(clock, [partial(runner.resident.swap, task.prepared) for task in tasks])
    forward: list[tuple[int, float]] = []
    mixed: list[tuple[int, int, float]] = []
    for rows, tokens in _SIZES:
        if len(forward) > 1 and clock() - began > _BUDGET:
            break
        [encoded] = tasks[0].prepare([" ".join(["a"] * tokens)])
        cut = {name: column[:tokens] for name, column in encoded.tokens.items()}
        question = Encoded(cut)
        padded = rows * len(cut["input_ids"])
        forward.append((padded, _timed(clock, [partial(runner.run, _rows(runner, tasks[:1], question, rows))])))
        for count in {min(2, rows), min(_TASKS, rows)} - {1}:
            seconds = _timed(clock, [partial(runner.run, _rows(runner, tasks[:count], question, rows))])
            mixed.append((padded, count, seconds))
    runner.resident.restore()
    swapped = dict(rising := _rising(forward))
    return Costs(swap, rising, _plane([(tokens, count, took - swapped[tokens]) for tokens, count, took in mixed]))


def _tasks(runner: Runner, tokenizer: Any) -> list[TaskModel]:
    """Tasks that change every masked value to what it is, or without a mask every bias and norm."""
    assert runner.mixer is not None
    resident, found = runner.resident, []
    vectors = {f"dense.{vector.name}": RawTensor.of_torch(vector.tensor) for vector in runner.mixer.sites.vectors}
    for number in range(1, _TASKS + 1):
        own = vectors if resident.mask is None else {"values": resident.values()}
        tensors = {name: RawTensor.of_torch(raw.torch().clone()) for name, raw in own.items()}
        mask = None if resident.mask is None else resident.mask.ref
        name, inputs = f"any-task-{number}", {"pooling": "mean"}
        manifest = Manifest(name, "embeddings", resident.base.ref, mask, inputs=inputs)
        found.append(TaskModel(resident, tokenizer, Delta(manifest, tensors)))
    return found


def _rows(runner: Runner, tasks: Sequence[TaskModel], question: Any, rows: int) -> list[Row]:
    chosen = [tasks[number % len(tasks)] for number in range(rows)]
    return [runner.row((task.delta.task, None, task.delta.digest), task, question) for task in chosen]


def _timed(clock: Callable[[], float], jobs: Sequence[Callable[[], object]]) -> float:
    """Least seconds of one of ``jobs``, done in turn; the first round warms up, and long ones have one more.

    The least, since other processes only ever add.
    """
    seconds: list[float] = []
    began = clock()
    for turn in range(1 + _REPEATS):
        if seconds and clock() - began > _LONG:
            break
        for job in jobs:
            start = clock()
            job()
            seconds += [clock() - start] if turn else []
    return min(seconds)


def _rising(forward: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """By size, none cheaper than a smaller one: what another process took must not make a large pass look cheap."""
    found: list[tuple[int, float]] = []
    for tokens, seconds in sorted(dict(forward).items()):
        found.append((tokens, max(seconds, found[-1][1]) if found else seconds))
    return tuple(found)


def _plane(mixed: Sequence[tuple[int, int, float]]) -> tuple[float, float, float]:
    """Least squares of (1, tokens, tasks) with no coefficient below 0, relative to each size."""
    places = np.array([(1.0, tokens, tasks) for tokens, tasks, _ in mixed])
    seconds = np.array([max(more, 0.0) for *_, more in mixed])
    weights = 1.0 / places[:, 1]
    kept = [0, 1, 2]
    while kept:
        found = np.linalg.lstsq(places[:, kept] * weights[:, None], seconds * weights, rcond=None)[0]
        if (found >= 0).all():
            break
        del kept[int(found.argmin())]
    whole = dict(zip(kept, map(float, found), strict=True)) if kept else {}
    return whole.get(0, 0.0), whole.get(1, 0.0), whole.get(2, 0.0)

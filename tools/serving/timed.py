"""Rounds of requests: workloads take turns, so that a slow moment of the machine hits them alike."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving import checking, load, wire
from serving.load import Ask, Plan, Sample

_DRAWN = 4000


@dataclass(frozen=True)
class Workload:
    """What clients ask one application.

    Attributes:
        name: for the tables.
        url: of the application.
        asks: in the order in which they are asked, over and over.
        ours: the application is ours, and tells how many passes it took.
    """

    name: str
    url: str
    asks: Sequence[Ask] = field(repr=False)
    ours: bool = True


@dataclass(frozen=True)
class Round:
    """One round of a workload; seconds.

    Attributes:
        rate: answers a second.
        p50, p99: of the time of a request.
        queue, swap, run: medians of what the headers say; None for the peer, which says nothing.
        other: median of the rest: HTTP, Ray, tokens.
        rows: mean number of texts in a pass.
        samples: all of it.
    """

    rate: float
    p50: float
    p99: float
    queue: float | None
    swap: float | None
    run: float | None
    other: float | None
    rows: float | None
    samples: Sequence[Sample] = field(repr=False)


Rounds = dict[str, list[Round]]


def alternate(workloads: Sequence[Workload], clients: int, seconds: float, rounds: int) -> Rounds:
    """Each workload's rounds. Raises RuntimeError where a request was not answered."""
    found: Rounds = {workload.name: [] for workload in workloads}
    for number in range(rounds):
        turn = number % len(workloads)
        for workload in [*workloads[turn:], *workloads[:turn]]:  # none is always the first after another
            plan = Plan(workload.url, workload.asks, clients, seconds, warm=seconds / 4)
            before = _passes(workload)
            samples = load.run(plan)
            texts, passes = (b - a for a, b in zip(before, _passes(workload), strict=True))
            found[workload.name].append(_round(samples, seconds, texts / passes if passes else None))
    return found


def _passes(workload: Workload) -> tuple[float, float]:
    """Texts and passes since the application began."""
    if not workload.ours:
        return 0.0, 0.0
    counters = wire.counters(workload.url)
    return counters["requests"], counters["passes"]


def _round(samples: list[Sample], seconds: float, rows: float | None) -> Round:
    checking.require_all(samples)
    took = sorted(sample.seconds for sample in samples)
    rate, (p50, p99) = len(samples) / seconds, percentiles(took)
    told = [wire.told(sample) for sample in samples]
    if any(item.run is None for item in told):
        return Round(rate, p50, p99, None, None, None, None, None, samples)
    return Round(
        rate, p50, p99,
        queue=statistics.median(item.queue or 0.0 for item in told),
        swap=statistics.median(item.swap or 0.0 for item in told),
        run=statistics.median(item.run or 0.0 for item in told),
        other=statistics.median(sample.seconds - item.inside for item, sample in zip(told, samples, strict=True)),
        rows=rows,
        samples=samples,
    )  # fmt: skip


def percentiles(took: Sequence[float]) -> tuple[float, float]:
    """The median and the 99th percentile, by nearest rank, of ascending numbers."""
    return statistics.median(took), took[min(len(took) - 1, int(0.99 * len(took)))]


def ratio(rounds: Rounds, ours: str, peer: str, what: str) -> float:
    """Median of the round-by-round ratios of ``rate``, ``p50`` or ``p99``."""
    ratios: list[float] = [getattr(a, what) / getattr(b, what) for a, b in zip(rounds[ours], rounds[peer], strict=True)]
    return statistics.median(ratios)


def medians(rounds: Sequence[Round]) -> dict[str, Any]:
    """For JSON: each figure's median over the rounds."""
    found: dict[str, Any] = {}
    for name in ("rate", "p50", "p99", "queue", "swap", "run", "other", "rows"):
        values = [value for item in rounds if (value := getattr(item, name)) is not None]
        found[name] = statistics.median(values) if values else None
    return found


def draw(
    names: Sequence[str],
    texts: Sequence[str],
    ask: Callable[[str, str], Ask],
    *,
    zipf: bool = False,
    seed: int = 0,
    count: int = _DRAWN,
) -> list[Ask]:
    """Requests for tasks drawn uniformly, or the n-th with weight 1/n; texts come in turn."""
    weights = [1 / rank for rank in range(1, len(names) + 1)] if zipf else None
    chosen = random.Random(seed).choices(names, weights, k=count)
    return [ask(name, text) for name, text in zip(chosen, itertools.cycle(texts), strict=False)]


def some(rounds: Mapping[str, Sequence[Round]], name: str, count: int) -> list[Sample]:
    """Samples of a workload's rounds, evenly spread, for the check."""
    every = [sample for found in rounds[name] for sample in found.samples]
    return every[:: max(1, len(every) // count)]

"""What a replica has done and how it is, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from deltahub_serve.passes import Pass
from deltahub_serve.questions import State

_MOST_TASKS = 1000
OTHER = "(other)"
"""Stands for every task past the first thousand, so that no hub and no client can fill the memory of Prometheus."""
NONE = "(none)"
"""Stands for what clients called a task and is none: their words never become a label."""
_COUNTERS = {
    "passes": ("passes", "Forward passes"),
    "mixed_passes": ("mixed", "Forward passes that several tasks shared"),
    "swaps": ("swaps", "Passes that put other values in place first"),
    "failed_passes": ("failures", "Passes that failed"),
    "expired": ("expired", "Texts whose deadline passed while they waited"),
    "cache_hits": ("hits", "Names answered from memory"),
    "loads": ("loads", "Versions loaded from the hub"),
    "failed_loads": ("load_failures", "Versions that could not be loaded"),
    "evictions": ("evictions", "Versions let go"),
}
"""What a state counts: our name, its name there, and what it is."""
_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts what one replica does, in a registry of its own. Safe for many threads.

    Requests and the seconds of their steps are told by task, for the first thousand tasks; how times and batches are
    spread is told for all tasks together.
    """

    def __init__(self) -> None:
        self._registry = made = CollectorRegistry()
        self._tasks: set[str] = set()
        self._asked = Counter("deltahub_requests", "Questions by what came of them", ["task", "outcome"], registry=made)
        self._rows = Histogram("deltahub_batch_rows", "Texts in a forward pass", buckets=_ROWS, registry=made)
        self._tokens = Counter("deltahub_tokens", "Tokens computed", ["task"], registry=made)
        self._padding = Counter("deltahub_padding_tokens", "Padding computed beside them", registry=made)
        self._steps = {
            step: Histogram(f"deltahub_{step}_seconds", what, buckets=_SECONDS, registry=made)
            for step, what in (
                ("queue", "Wait of a text for its pass"),
                ("swap", "Putting a task's values in place, where that was needed"),
                ("forward", "A forward pass"),
            )
        }
        self._spent = Counter("deltahub_task_seconds", "Seconds by task and step", ["task", "step"], registry=made)

    def asked(self, task: str | None, outcome: str) -> None:
        """A question has ended.

        Args:
            task: name in the hub; None where the question named none.
            outcome: ``"answered"``, ``"cancelled"``, or one of `questions.REASONS`.
        """
        self._asked.labels(self._label(task), outcome).inc()

    def passed(self, done: Pass) -> None:
        """A forward pass has ended."""
        self._rows.observe(len(done.rows))
        self._padding.inc(done.padded - sum(tokens for _, tokens, _ in done.rows))
        self._steps["forward"].observe(done.ran)
        if done.swapped:
            self._steps["swap"].observe(done.swapped)
        for *_, waited in done.rows:
            self._steps["queue"].observe(waited)
        by_task: dict[str, list[tuple[int, float]]] = {}
        for name, tokens, waited in done.rows:
            by_task.setdefault(self._label(name), []).append((tokens, waited))
        for task, rows in by_task.items():
            share, queued = len(rows) / len(done.rows), sum(waited for _, waited in rows)
            self._tokens.labels(task).inc(sum(tokens for tokens, _ in rows))
            for step, seconds in (("queue", queued), ("swap", share * done.swapped), ("forward", share * done.ran)):
                self._spent.labels(task, step).inc(seconds)

    def families(self, state: State, refresh_age: float) -> list[Metric]:
        """All that is told, what ``state`` says too, without the times at which series began.

        Args:
            refresh_age: seconds since the names in use were looked up.
        """
        found = [*self._registry.collect(), *_of_state(state, refresh_age)]
        for family in found:
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        return found

    def _label(self, task: str | None) -> str:
        if task is None:
            return NONE
        if task not in self._tasks:
            if len(self._tasks) >= _MOST_TASKS:
                return OTHER
            self._tasks.add(task)
        return task


def merge(told: Mapping[str, Iterable[Metric]]) -> bytes:
    """One exposition of what several replicas tell, by name; each sample gets the label ``replica``."""
    merged: dict[str, Metric] = {}
    for replica, families in sorted(told.items()):
        for family in families:
            into = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            into.samples += [it._replace(labels={**it.labels, "replica": replica}) for it in family.samples]
    return generate_latest(_Families(merged.values()))


@dataclass(frozen=True)
class _Families:
    """What `generate_latest` takes for a registry."""

    families: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def _of_state(state: State, refresh_age: float) -> Iterable[Metric]:
    gauges = {
        "waiting": ("Texts that wait for a pass", state.waiting),
        "cache_bytes": ("Memory of the loaded versions", sum(state.loaded.values())),
        "cache_budget_bytes": ("Memory that they may take", state.budget),
        "cache_entries": ("Loaded versions", len(state.loaded)),
        "hub_reachable": ("Whether the hub could be read when last looked at", state.hub is None),
        "usable": ("Whether the replica can answer", state.broken is None),
        "troubled_names": ("Names that could not be loaded or refreshed", len(state.trouble)),
        "refresh_age_seconds": ("Since the names in use were looked up", refresh_age),
        "uptime_seconds": ("Since the start", state.uptime),
    }
    for name, (what, value) in gauges.items():
        yield GaugeMetricFamily(f"deltahub_{name}", what, float(value))
    for name, (counter, what) in _COUNTERS.items():
        yield CounterMetricFamily(f"deltahub_{name}", what, state.counters.get(counter, 0.0))
    resident = GaugeMetricFamily("deltahub_resident", "Whose values are in place", labels=["task", "version"])
    if state.resident is not None:
        task, _, version = state.resident.partition("@")
        resident.add_metric([task, version], 1.0)
    yield resident

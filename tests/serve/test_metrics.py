"""What Prometheus is told, by what its own parser reads."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

import pytest
from deltahub_serve.metrics import NONE, OTHER, Metrics, merge
from deltahub_serve.passes import Pass
from deltahub_serve.questions import Question, Refused
from deltahub_serve.worker import Worker
from prometheus_client.parser import text_string_to_metric_families

from tests.serve.conftest import MakeWorker


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    values = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}
    assert len(values) == len(found), "no series twice"
    return values


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset((labels | {"replica": "local"}).items())]


def text_of(worker: Worker) -> str:
    return merge(asyncio.run(worker.metrics())).decode()


def test_questions_and_passes_are_counted_by_task(worker: Worker) -> None:
    for _ in range(2):
        asyncio.run(worker.ask(Question("topic", ("w1", "w2 w3"))))
    asyncio.run(worker.ask(Question("words", ("w1",))))
    for name in ("lost", "topic"):
        with pytest.raises(Refused):
            asyncio.run(worker.ask(Question(name, ("w1",), kinds=("regression",))))
    text = text_of(worker)
    assert value(text, "deltahub_requests_total", task="topic", outcome="answered") == 2
    assert value(text, "deltahub_requests_total", task="topic", outcome="kind") == 1
    assert value(text, "deltahub_requests_total", task=NONE, outcome="unknown") == 1
    assert value(text, "deltahub_tokens_total", task="topic") == 2 * (3 + 4)
    assert value(text, "deltahub_padding_tokens_total") == 2
    assert value(text, "deltahub_batch_rows_count") == 3
    assert value(text, "deltahub_batch_rows_sum") == 5
    assert value(text, "deltahub_passes_total") == 3
    assert value(text, "deltahub_mixed_passes_total") == 0
    assert value(text, "deltahub_queue_seconds_count") == 5
    assert value(text, "deltahub_forward_seconds_count") == 3
    assert value(text, "deltahub_swap_seconds_count") == 2
    assert value(text, "deltahub_task_seconds_total", task="words", step="forward") > 0


def test_a_mixed_pass_is_shared_out_among_its_tasks(worker: Worker) -> None:
    meters = Metrics()
    meters.passed(Pass((("a", 5, 0.1), ("b", 3, 0.2), ("a", 4, 0.3)), 15, 0.0, 0.6, mixed=True))
    text = merge({"local": meters.families(worker.state(), 0.0)}).decode()
    assert [value(text, "deltahub_tokens_total", task=task) for task in "ab"] == [9, 3]
    assert value(text, "deltahub_padding_tokens_total") == 3
    assert [value(text, "deltahub_task_seconds_total", task=task, step="forward") for task in "ab"] == [
        pytest.approx(0.4), pytest.approx(0.2),
    ]  # fmt: skip
    assert value(text, "deltahub_batch_rows_sum") == 3


def test_cache_resident_and_hub_are_told(worker: Worker, hub_folder: Path) -> None:
    asyncio.run(worker.ask(Question("topic", ("w1",))))
    asyncio.run(worker.ask(Question("words", ("w1",))))
    text = text_of(worker)
    assert value(text, "deltahub_resident", task="words", version="1") == 1
    assert value(text, "deltahub_cache_entries") == 2
    assert value(text, "deltahub_cache_bytes") == sum(worker.state().loaded.values()) > 0
    assert value(text, "deltahub_loads_total") == 2
    assert value(text, "deltahub_swaps_total") == 2
    assert value(text, "deltahub_hub_reachable") == 1
    assert value(text, "deltahub_usable") == 1
    assert value(text, "deltahub_waiting") == 0
    assert value(text, "deltahub_refresh_age_seconds") >= 0
    hub_folder.rename(hub_folder.with_name("away"))
    with pytest.raises(Refused):
        asyncio.run(worker.refresh())
    asyncio.run(worker.evict())
    text = text_of(worker)
    assert value(text, "deltahub_hub_reachable") == 0
    assert value(text, "deltahub_evictions_total") == 2
    assert value(text, "deltahub_cache_entries") == 0


def test_no_number_of_tasks_makes_more_than_a_thousand_labels(worker: Worker) -> None:
    meters = Metrics()
    for number in range(1500):
        meters.asked(f"task{number}", "answered")
        meters.passed(Pass(((f"task{number}", 3, 0.1),), 4, 0.0, 0.1))
    text = merge({"local": meters.families(worker.state(), 0.0)}).decode()
    tasks = {dict(labels).get("task") for _, labels in samples(text)} - {None}
    assert len(tasks) == 1001
    assert value(text, "deltahub_requests_total", task=OTHER, outcome="answered") == 500


def test_replicas_are_merged_with_a_label_each(make_worker: MakeWorker) -> None:
    told = {}
    for replica in ("one", 'odd "name"\\'):
        worker = make_worker(replica)
        asyncio.run(worker.ask(Question("topic", ("w1",))))
        told |= pickle.loads(pickle.dumps(asyncio.run(worker.metrics())))  # as they come from another process
    merged = merge(told).decode()
    assert merged.count("# TYPE deltahub_requests_total counter") == 1
    every = samples(merged)
    each = [(replica, sample) for replica, families in told.items() for family in families for sample in family.samples]
    assert len(every) == len(each)
    for replica, sample in each:
        assert every[sample.name, frozenset((sample.labels | {"replica": replica}).items())] == sample.value
    assert merge({}) == b""


def test_the_times_at_which_series_began_are_not_told(worker: Worker) -> None:
    asyncio.run(worker.ask(Question("topic", ("w1",))))
    assert "_created" not in text_of(worker)

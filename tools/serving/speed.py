"""Parts ``dedicated``, ``multiplexing``, ``cliff`` and ``swap``: what a request costs, beside peers in the same Ray."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deltahub import Hub, materialize
from serving import apps, checking, peer, timed, wire
from serving.load import Ask, Plan, Sample, run
from serving.made import KINDS, LABELS, Maker, kind_of, numbered
from serving.reference import compute
from serving.timed import Rounds, Workload

TASKS, MANY = 60, 1000
KIND = KINDS[0]
ROOM = 2 << 30  # bytes, for all tasks there are


@dataclass(frozen=True)
class Setting:
    """How long is measured.

    Attributes:
        maker, texts: what tasks are made from, and what they are asked.
        threads: of torch in every replica, peers' as well.
        clients: numbers of them.
        seconds, rounds: of each workload.
        checked: answers of each workload that are compared with the right ones.
    """

    maker: Maker
    texts: Sequence[str]
    threads: int
    clients: Sequence[int]
    seconds: float
    rounds: int
    checked: int


def dedicated(setting: Setting) -> dict[str, Any]:
    """One task and sixty of ours, against the same application on one materialized model."""
    maker, texts = setting.maker, setting.texts
    with tempfile.TemporaryDirectory() as name, apps.ray_serve() as address:
        folder = Path(name)
        names = numbered(TASKS)
        maker.push(hub := Hub.open(folder / "hub"), names, (KIND,))
        Hub.open(folder / "one").push(maker.standalone(hub.pull(names[0]), folder / "model"))
        ours = apps.deploy(apps.ours(folder / "hub", maker.source, setting.threads), "ours", address)
        alone = apps.deploy(
            apps.ours(folder / "one", str(folder / "model"), setting.threads), "dedicated", address
        )  # fmt: skip
        ask = partial(_ask, kind=KIND)
        workloads = [
            Workload("dedicated model", alone, timed.draw(names[:1], texts, ask)),
            Workload("one task", ours, timed.draw(names[:1], texts, ask)),
            Workload("sixty tasks, Zipf", ours, timed.draw(names, texts, ask, zipf=True)),
            Workload("sixty tasks, uniform", ours, timed.draw(names, texts, ask)),
        ]
        _load_all(ours, names, (KIND,), texts)
        found = {
            clients: timed.alternate(workloads, clients, setting.seconds, setting.rounds) for clients in setting.clients
        }
        tally = _check(
            setting,
            folder / "hub",
            found,
            others=("dedicated model",),
        )
    return {"rows": _rows(found, "dedicated model"), **tally.summary()}


def multiplexing(setting: Setting) -> dict[str, Any]:
    """Sixty tasks of ours, against Ray Serve's multiplexing of whole models with room for three."""
    maker, texts = setting.maker, setting.texts
    with tempfile.TemporaryDirectory() as name, apps.ray_serve() as address:
        folder = Path(name)
        names = numbered(TASKS)
        maker.push(hub := Hub.open(folder / "hub"), names, (KIND,))
        for task in names:
            materialize(maker.base, hub.pull(task), folder / "models" / task, mask=maker.mask)
        ours = apps.deploy(apps.ours(folder / "hub", maker.source, setting.threads), "ours", address)
        theirs = apps.deploy(peer.application(str(folder / "models"), setting.threads), "peer", address)
        workloads = [
            Workload(f"{who}, {how}", url, timed.draw(names, texts, ask, zipf=how == "Zipf"), who == "ours")
            for how in ("Zipf", "uniform")
            for who, url, ask in (("peer", theirs, _peer_ask), ("ours", ours, partial(_ask, kind=KIND)))
        ]
        _load_all(ours, names, (KIND,), texts)
        checking.require_all(run(Plan(theirs, [_peer_ask(task, texts[0]) for task in names[: peer.MODELS]], 1)))
        found = {
            clients: timed.alternate(workloads, clients, setting.seconds, setting.rounds) for clients in setting.clients
        }
        tally = _check(setting, folder / "hub", found, others=("peer, Zipf", "peer, uniform"))
    rows = _rows(found, None)
    for row in rows:
        who, how = row["workload"].split(", ")
        if who == "ours":
            row["rate_ratio"] = timed.ratio(found[row["clients"]], f"ours, {how}", f"peer, {how}", "rate")
    return {"room_for_models": peer.MODELS, "rows": rows, **tally.summary()}


def cliff(setting: Setting, tasks: int) -> dict[str, Any]:
    """So many tasks with a cache for all and for a tenth, against sixty, or half of them if they are few."""
    maker, texts = setting.maker, setting.texts
    with tempfile.TemporaryDirectory() as name, apps.ray_serve() as address:
        folder = Path(name)
        names = numbered(tasks)
        maker.push(Hub.open(folder / "hub"), names, (KIND,))
        few, cached = names[: min(TASKS, tasks // 2)], tasks // 10
        large, small = (
            apps.deploy(
                apps.ours(folder / "hub", maker.source, setting.threads, live={"cache_bytes": room, "refresh": 600.0}),
                app, address,
            )
            for app, room in (("large", ROOM), ("small", cached * 4 * (maker.mask.k + 4 * len(LABELS) * 384)))
        )  # fmt: skip
        ask = partial(_ask, kind=KIND)
        workloads = [
            Workload(f"{len(few)} tasks, all cached", large, timed.draw(few, texts, ask)),
            Workload(f"{len(names)} tasks, all cached", large, timed.draw(names, texts, ask)),
            Workload(f"{len(names)} tasks, cache for {cached}", small, timed.draw(names, texts, ask)),
        ]
        load_seconds = _load_seconds(large, names[:40], texts)
        _load_all(large, names, (KIND,), texts)
        found, rows = {}, []
        for clients in setting.clients:
            before = {url: wire.counters(url) for url in (large, small)}
            found[clients] = timed.alternate(workloads, clients, setting.seconds, setting.rounds)
            loads = {url: _loads(before[url], wire.counters(url)) for url in before}
            for workload, row in zip(workloads, _rows({clients: found[clients]}, workloads[0].name), strict=True):
                rows.append(row | {"loads": loads[workload.url]})
        tally = _check(setting, folder / "hub", found)
    return {"rows": rows, "load_ms": 1e3 * load_seconds, **tally.summary()}


def swap(setting: Setting) -> dict[str, Any]:
    """One client that alternates between two tasks: every request swaps."""
    maker, texts = setting.maker, setting.texts
    rows = []
    tally = checking.Tally()
    with tempfile.TemporaryDirectory() as name, apps.ray_serve() as address:
        hub = Path(name, "hub")
        names = numbered(2)
        maker.push(Hub.open(hub), names, (KIND,))
        urls = {
            threads: apps.deploy(apps.ours(hub, maker.source, threads), f"threads-{threads}", address)
            for threads in (1, 2)
        }
        asks = [_ask(names[number % 2], text, KIND) for number, text in enumerate([*texts, *texts])]
        workloads = [Workload(f"{threads}", url, asks) for threads, url in urls.items()]
        found = timed.alternate(workloads, 1, setting.seconds, setting.rounds)
        for threads in urls:
            told = [wire.told(s) for item in found[f"{threads}"] for s in item.samples]
            swapped = [item for item in told if item.swap]
            swaps, runs = (statistics.median(getattr(t, part) for t in swapped) for part in ("swap", "run"))
            rows.append(
                {"threads": threads, "requests": len(told), "swapped": len(swapped), "swap_ms": 1e3 * swaps,
                 "forward_ms": 1e3 * runs, "ratio": swaps / runs}
            )  # fmt: skip
            samples = timed.some(found, f"{threads}", setting.checked)
            known = compute(maker.source, str(hub), threads, checking.keys(samples))
            tally.add(checking.check(samples, known, alone=True))
    return {"rows": rows, **tally.summary()}


def _ask(task: str, text: str, kind: str) -> Ask:
    return wire.ask(task, kind, [text])


def _peer_ask(task: str, text: str) -> Ask:
    return wire.peer_ask(task, text)


def _load_all(url: str, names: Sequence[str], kinds: Sequence[str], texts: Sequence[str]) -> None:
    asks = [_ask(name, texts[0], kind_of(name, kinds)) for name in names]
    checking.require_all(run(Plan(url, asks, 4)))


def _load_seconds(url: str, names: Sequence[str], texts: Sequence[str]) -> float:
    """What a load adds to a request of a single client: the first request of each task against the second."""
    asks = [_ask(name, texts[0], KIND) for name in names]
    checking.require_all(run(Plan(url, asks, 1)))  # whatever else is done once
    wire.evict(url, None)
    first, second = (run(Plan(url, asks, 1)) for _ in range(2))
    checking.require_all([*first, *second])
    took = [statistics.median(sample.seconds for sample in samples) for samples in (first, second)]
    return took[0] - took[1]


def _loads(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Loads for each text that was asked between two looks at an application's counters."""
    return (after["loads"] - before["loads"]) / (after["requests"] - before["requests"])


def _first_version(sample: Sample) -> str:
    return f"{sample.ask.name}@1"


def _check(setting: Setting, hub: Path, found: Mapping[int, Rounds], others: Sequence[str] = ()) -> checking.Tally:
    """Compares some answers of each workload with those of the tasks in ``hub``.

    Args:
        others: workloads of other applications, whose digests are their own and whose answers must be the same.
    """
    tally = checking.Tally()
    chosen = [
        (clients, name, timed.some(rounds, name, setting.checked))
        for clients, rounds in found.items()
        for name in rounds
    ]
    every = [sample for _, _, samples in chosen for sample in samples]
    known = compute(setting.maker.source, str(hub), setting.threads, checking.keys(every, _first_version))
    for clients, name, samples in chosen:
        same, alone = name not in others, clients == 1
        tally.add(checking.check(samples, known, version=_first_version, same_digest=same, alone=alone))
    return tally


def _rows(found: dict[int, Rounds], against: str | None) -> list[dict[str, Any]]:
    """A row for each number of clients and workload; ratios to the workload ``against``."""
    rows = []
    for clients, rounds in found.items():
        for name in rounds:
            row = {"clients": clients, "workload": name, **timed.medians(rounds[name])}
            if against is not None:
                row |= {f"{what}_ratio": timed.ratio(rounds, name, against, what) for what in ("rate", "p50", "p99")}
            rows.append(row)
    return rows

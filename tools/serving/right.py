"""Part ``right``: whether any answer is ever wrong, while everything changes and a replica is killed."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltahub import Hub
from serving import apps, checking, load, wire
from serving.changes import TAG, Changes, Meanings
from serving.load import Ask, Plan, Sample
from serving.made import KINDS, Maker, kind_of, numbered
from serving.reference import compute

TASKS, CLIENTS, REPLICAS = 60, 64, 2
REFRESH, SLACK = 1.0, 10.0
"""Seconds; the second for lookups that wait for a core."""
WAYS = ("never", "always", "auto")
"""How tasks share passes: a third of the requests each. By ``auto`` both kinds of pass take turns."""
CACHED = 25  # tasks, so that a replica cannot keep all sixty


def measure(maker: Maker, texts: Sequence[str], threads: int, *, quick: bool) -> dict[str, Any]:
    """Asks, changes and kills; then checks every answer."""
    maker = maker.with_biases()
    requests = (600 if quick else 21_000) // len(WAYS)
    with tempfile.TemporaryDirectory() as folder, apps.ray_serve() as address:
        url_of_hub = Path(folder, "hub")
        hub = Hub.open(url_of_hub)
        names = numbered(TASKS)
        maker.push(hub, names, KINDS)
        for name in names:
            hub.tag(name, 1, TAG)
        live = {"refresh": REFRESH, "cache_bytes": CACHED * 5 * maker.mask.k, "patience": 0.02}

        meanings = Meanings(REFRESH + SLACK)
        changes = Changes(f"{address}/right", maker, hub, names, KINDS, 0.1 if quick else 0.4, meanings)
        samples: list[Sample] = []
        idle: list[Sample] = []
        killed: dict[int, int] = {}
        counted: Counter[str] = Counter()
        for phase, way in enumerate(WAYS):  # each on new replicas, and beside the same changes

            def half_way(done: int, phase: int = phase) -> None:
                if phase not in killed and done >= requests // 2:
                    victim = random.Random(phase).choice(apps.replicas("right"))
                    os.kill(victim.pid, signal.SIGKILL)
                    killed[phase] = victim.pid

            application = apps.ours(
                url_of_hub, maker.source, threads, replicas=REPLICAS, live=live | {"mixing": way}
            )  # fmt: skip
            url = apps.deploy(application, "right", address)
            with changes:
                samples += load.run(Plan(url, questions(names, texts, requests, seed=phase), CLIENTS), half_way)
            idle += load.run(Plan(url, questions(names, texts, requests // 20, seed=10 + phase), 1))
            counted.update(wire.counters(url))
        everything = [*samples, *idle]
        known = compute(maker.source, str(url_of_hub), threads, checking.keys(everything))
        seen = discrimination(maker, texts, threads)
    tally = checking.check(samples, known)
    tally.add(checking.check(idle, known, alone=True))
    stale, impossible = versions(everything, meanings)
    lost = checking.failures(everything)
    answered = [wire.told(sample) for sample in everything if sample.status == 200]
    return {
        "requests": len(samples), "asked_one_by_one": len(idle), "clients": CLIENTS, "tasks": TASKS,
        "outcomes": checking.outcomes(everything), "lost": len(lost), "failures": lost[:5],
        "killed": len(killed), "replicas": len({item.replica for item in answered if item.replica}),
        "changes": dict(changes.counts), "changes_that_failed": len(changes.troubles), "troubles": changes.troubles[:5],
        "impossible": len(impossible), "impossible_versions": impossible[:5], "stalest_seconds": stale,
        "mixed": sum((item.tasks or 0) > 1 for item in answered),
        "swapped": sum(item.tasks == 1 and bool(item.swap) for item in answered),
        "rows": dict(Counter(f"{item.rows}" for item in answered).most_common(5)),
        "counters": dict(counted), "seen": seen, **tally.summary(),
    }  # fmt: skip


def questions(names: Sequence[str], texts: Sequence[str], count: int, seed: int = 0) -> list[Ask]:
    """A third by the plain name, a third by tag, a third by version; one in ten asks for several texts."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        name = chance.choice(names)
        asked = chance.choice([name, f"{name}:{TAG}", f"{name}@1"])
        several = chance.sample(texts, chance.randint(2, 5) if chance.random() < 0.1 else 1)
        found.append(wire.ask(asked, kind_of(name, KINDS), several, route=chance.random() < 0.5))
    return found


def versions(samples: Sequence[Sample], meanings: Meanings) -> tuple[float, list[str]]:
    """How long a name had meant another version in the worst case, and answers by versions that cannot be."""
    stalest, impossible = 0.0, []
    for sample in samples:
        if sample.status != 200:
            continue
        reference = wire.version(sample)
        task, number = reference.split("@")
        if task != sample.ask.name.split("@")[0].split(":")[0]:
            impossible.append(f"{sample.ask.name} was answered by {reference}")
        elif not meanings.could(sample.ask.name, int(number), sample.start, sample.end):
            impossible.append(f"{sample.ask.name} was answered by {reference}, which it did not mean any more or yet")
        else:
            stalest = max(stalest, meanings.staleness(sample.ask.name, int(number), sample.start))
    return stalest, impossible


def discrimination(maker: Maker, texts: Sequence[str], threads: int) -> float:
    """The smallest largest difference between one head's answers on its own and on another task's values.

    Far above the tolerance, so that an answer from another task's weights cannot pass.
    """
    smallest = float("inf")
    with tempfile.TemporaryDirectory() as folder:
        hub = Hub.open(folder)
        for number, kind in enumerate(KINDS):
            own, other = (maker.task(f"{kind}-{part}", kind, seed) for part, seed in (("own", number), ("other", 99)))
            mixed = {**own.tensors, "values": other.tensors["values"]}
            hub.push(own)
            hub.push(type(own)(other.manifest, mixed))
        keys = [(f"{kind}-{part}@1", text) for kind in KINDS for part in ("own", "other") for text in texts[:20]]
        known = compute(maker.source, folder, threads, keys)
        for kind in KINDS:
            for text in texts[:20]:
                pair = [known[f"{kind}-{part}@1", text].plain.numbers for part in ("own", "other")]
                smallest = min(smallest, max(abs(a - b) for a, b in zip(*pair, strict=True)))
    return smallest

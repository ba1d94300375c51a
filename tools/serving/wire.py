"""How questions and answers look on the wire, of ours and of the peer; the admin routes and metrics."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from serving.apps import ADMIN_KEY
from serving.load import Ask, Sample
from serving.made import LABELS
from serving.reference import Plain, plain

PEER = "/peer-classify"
_ROUTES = {
    "text-classification": ("/v1/classify", "input"),
    "token-classification": ("/token-classify", "inputs"),
    "embeddings": ("/v1/embeddings", "input"),
}


@dataclass(frozen=True)
class Told:
    """What an answer says of itself; None where it says nothing.

    Attributes:
        reference, digest: whose values were in place.
        replica: who answered.
        rows, tasks: most requests, and most tasks, of a pass with one of the texts.
        prepare, queue, swap, run: seconds.
    """

    reference: str | None
    digest: str | None
    replica: str | None
    rows: int | None
    tasks: int | None
    prepare: float | None
    queue: float | None
    swap: float | None
    run: float | None

    @property
    def inside(self) -> float:
        """Seconds from the tokens to the end of the pass."""
        return sum(part or 0.0 for part in (self.prepare, self.queue, self.swap, self.run))


def ask(name: str, kind: str, texts: Sequence[str], *, route: bool = False) -> Ask:
    """A question to ours; ``route`` takes the route that other servers have for this kind."""
    if not route:
        body = json.dumps({"inputs": list(texts)})
        return Ask(name, kind, tuple(texts), f"/tasks/{quote(name, safe='')}/predict", body)
    path, field = _ROUTES[kind]
    return Ask(name, kind, tuple(texts), path, json.dumps({"model": name, field: list(texts)}))


def peer_ask(task: str, text: str) -> Ask:
    """A question to the peer."""
    headers = {"serve_multiplexed_model_id": task}
    return Ask(task, "text-classification", (text,), PEER, json.dumps({"inputs": text}), headers)


def answers(sample: Sample) -> list[Plain]:
    """One for each text of an answer of status 200."""
    found = json.loads(sample.body)
    if sample.ask.path == PEER:
        return [plain(found)]
    match sample.ask.path:
        case "/v1/classify":
            return [plain({"scores": dict(zip(LABELS, item["probs"], strict=True))}) for item in found["data"]]
        case "/v1/embeddings":
            return [plain(item) for item in found["data"]]
        case "/token-classify":
            return [plain({"words": [item | {"label": item["entity"]} for item in words]}) for words in found]
    return [plain(answer) for answer in found["answers"]]


def told(sample: Sample) -> Told:
    """From the answer's headers; the replica from the body, where it is there."""
    headers = sample.headers
    task, number = headers.get("x-task"), headers.get("x-task-version")
    rows, tasks = (headers.get(f"x-batch-{what}") for what in ("rows", "tasks"))
    names = ("x-tokenization-time", "x-queue-time", "x-swap-time", "x-inference-time")
    steps = [float(headers[name]) / 1e3 if name in headers else None for name in names]
    replica = json.loads(sample.body).get("replica") if sample.ask.path.startswith("/tasks/") else None
    return Told(
        f"{task}@{number}" if task and number else None, headers.get("x-task-digest"), replica,
        int(rows) if rows else None, int(tasks) if tasks else None, *steps,
    )  # fmt: skip


def version(sample: Sample) -> str:
    """``task@3``, by the answer's headers."""
    reference = told(sample).reference
    if reference is None:
        raise RuntimeError(f"the answer to {sample.ask.path} names no version: {dict(sample.headers)}")
    return reference


def refresh(url: str, names: Sequence[str] | None) -> None:
    """Returns when every replica has looked the names up, or all in use."""
    _admin(f"{url}/admin/refresh", {} if names is None else {"names": list(names)})


def evict(url: str, task: str | None) -> None:
    """Makes every replica forget a task, or all that are not pinned."""
    _admin(f"{url}/admin/evict", {} if task is None else {"task": task})


def counters(url: str) -> dict[str, float]:
    """Sums over replicas of what they count: loads, swaps and the like."""
    found: Counter[str] = Counter()
    for replica in _admin(f"{url}/admin/state", None)["replicas"]:
        found.update(replica["counters"])
    return dict(found)


def _admin(url: str, body: Mapping[str, Any] | None) -> Any:
    headers = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as reply:
        return json.loads(reply.read())

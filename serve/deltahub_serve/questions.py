"""What passes between the web application and the replicas that hold the base: plain values, which pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client.metrics_core import Metric

from deltahub import replies
from deltahub.encoding import Text


@dataclass(frozen=True)
class Question:
    """What a client asks one task.

    Attributes:
        name: ``"sst2"``, ``"sst2@3"``, ``"sst2:prod"``, or the name of the base for its own embeddings.
        texts: each a text, or its words for token classification; one answer for each.
        pairs: the second text of each, for tasks that compare two.
        kinds: the kinds of task that may answer, since the route has a shape for no other; none means any.
        truncate: cut what is longer than the task takes; else it is refused.
        timeout: seconds after which nobody waits for the answer any more.
    """

    name: str
    texts: tuple[Text, ...]
    pairs: tuple[str, ...] | None = None
    kinds: tuple[str, ...] = ()
    truncate: bool = True
    timeout: float | None = None


@dataclass(frozen=True)
class Reply(replies.Reply):
    """The answers to a question, as clients get them; ``seconds`` are of the request of it that took longest.

    Attributes:
        rows: most requests that shared a forward pass with one of these.
        tasks: most task versions that did.
    """

    rows: int
    tasks: int


REASONS = (
    "unknown", "kind", "invalid", "too_long", "too_many", "unusable", "overloaded", "timeout", "unavailable", "failed"
)  # fmt: skip
"""No such task, version or tag; a task of another kind than the route takes; input that cannot be; a text longer than
the task takes; more texts than may be asked at once; a version that is damaged or does not fit this base; too much
waits; the deadline passed; the server is stopping, or lost the hub or a replica; the pass failed."""


@dataclass(frozen=True)
class Refusal:
    """Why there is no answer.

    Attributes:
        reason: one of REASONS.
        message: one line for people: expected, found, what to do next.
        retry_after: seconds after which the same question may be answered; None where it never will.
        near: names of tasks like the one that was not found.
    """

    reason: str
    message: str
    retry_after: float | None = None
    near: tuple[str, ...] = ()


class Refused(Exception):
    """Carries a Refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal

    def __reduce__(self) -> tuple[type[Refused], tuple[Refusal]]:
        return Refused, (self.refusal,)


@dataclass(frozen=True)
class TaskCard:
    """A line of what can be asked.

    Attributes:
        name: of the task; of the base.
        kind, labels: of the newest version.
        parent: id of the base; None for the base itself.
        versions: numbers, oldest first; none for the base.
        tags: tag to version number where one task was asked for, else the tags' names with None.
        created: seconds since 1970 of the newest version.
        trouble: why the newest version cannot be read, if so.
        pair: whether it compares two texts.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    parent: str | None
    versions: tuple[int, ...]
    tags: dict[str, int | None]
    created: int
    trouble: str | None = None
    pair: bool = False


@dataclass(frozen=True)
class State:
    """How a replica is.

    Attributes:
        base, base_digest, mask, device, threads, dtype: what it serves on; ``mask`` is a digest or None.
        resident: reference of the task whose values are in place.
        waiting: requests in its queues.
        loaded: references of the versions in memory, the latest used last, and the bytes of each.
        budget: bytes that they may take.
        pinned: names.
        trouble: names that could not be refreshed, and why.
        hub: why the hub cannot be read now; None where it can.
        broken: why the replica cannot answer any more; None where it can.
        uptime: seconds.
        counters: what it has done since it began.
        mixing: whether tasks share passes, why not, and what that costs as measured at the start.
    """

    replica: str
    base: str
    base_digest: str
    mask: str | None
    device: str
    threads: int
    dtype: str
    resident: str | None
    waiting: int
    loaded: dict[str, int]
    budget: int
    pinned: tuple[str, ...]
    trouble: dict[str, str]
    hub: str | None
    broken: str | None
    uptime: float
    counters: dict[str, float] = field(default_factory=dict)
    mixing: dict[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """Whoever answers: a worker in this process, or replicas elsewhere. Every method may raise Refused.

    What is told by replica is None for one that did not answer in time.
    """

    async def ask(self, question: Question) -> Reply: ...

    async def cards(self) -> list[TaskCard]:
        """The base, then every task by name."""
        ...

    async def card(self, name: str) -> TaskCard: ...

    async def states(self) -> list[State]:
        """One for each replica; of one that does not answer in time the latest that is known, as broken."""
        ...

    async def metrics(self) -> Mapping[str, list[Metric]]:
        """For Prometheus, by replica; without those that do not answer in time."""
        ...

    async def refresh(self, names: tuple[str, ...] | None = None) -> Mapping[str, list[str] | None]:
        """Looks names up now, all in use if None; the ones that changed, by replica."""
        ...

    async def pin(self, name: str) -> Mapping[str, str | None]:
        """Loads a task everywhere and keeps it; the reference of what was loaded, by replica."""
        ...

    async def unpin(self, name: str) -> Mapping[str, bool | None]:
        """Whether it was pinned, by replica."""
        ...

    async def evict(self, task: str | None = None) -> Mapping[str, int | None]:
        """Forgets a task's versions, or all that are not pinned; how many, by replica."""
        ...

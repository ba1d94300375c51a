"""What a forward pass gave, and what it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answered:
    """An answer and what it took.

    Attributes:
        answer: as `deltahub.TaskModel.run` gives it.
        task, version, digest: whose values were in place, by the resident's stamp.
        queued, swapped, ran: seconds in the queue, for the swap (0 where the values were in place), and for the pass.
        rows: requests in the pass.
    """

    answer: Any
    task: str
    version: int | None
    digest: str
    queued: float
    swapped: float
    ran: float
    rows: int


@dataclass(frozen=True)
class Pass:
    """What one forward pass did, for whoever counts.

    Attributes:
        task: whose values were in place.
        tokens, padded: tokens of the requests, and with the padding that the pass computed too.
        queued: seconds that each request waited.
        swapped, ran: seconds of the swap, 0 where the values were in place, and of the pass.
    """

    task: str
    tokens: int
    padded: int
    queued: tuple[float, ...]
    swapped: float
    ran: float

    @property
    def rows(self) -> int:
        return len(self.queued)


@dataclass
class Counters:
    """What the engine has done since it began; seconds are sums."""

    requests: int = 0
    passes: int = 0
    swaps: int = 0
    failures: int = 0
    expired: int = 0
    queue_seconds: float = 0.0
    swap_seconds: float = 0.0
    run_seconds: float = 0.0

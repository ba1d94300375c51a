"""What a forward pass gave, and what it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answered:
    """An answer and what it took.

    Attributes:
        answer: as `deltahub.TaskModel.run` gives it.
        task, version, digest: whose values answered, by the stamp of its row.
        queued, swapped, ran: seconds in the queue, for the swap (0 where the values were in place), and for the pass.
        rows: requests in the pass.
        tasks: task versions that had requests in it; where there are several, it was a mixed pass.
    """

    answer: Any
    task: str
    version: int | None
    digest: str
    queued: float
    swapped: float
    ran: float
    rows: int
    tasks: int = 1


@dataclass(frozen=True)
class Pass:
    """What one forward pass did, for whoever counts.

    Attributes:
        rows: task, tokens, and seconds of waiting of each request.
        padded: tokens that the pass computed, padding included.
        swapped, ran: seconds of the swap, 0 where the values were in place, and of the pass.
        mixed: whether several tasks shared it.
    """

    rows: tuple[tuple[str, int, float], ...]
    padded: int
    swapped: float
    ran: float
    mixed: bool = False


@dataclass
class Counters:
    """What the engine has done since it began; ``mixed`` counts passes that tasks shared, seconds are sums."""

    requests: int = 0
    passes: int = 0
    mixed: int = 0
    swaps: int = 0
    failures: int = 0
    expired: int = 0
    queue_seconds: float = 0.0
    swap_seconds: float = 0.0
    run_seconds: float = 0.0

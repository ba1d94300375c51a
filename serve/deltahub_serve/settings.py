"""How a library is set, and what it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LibrarySettings:
    """How much is kept, and how soon the hub is looked at again.

    Attributes:
        budget: bytes of loaded tasks; pinned ones and those in use come on top.
        refresh: seconds after which a name is looked up again.
        remember: seconds for which a failure is the answer, so that it is not tried for every request.
        loaders: tasks that are loaded at a time; cannot be changed later.
        loading: most names that wait to be loaded; who asks for another one is told to come back.
        splits: task to shares of its versions, ``{"sst2": {3: 0.9, 4: 0.1}}``, for requests that name no version. A
            version that cannot be loaded leaves its share to the others.
    """

    budget: int = 1 << 30
    refresh: float = 10.0
    remember: float = 2.0
    loaders: int = 2
    loading: int = 256
    splits: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    @property
    def fresh(self) -> float:
        """Seconds for which a listing may say that there is no such task."""
        return min(self.remember, self.refresh)

    def parts(self, name: str) -> list[str]:
        """What ``name`` is split into, the largest share first; itself where it is not."""
        shares = self.splits.get(name, {})
        return [f"{name}@{number}" for number in sorted(shares, key=lambda number: -shares[number])] or [name]


@dataclass(frozen=True)
class LibraryCounters:
    """What a library has done since it began: answers from memory, loads, loads that failed, versions let go."""

    hits: int
    loads: int
    load_failures: int
    evictions: int

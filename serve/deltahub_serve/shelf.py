"""Loaded task versions within a budget of bytes, the latest used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from deltahub import TaskModel

Key = tuple[str, int | None]


@dataclass(frozen=True)
class Loaded:
    """A task version that can answer.

    Attributes:
        task, version: its name and number in the hub; the base has no number.
        model: ready for the engine.
        size: bytes that it takes in memory.
    """

    task: str
    version: int | None
    model: TaskModel = field(repr=False)
    size: int

    @property
    def key(self) -> Key:
        return self.task, self.version

    @property
    def reference(self) -> str:
        """``"sst2@3"``; the plain name of the base."""
        return self.task if self.version is None else f"{self.task}@{self.version}"


class Shelf:
    """Not safe for concurrent use: its owner holds a lock.

    Args:
        budget: bytes that all together may take; what must stay comes on top.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._models: OrderedDict[Key, Loaded] = OrderedDict()
        self._bytes = 0

    def __iter__(self) -> Iterator[Loaded]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    def get(self, key: Key) -> Loaded | None:
        """What is there; counts as used."""
        if (found := self._models.get(key)) is not None:
            self._models.move_to_end(key)
        return found

    def put(self, loaded: Loaded) -> Loaded:
        """What is there from now on: ``loaded``, or what was there already where that is the same."""
        there = self.get(loaded.key)
        if there is not None and there.model.delta.digest == loaded.model.delta.digest:
            return there
        self.drop(loaded.key)
        self._models[loaded.key] = loaded
        self._bytes += loaded.size
        return loaded

    def drop(self, key: Key) -> bool:
        """Whether it was there."""
        gone = self._models.pop(key, None)
        self._bytes -= 0 if gone is None else gone.size
        return gone is not None

    def over(self, stay: Collection[Key]) -> list[Key]:
        """What must go to be within the budget, the longest unused first; never what is in ``stay``."""
        excess, found = self._bytes - self.budget, []
        for key, loaded in self._models.items():
            if excess <= 0:
                break
            if key not in stay:
                excess -= loaded.size
                found.append(key)
        return found

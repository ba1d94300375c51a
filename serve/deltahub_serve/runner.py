"""How a batch is answered: its task's values swapped in, or rows of many tasks on the base in one pass."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from deltahub import Mixable, Mixer, Resident, TaskModel
from deltahub.errors import DeltahubError, ResidentError
from deltahub.mixing.changes import Changes
from deltahub.resident import Stamp

Key: TypeAlias = tuple[str, int | None, str]
"""Task, version and digest."""
_MOST_FAILED = 1000
"""Digests of tasks that are remembered to be asked alone."""


@dataclass(frozen=True)
class Row:
    """A question and who answers it; ``mixable`` is None where its task cannot share a pass with others."""

    key: Key
    model: TaskModel
    mixable: Mixable | None
    encoded: Any


@dataclass(frozen=True)
class Ran:
    """What a pass gave.

    Attributes:
        answers: in the order of the rows.
        swapped, ran: seconds to put values in place, 0 where they were, and of the pass.
        tasks: that had rows in it.
    """

    answers: list[Any]
    swapped: float
    ran: float
    tasks: int


class Runner:
    """Runs passes on one resident, in the one thread that owns it.

    Args:
        resident: its values are whatever the last pass needed.
        mixer: on it; None where tasks never share a pass.
        clock: monotonic seconds.
    """

    def __init__(
        self, resident: Resident, mixer: Mixer | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.resident = resident
        self.mixer = mixer
        self._clock = clock
        self._admitted: WeakKeyDictionary[TaskModel, _Admitted | _Alone] = WeakKeyDictionary()
        self._failed: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def row(self, key: Key, model: TaskModel, encoded: Any, *, mixing: bool = True) -> Row:
        """May run on any thread; with ``mixing`` the task is made ready to share passes."""
        return Row(key, model, self._mixable(key, model) if mixing else None, encoded)

    def keep_alone(self, row: Row, reason: str) -> None:
        """Never mixes the task of ``row`` again, nor when it is loaded anew."""
        with self._lock:
            self._admitted[row.model] = _Alone(row.key, reason)
            self._failed[row.key[2]] = reason
            while len(self._failed) > _MOST_FAILED:
                self._failed.popitem(last=False)

    def admit(self, key: Key, model: TaskModel) -> int:
        """Makes a task ready to share passes; bytes that are kept for that. May run on any thread."""
        self._mixable(key, model)
        with self._lock:
            found = self._admitted.get(model)
        return found.changes.nbytes if isinstance(found, _Admitted) else 0

    @property
    def alone(self) -> dict[str, str]:
        """Why tasks share no pass, by reference."""
        with self._lock:
            kept = [one for one in self._admitted.values() if isinstance(one, _Alone)]
        return {reference(one.key): one.reason for one in kept}

    def run(self, rows: Sequence[Row]) -> Ran:
        """One pass: swapped for rows of one task, mixed for those of several.

        Raises:
            ResidentError: an answer would not be of its own task; or the write of values failed.
            MismatchError: a task gives NaN or infinity.
        """
        start = self._clock()
        tasks = len({row.key for row in rows})
        wanted = rows[0].key if tasks == 1 else None
        moved = key_of(self.resident.stamp) != wanted
        if moved and wanted is not None:
            self.resident.swap(rows[0].model.prepared, wanted[1])
        elif moved:
            self.resident.restore()
        placed = self._clock()
        answers = self._swapped(rows) if tasks == 1 else self._mixed(rows)
        return Ran(answers, placed - start if moved else 0.0, self._clock() - placed, tasks)

    def _swapped(self, rows: Sequence[Row]) -> list[Any]:
        answers = rows[0].model.run([row.encoded for row in rows])
        _check(rows, [key_of(self.resident.stamp)] * len(rows))
        return answers

    def _mixed(self, rows: Sequence[Row]) -> list[Any]:
        assert self.mixer is not None
        pairs = [(row.mixable, row.encoded) for row in rows if row.mixable is not None]
        assert len(pairs) == len(rows)
        mixed = self.mixer.run(pairs)
        _check(rows, [key_of(one.stamp) for one in mixed])
        return [one.answer for one in mixed]

    def _mixable(self, key: Key, model: TaskModel) -> Mixable | None:
        """What is found of ``model`` is kept as long as the model is, and does not hold it."""
        if self.mixer is None:
            return None
        with self._lock:
            found = self._admitted.get(model)
            if found is None and key[2] in self._failed:
                found = self._admitted[model] = _Alone(key, self._failed[key[2]])
        if found is None:
            try:
                mixable = self.mixer.admit(model)
                found = _Admitted(mixable.stamp, mixable.changes, mixable.shared)
            except DeltahubError as error:  # it changes what rows cannot differ in: it is swapped in
                found = _Alone(key, str(error))
            except Exception as error:  # noqa: BLE001  (such as a full device: it can still be swapped in)
                found = _Alone(key, " ".join(f"{type(error).__name__}: {error}".split())[:200])
            with self._lock:
                found = self._admitted.setdefault(model, found)
        if isinstance(found, _Alone):
            return None
        return Mixable(model, replace(found.stamp, version=key[1]), found.changes, found.shared)


@dataclass(frozen=True)
class _Admitted:
    stamp: Stamp
    changes: Changes
    shared: Any


@dataclass(frozen=True)
class _Alone:
    key: Key
    reason: str


def reference(key: Key) -> str:
    """``"sst2@3"``; the plain name of the base."""
    return key[0] if key[1] is None else f"{key[0]}@{key[1]}"


def key_of(stamp: Stamp | None) -> Key | None:
    """None for the base."""
    return None if stamp is None else (stamp.task, stamp.version, stamp.digest)


def _check(rows: Sequence[Row], answered: Sequence[Key | None]) -> None:
    """Whether each row was answered by the values of its own task, as the stamps say."""
    for row, key in zip(rows, answered, strict=True):
        if key != row.key:
            raise ResidentError(
                f"a row of {row.key[0]} was answered by other values", expected=row.key[2][:16],
                got="the base" if key is None else f"{key[0]} {key[2][:16]}", hint="the answer was not given",
            )  # fmt: skip

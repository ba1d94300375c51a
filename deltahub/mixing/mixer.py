"""One forward pass for rows of many tasks, and each task's own head on its rows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from deltahub.answers import Answer
from deltahub.encoding import Encoded, pad
from deltahub.errors import MismatchError, ResidentError, UsageError
from deltahub.mixing import changes, probe, sites
from deltahub.mixing.changes import Changes
from deltahub.mixing.heads import Heads
from deltahub.mixing.layers import Layers
from deltahub.mixing.products import Pattern, Products, fastest
from deltahub.resident import Resident, Stamp
from deltahub.task_model import TaskModel


@dataclass(frozen=True, eq=False)
class Mixable:
    """A task that can share a pass with others; made by `Mixer.admit`.

    Attributes:
        model: the task.
        stamp: whose answers its rows get.
        changes: what its rows have of their own.
        shared: see `heads.Heads.shared`.
    """

    model: TaskModel
    stamp: Stamp
    changes: Changes = field(repr=False)
    shared: tuple[nn.Module, ...] = field(repr=False)


@dataclass(frozen=True)
class Mixed:
    """The answer of one row, and whose it is."""

    answer: Answer
    stamp: Stamp


class Mixer:
    """Passes of many tasks over one resident that holds the base's own values.

    ``y = x W0 + x (W - W0)``, where the second product is every row's own. Numbers differ from those of swapped passes
    by the order of additions only. Not safe for concurrent use, but for `admit`.

    Args:
        resident: whose module runs; its values must be the base's in every pass.
        tokenizer: of its base.
        products: how products of masked matrices are taken; the fastest way that there is where None.

    Raises:
        ResidentError: the resident holds a task's values.
    """

    def __init__(self, resident: Resident, tokenizer: Any, products: Products | None = None) -> None:
        self._resident = resident
        self._tokenizer = tokenizer
        self._device = next(resident.module.parameters()).device
        self._check_base()
        self._seen = probe.look(resident.module, tokenizer)
        self.sites = sites.find(resident, self._seen)
        self.patterns = [Pattern.of(site) for site in self.sites.matrices if len(site.local)]
        self.products = products or fastest(self.patterns)
        named = {pattern.site.name: pattern for pattern in self.patterns}
        self._layers = Layers(self.sites, named, self.products)
        self._heads = Heads(resident.module, self._seen)
        self._running = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory of what all tasks share: where masked values are, and those of the base."""
        return sum(pattern.nbytes for pattern in self.patterns) + self.sites.nbytes

    def admit(self, model: TaskModel, version: int | None = None) -> Mixable:
        """Makes ``model`` ready for mixed passes; may run on any thread, also while a pass runs.

        Args:
            version: number in a hub, for the stamp.

        Raises:
            UsageError: it is no TaskModel.
            MismatchError: it was made for another resident; or it changes what rows cannot differ in, such as whole
                embeddings: swap it in instead.
        """
        if not isinstance(model, TaskModel):
            raise UsageError(
                "a task to be mixed", expected="a TaskModel", got=type(model).__name__,
                hint="make one: TaskModel(resident, tokenizer, delta)",
            )  # fmt: skip
        if model.prepared.resident is not self._resident:
            raise MismatchError(f"{model.delta.task} was made for another resident", hint="make it for this one")
        if self._seen.failure is not None:
            raise MismatchError(
                f"{type(self._resident.module).__name__} does not run on tokens alone ({self._seen.failure})",
                hint="tasks of this architecture can only be swapped in",
            )  # fmt: skip
        stamp = Stamp(model.delta.task, version, model.delta.digest)
        return Mixable(model, stamp, changes.of(model.delta, self.sites), self._heads.shared(model))

    def run(self, rows: Sequence[tuple[Mixable, Encoded]]) -> list[Mixed]:
        """The ``answer`` to each row with the ``stamp`` of who gave it, from one forward pass.

        Args:
            rows: a task, and a question that its own model has prepared.

        Raises:
            UsageError: a row is something else.
            ResidentError: the resident holds a task's values, before or after the pass; or another pass is under way.
            MismatchError: a task gives NaN or infinity, was admitted by another mixer, or cannot be mixed after all.
        """
        if not rows:
            return []
        for number, row in enumerate(rows, start=1):
            if not (isinstance(row, tuple) and [*map(type, row)] == [Mixable, Encoded]):
                raise UsageError(
                    f"row {number} of a mixed pass", expected="what admit gave, and one of what prepare gave",
                    got=str([type(part).__name__ for part in row] if isinstance(row, tuple) else type(row).__name__),
                )  # fmt: skip
        groups: dict[tuple[int, Stamp], list[int]] = {}
        for at, (task, _) in enumerate(rows):
            groups.setdefault((id(task.model), task.stamp), []).append(at)
        order = [at for group in groups.values() for at in group]  # rows of one task beside each other
        tasks = [rows[group[0]][0] for group in groups.values()]
        starts = [0, *accumulate(map(len, groups.values()))]
        if strange := [task.stamp.task for task in tasks if task.changes.sites is not self.sites]:
            raise MismatchError(f"{strange[0]} was admitted by another mixer", hint="admit it by this one")
        self._check_base()
        encoded = [rows[at][1] for at in order]
        padded = pad(self._tokenizer, [item.tokens for item in encoded])
        inputs = {name: column.to(self._device) for name, column in padded.items()}
        if not self._running.acquire(blocking=False):
            raise ResidentError("two mixed passes at the same time", hint="one thread runs the module of a resident")
        try:
            with torch.inference_mode(), self._layers.changed([task.changes for task in tasks], starts):
                found = self._heads.run([(task.model, task.shared) for task in tasks], starts, encoded, inputs)
        finally:
            self._running.release()
        self._check_base()
        stamps = [task.stamp for task, group in zip(tasks, groups.values(), strict=True) for _ in group]
        mixed = {at: Mixed(answer, stamp) for at, answer, stamp in zip(order, found, stamps, strict=True)}
        return [mixed[at] for at in range(len(rows))]

    def _check_base(self) -> None:
        stamp = self._resident.stamp
        if stamp is not None:
            raise ResidentError(
                "a mixed pass while a task's values are in place", expected="the base", got=stamp.task,
                hint="restore the base first",
            )  # fmt: skip

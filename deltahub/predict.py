"""Answers of many tasks in one process, without a server: one backbone in memory, each task's values swapped in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deltahub.answers import Answer, Embedding, Prediction, check_answerable
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.encoding import Text
from deltahub.errors import NotFoundError, UsageError
from deltahub.mask import Mask
from deltahub.task_model import TaskModel

if TYPE_CHECKING:
    from deltahub.resident import Resident


class Predictor:
    """Loads a base once and answers for every task loaded into it.

    Not safe for concurrent use: an answer swaps its task's values into the one backbone.

    Args:
        base: the base of all tasks.
        mask: their mask; None rebuilds it from the recipe of the first task that has one.
        device: torch device such as ``cuda``.

    Raises:
        CheckpointError: the base has no usable config or tokenizer.
        MismatchError: the mask was made on another base.
    """

    def __init__(self, base: Base, mask: Mask | None = None, *, device: str = "cpu") -> None:
        from deltahub.backbone import load_backbone
        from deltahub.heads import load_tokenizer
        from deltahub.resident import Resident

        self._tokenizer = load_tokenizer(base)
        self._resident: Resident = Resident(load_backbone(base).to(device), base, mask)
        self._tasks: dict[str, TaskModel] = {}

    @property
    def resident(self) -> Resident:
        """The backbone in memory; a task with the first mask after tasks without one binds it anew."""
        return self._resident

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that are loaded, the last one last."""
        return list(self._tasks)

    def load(self, delta: Delta) -> None:
        """Makes ``delta`` ready to answer, in place of a task of the same name.

        Raises:
            UsageError: a kind other than those in `names.TEXT_KINDS`.
            MismatchError: another base, mask or architecture, a head that does not fit, or ``inputs`` that cannot be.
        """
        check_answerable(delta.manifest)
        resident = self._fitting(delta)
        model = TaskModel(resident, self._tokenizer, delta)
        if resident is not self._resident:
            others = {name: TaskModel(resident, self._tokenizer, task.delta) for name, task in self._tasks.items()}
            self._resident, self._tasks = resident, others
        self._tasks.pop(delta.task, None)
        self._tasks[delta.task] = model

    def predict(
        self,
        texts: Sequence[Text],
        pairs: Sequence[str] | None = None,
        *,
        task: str | None = None,
        batch_size: int = 32,
    ) -> list[Answer]:
        """One answer for each text, in their order, of the class that `answers` has for the task's kind.

        Args:
            texts: for token classification each may also be given as its words.
            pairs: the second text of each, for tasks that were trained on pairs.
            task: which of the loaded tasks; None takes the one loaded last.
            batch_size: texts in one forward pass.

        Raises:
            NotFoundError: the task is not loaded.
            UsageError: questions that the task does not take, or a text that is no valid Unicode.
            MismatchError: the task gives NaN or infinity, or its tokenizer cannot tell words apart.
        """
        return self._answers(self._chosen(task), texts, pairs, batch_size)

    def classify(self, texts: Sequence[str], *, task: str | None = None, batch_size: int = 32) -> list[Prediction]:
        """One prediction for each text, in their order, of a task of text classification; otherwise as `predict`."""
        chosen = self._chosen(task, "text-classification")
        return [item for item in self._answers(chosen, texts, None, batch_size) if isinstance(item, Prediction)]

    def embed(self, texts: Sequence[str], *, task: str | None = None, batch_size: int = 32) -> npt.NDArray[np.float32]:
        """One vector for each text, (n, hidden size), pooled and normalised as the manifest's ``inputs`` say."""
        chosen = self._chosen(task, "embeddings")
        found = self._answers(chosen, texts, None, batch_size)
        if not found:
            return np.empty((0, chosen.hidden_size), np.float32)
        return np.stack([item.vector for item in found if isinstance(item, Embedding)])

    def _answers(
        self, task: TaskModel, texts: Sequence[Text], pairs: Sequence[str] | None, batch_size: int
    ) -> list[Answer]:
        """Swap, forward, answers; texts of like length go together."""
        if isinstance(texts, str) or isinstance(pairs, str):
            raise UsageError("texts", expected="a list of texts", got="one text", hint="put it into a list")
        if batch_size < 1:
            raise UsageError("batch_size", expected="1 or more", got=batch_size)
        encoded = task.prepare(texts, pairs)
        if (stamp := self._resident.stamp) is None or stamp.digest != task.delta.digest:
            self._resident.swap(task.prepared)
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row].tokens["input_ids"]))
        found: dict[int, Answer] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            found |= dict(zip(rows, task.run([encoded[row] for row in rows]), strict=True))
        return [found[row] for row in range(len(encoded))]

    def _chosen(self, task: str | None, kind: str | None = None) -> TaskModel:
        if task is None and not self._tasks:
            raise NotFoundError("no task is loaded", hint="load a delta first")
        name = self.tasks[-1] if task is None else task
        if name not in self._tasks:
            raise NotFoundError(f"task {name!r} is not loaded", expected=f"one of {', '.join(self._tasks) or 'none'}")
        chosen = self._tasks[name]
        if kind is not None and (found := chosen.delta.manifest.kind) != kind:
            raise UsageError(f"task {name!r}", expected=f"kind {kind}", got=found)
        return chosen

    def _fitting(self, delta: Delta) -> Resident:
        """The backbone bound to the delta's mask where it has none yet; every other mask is refused by the task."""
        from deltahub.resident import Resident

        resident = self._resident
        if (
            delta.manifest.mask is None
            or resident.mask is not None
            or delta.manifest.base.digest != resident.base.digest
        ):
            return resident
        mask = Mask.rebuild(resident.base, delta.manifest.mask)
        resident.restore()
        return Resident(resident.module, resident.base, mask)

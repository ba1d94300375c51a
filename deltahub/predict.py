"""Answers of many tasks in one process, without a server: one backbone in memory, each task's values swapped in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deltahub.answers import Answer, Embedding, Prediction, answers, check_answerable
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.encoding import Text, pad, prepare, task_length
from deltahub.errors import NotFoundError, UsageError
from deltahub.mask import Mask

if TYPE_CHECKING:
    from deltahub.resident import Resident


@dataclass(frozen=True)
class _Task:
    delta: Delta
    model: Any
    max_length: int


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
        self._tasks: dict[str, _Task] = {}

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
            UsageError: a kind other than those in `answers.KINDS`.
            MismatchError: another base, mask or architecture, a head that does not fit, or ``inputs`` that cannot be.
        """
        from deltahub.heads import know_padding, load_head, task_model

        manifest = delta.manifest
        check_answerable(manifest)
        max_length = task_length(self._tokenizer, self._resident.module.config, manifest)
        self._fit_mask(delta)
        self._resident.swap(delta)  # refuses what does not fit before any question is asked
        backbone = self._resident.module
        lacking = self._resident.binding.own
        pooling: Any = manifest.inputs.get("pooling")
        model = task_model(
            backbone, backbone.config, manifest.kind, manifest.labels, manifest.architecture, lacking=lacking,
            pooling=pooling,
        )  # fmt: skip
        if manifest.kind != "embeddings":
            load_head(model, delta.head, lacking)
            know_padding(model, self._tokenizer)
        self._tasks.pop(delta.task, None)
        self._tasks[delta.task] = _Task(delta, model.eval(), max_length)

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
            return np.empty((0, chosen.model.config.hidden_size), np.float32)
        return np.stack([item.vector for item in found if isinstance(item, Embedding)])

    def _answers(
        self, task: _Task, texts: Sequence[Text], pairs: Sequence[str] | None, batch_size: int
    ) -> list[Answer]:
        """Swap, forward, answers; texts of like length go together."""
        import torch

        if batch_size < 1:
            raise UsageError("batch_size", expected="1 or more", got=batch_size)
        manifest = task.delta.manifest
        encoded = prepare(self._tokenizer, manifest, texts, pairs, max_length=task.max_length)
        if (stamp := self._resident.stamp) is None or stamp.digest != task.delta.digest:
            self._resident.swap(task.delta)
        device = next(task.model.parameters()).device
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row].tokens["input_ids"]))
        found: dict[int, Answer] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = [encoded[row] for row in rows]
            padded = pad(self._tokenizer, [item.tokens for item in batch])
            inputs = {name: column.to(device) for name, column in padded.items()}
            with torch.inference_mode():
                outputs = task.model(**inputs)
            found |= dict(zip(rows, answers(manifest.kind, manifest, outputs, inputs, batch), strict=True))
        return [found[row] for row in range(len(encoded))]

    def _chosen(self, task: str | None, kind: str | None = None) -> _Task:
        if task is None and not self._tasks:
            raise NotFoundError("no task is loaded", hint="load a delta first")
        name = self.tasks[-1] if task is None else task
        if name not in self._tasks:
            raise NotFoundError(f"task {name!r} is not loaded", expected=f"one of {', '.join(self._tasks) or 'none'}")
        chosen = self._tasks[name]
        if kind is not None and (found := chosen.delta.manifest.kind) != kind:
            raise UsageError(f"task {name!r}", expected=f"kind {kind}", got=found)
        return chosen

    def _fit_mask(self, delta: Delta) -> None:
        """Binds the backbone to the delta's mask where it has none yet; every other mask is refused by the swap."""
        from deltahub.resident import Resident

        resident = self._resident
        if (
            delta.manifest.mask is None
            or resident.mask is not None
            or delta.manifest.base.digest != resident.base.digest
        ):
            return
        mask = Mask.rebuild(resident.base, delta.manifest.mask)
        resident.restore()
        self._resident = Resident(resident.module, resident.base, mask)

"""Answers of many tasks in one process, without a server: one backbone in memory, each task's values swapped in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.errors import MismatchError, NotFoundError, UsageError
from deltahub.mask import Mask

if TYPE_CHECKING:
    import torch

    from deltahub.resident import Resident

KINDS = ("text-classification", "embeddings")
_POOLING = ("mean", "cls")


@dataclass(frozen=True)
class Prediction:
    """The answer to one text.

    Attributes:
        label: the most probable class.
        score: its probability.
        scores: the probability of each class, in the order of the manifest's labels; they sum to 1.
    """

    label: str
    score: float
    scores: dict[str, float]


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
            UsageError: a kind other than those in KINDS.
            MismatchError: another base, mask or architecture, a head that does not fit, or ``inputs`` that cannot be.
        """
        from deltahub.heads import load_head, task_model

        manifest = delta.manifest
        if manifest.kind not in KINDS:
            raise UsageError(f"{delta.task} is of kind {manifest.kind!r}", expected=f"one of {', '.join(KINDS)}")
        if manifest.kind == "embeddings":
            _pooling(delta)
        max_length = self._max_length(delta)
        self._fit_mask(delta)
        self._resident.swap(delta)  # refuses what does not fit before any question is asked
        backbone = self._resident.module
        lacking = self._resident.binding.own
        model = task_model(
            backbone, backbone.config, manifest.kind, manifest.labels, manifest.architecture, lacking=lacking
        )
        if manifest.kind != "embeddings":
            load_head(model, delta.head, lacking)
        self._tasks.pop(delta.task, None)
        self._tasks[delta.task] = _Task(delta, model.eval(), max_length)

    def classify(self, texts: Sequence[str], *, task: str | None = None, batch_size: int = 32) -> list[Prediction]:
        """One prediction for each text, in their order.

        Args:
            task: which of the loaded tasks; None takes the one loaded last.
            batch_size: texts in one forward pass.

        Raises:
            NotFoundError: the task is not loaded.
            UsageError: the task is of another kind, or a text is no valid Unicode.
            MismatchError: the task gives NaN or infinity.
        """
        chosen = self._chosen(task, "text-classification")
        labels = chosen.delta.manifest.labels
        probabilities = np.empty((len(texts), len(labels)), np.float64)
        for rows, output, _inputs in self._run(chosen, texts, batch_size):
            _check_finite(chosen, output.logits)
            probabilities[rows] = output.logits.double().softmax(-1).cpu().numpy()
        best = probabilities.argmax(-1) if len(texts) else []
        return [
            Prediction(labels[top], float(row[top]), dict(zip(labels, row.tolist(), strict=True)))
            for top, row in zip(best, probabilities, strict=True)
        ]

    def embed(self, texts: Sequence[str], *, task: str | None = None, batch_size: int = 32) -> npt.NDArray[np.float32]:
        """One vector for each text, (n, hidden size), pooled and normalised as the manifest's ``inputs`` say.

        Raises:
            NotFoundError: the task is not loaded.
            UsageError: the task is of another kind, or a text is no valid Unicode.
            MismatchError: the task gives NaN or infinity.
        """
        chosen = self._chosen(task, "embeddings")
        pooling, normalize = _pooling(chosen.delta)
        vectors = np.empty((len(texts), chosen.model.config.hidden_size), np.float32)
        for rows, output, inputs in self._run(chosen, texts, batch_size):
            states = output.last_hidden_state.float()
            if pooling == "mean":
                weights = inputs["attention_mask"].unsqueeze(-1).float()
                pooled = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
            else:
                pooled = states[:, 0]
            _check_finite(chosen, pooled)
            if normalize:
                length = pooled.norm(dim=-1, keepdim=True)
                _check_finite(chosen, length)  # the squares of a finite vector may overflow
                pooled = pooled / length.clamp(min=1e-12)
            vectors[rows] = pooled.cpu().numpy()
        return vectors

    def _run(
        self, task: _Task, texts: Sequence[str], batch_size: int
    ) -> Iterator[tuple[list[int], Any, dict[str, torch.Tensor]]]:
        """Row numbers, model output and inputs of each batch; texts of like length go together."""
        import torch

        if batch_size < 1:
            raise UsageError("batch_size", expected="1 or more", got=batch_size)
        _check_unicode(texts)
        if (stamp := self._resident.stamp) is None or stamp.digest != task.delta.digest:
            self._resident.swap(task.delta)
        device = next(task.model.parameters()).device
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        for start in range(0, len(texts), batch_size):
            rows = order[start : start + batch_size]
            inputs = self._tokenizer(
                [texts[row] for row in rows], truncation=True, max_length=task.max_length, padding=True,
                return_tensors="pt",
            ).to(device)  # fmt: skip
            with torch.inference_mode():
                output = task.model(**inputs)
            yield rows, output, inputs

    def _max_length(self, delta: Delta) -> int:
        """Tokens that a text is cut to: what the manifest says, else all that the model takes."""
        from deltahub.heads import longest_input, shortest_input

        longest = longest_input(self._tokenizer, self._resident.module.config)
        shortest = shortest_input(self._tokenizer)
        length = delta.manifest.inputs.get("max_length", longest)
        if type(length) is not int or not shortest <= length <= longest:
            raise MismatchError(
                f"max_length of {delta.task}",
                expected=f"{shortest} to {longest}, which {self._resident.base.id} takes",
                got=str(length)[:20],
            )
        return length

    def _chosen(self, task: str | None, kind: str) -> _Task:
        if task is None and not self._tasks:
            raise NotFoundError("no task is loaded", hint="load a delta first")
        name = self.tasks[-1] if task is None else task
        if name not in self._tasks:
            raise NotFoundError(f"task {name!r} is not loaded", expected=f"one of {', '.join(self._tasks) or 'none'}")
        chosen = self._tasks[name]
        if (found := chosen.delta.manifest.kind) != kind:
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


def _check_unicode(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, start=1):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"text {number} of {len(texts)}", expected="valid Unicode", got="half a surrogate pair",
                hint="read it as UTF-8",
            ) from None  # fmt: skip


def _check_finite(task: _Task, values: torch.Tensor) -> None:
    if not values.isfinite().all():
        raise MismatchError(
            f"the task {task.delta.task} gives NaN or infinity", expected="finite numbers",
            hint="its values overflow on this base: train or convert it again",
        )  # fmt: skip


def _pooling(delta: Delta) -> tuple[str, bool]:
    """Pooling and whether to normalise; sentence encoders mostly take the mean and do."""
    pooling, normalize = delta.manifest.inputs.get("pooling", "mean"), delta.manifest.inputs.get("normalize", True)
    if pooling not in _POOLING or not isinstance(normalize, bool):
        raise MismatchError(
            f"the pooling of {delta.task}", expected=f"{' or '.join(_POOLING)}, normalize true or false",
            got=f"{str(pooling)[:20]}, {str(normalize)[:20]}",
        )  # fmt: skip
    return str(pooling), normalize

"""A task that can answer: its head around a resident's backbone, from questions to answers in three steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deltahub.answers import Answer, answers, check_answerable
from deltahub.delta import Delta
from deltahub.encoding import Encoded, Text, pad, prepare, task_length
from deltahub.errors import MismatchError, ResidentError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from deltahub.resident import Prepared, Resident


class TaskModel:
    """One task on a resident.

    ``prepare`` may run on any thread; ``run`` belongs to the thread that owns the resident, with the task's values
    swapped in.

    Args:
        resident: whose backbone the head is put on; it is not changed.
        tokenizer: of its base.
        delta: the task; kept, as its values are needed for each swap.

    Attributes:
        model: the backbone of the resident with the task's own head, in evaluation mode.
        prepared: what `Resident.swap` takes to put this task's values in place.
        nbytes: memory that is kept for this task alone: its delta, the products of low-rank factors, and its head.

    Raises:
        UsageError: a kind other than those in `names.TEXT_KINDS`.
        MismatchError: another base, mask or architecture, a head that does not fit, or ``inputs`` that cannot be.
    """

    def __init__(self, resident: Resident, tokenizer: PreTrainedTokenizerBase, delta: Delta) -> None:
        from deltahub.heads import know_padding, load_head

        manifest = delta.manifest
        check_answerable(manifest)
        backbone = resident.module
        self.max_length = task_length(tokenizer, backbone.config, manifest)
        _check_labels(delta)
        self.prepared = resident.prepare(delta)  # refuses what does not fit before any question is asked
        model = resident.skeletons.task_model(
            manifest.kind, manifest.labels, manifest.architecture, manifest.inputs.get("pooling")
        )
        if manifest.kind != "embeddings":
            load_head(model, delta.head, resident.binding.own)
            know_padding(model, tokenizer)
        self.delta = delta
        self.model = model.eval()
        self._resident = resident
        self._tokenizer = tokenizer
        like = next(model.parameters())
        self._device = like.device
        self.nbytes = _bytes_of(self.prepared, like.dtype)

    @property
    def hidden_size(self) -> int:
        """Length of the vectors that an embedding task gives."""
        config: Any = self._resident.module.config
        size: int = config.hidden_size
        return size

    def prepare(
        self, texts: Sequence[Text], pairs: Sequence[str] | None = None, *, truncate: bool = True
    ) -> list[Encoded]:
        """Tokens of each question.

        Args:
            pairs: the second text of each, for tasks that were trained on pairs.
            truncate: cut what is longer than the task takes; else it is refused.

        Raises:
            TooLongError: a text, or pair, of more tokens than the task takes, without ``truncate``.
            UsageError: questions that the task does not take, or a text that is no valid Unicode.
            MismatchError: its tokenizer cannot tell words apart.
        """
        return prepare(
            self._tokenizer, self.delta.manifest, texts, pairs, max_length=self.max_length, truncate=truncate
        )

    def run(self, batch: Sequence[Encoded]) -> list[Answer]:
        """One answer for each of ``batch``, from one forward pass.

        Raises:
            ResidentError: another task's values are in place, before or after the pass.
            MismatchError: the task gives NaN or infinity.
        """
        import torch

        self._check_stamp()
        padded = pad(self._tokenizer, [item.tokens for item in batch])
        inputs = {name: column.to(self._device) for name, column in padded.items()}
        with torch.inference_mode():
            outputs = self.model(**inputs)
        self._check_stamp()
        manifest = self.delta.manifest
        return answers(manifest.kind, manifest, outputs, inputs, batch)

    def _check_stamp(self) -> None:
        stamp = self._resident.stamp
        if stamp is None or stamp.digest != self.delta.digest:
            raise ResidentError(
                f"{self.delta.task} was asked while other values are in place", expected=self.delta.digest[:16],
                got="the base" if stamp is None else f"{stamp.task} {stamp.digest[:16]}", hint="swap it in first",
            )  # fmt: skip


def _bytes_of(prepared: Prepared, dtype: torch.dtype) -> int:
    """As `TaskModel.nbytes`; ``dtype`` is that of the head in the model."""
    delta = prepared.delta
    head = 0 if delta.manifest.kind == "embeddings" else sum(tensor.numel() for tensor in delta.head.values())
    kept = [*prepared.tensors, *delta.dense.values(), *delta.adapter.values(), *delta.head.values()]
    kept += [] if delta.values is None else [delta.values]
    sizes = {raw.data.ctypes.data: raw.data.nbytes for raw in delta.tensors.values()}
    sizes |= {tensor.data_ptr(): tensor.nbytes for tensor in kept}  # most of them are views of the delta's own bytes
    return sum(sizes.values()) + head * dtype.itemsize


def _check_labels(delta: Delta) -> None:
    """Before memory is taken for a head of so many labels: the delta must have that many rows of one."""
    labels = len(delta.manifest.labels)
    if labels and not any(raw.shape[:1] == (labels,) for raw in delta.raw("head").values()):
        raise MismatchError(
            f"the head of {delta.task}", expected=f"a tensor of {labels:,} rows, one for each label",
            got=", ".join(f"{name} {raw.shape}" for name, raw in list(delta.raw("head").items())[:4]) or "no head",
        )  # fmt: skip

"""Each task's own head on its rows of one backbone's output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.cache_utils import Cache

from deltahub.answers import Answer, answers
from deltahub.encoding import Encoded
from deltahub.errors import MismatchError
from deltahub.linear_head import LinearHead
from deltahub.mixing.probe import Seen
from deltahub.pooling import pool
from deltahub.task_model import TaskModel


@dataclass(frozen=True)
class _Logits:
    """As much of transformers' outputs as answers need; theirs take long to make."""

    logits: torch.Tensor


class Heads:
    """Runs the backbone once for all rows, and what is left of each task's model on its own.

    A linear head and an embedding need the last hidden states only, which are pooled for all tasks at once. Any other
    head is a model of transformers: its own code runs, with the parts that it shares with the backbone replaced by what
    these gave for its rows.
    """

    def __init__(self, backbone: nn.Module, seen: Seen) -> None:
        self._backbone = backbone
        self._own = frozenset(backbone.modules())
        self._parts = seen.parts

    def shared(self, model: TaskModel) -> tuple[nn.Module, ...]:
        """The largest parts of the task's model that are the backbone's own; none where its head needs no replay.

        Raises:
            MismatchError: a module holds parameters of the backbone and of the head, or a part of the backbone does not
                give one output for each row.
        """
        if model.model is self._backbone or self._is_plain(model.model):
            self._check_parts(self._backbone)
            return ()
        found: list[nn.Module] = []
        parameters = {id(one) for one in self._backbone.parameters()}

        def walk(module: nn.Module) -> None:
            if module in self._own:
                found.append(module)
                return
            if any(id(one) in parameters for one in module.parameters(recurse=False)):
                raise MismatchError(f"{type(module).__name__} of {model.delta.task} is partly in the base", hint="swap")
            for child in module.children():
                walk(child)

        walk(model.model)
        self._check_parts(*found)
        return tuple(found)

    def run(
        self, tasks: Sequence[tuple[TaskModel, tuple[nn.Module, ...]]], starts: Sequence[int],
        rows: Sequence[Encoded], inputs: Mapping[str, torch.Tensor],
    ) -> list[Answer]:  # fmt: skip
        """An answer for each row.

        Args:
            tasks: each with what `shared` gave.
            starts: the first row of each task, and after the last the number of rows.
            inputs: all ``rows``, padded.
        """
        outputs: dict[nn.Module, Any] = {}
        with _recorded({part for _, shared in tasks for part in shared}, outputs):
            given = self._backbone(**inputs)
        logits = self._linear([task.model for task, _ in tasks], starts, given, inputs)
        found: list[Answer] = []
        for number, (task, shared) in enumerate(tasks):
            mine = slice(starts[number], starts[number + 1])
            own = {} if number in logits else {name: column[mine] for name, column in inputs.items()}
            if shared:
                with _replayed({part: _cut(outputs[part], mine, starts[-1]) for part in shared}):
                    output = task.model(**own)
            elif number in logits:
                output = _Logits(logits[number])
            else:
                output = _cut(given, mine, starts[-1])
            manifest = task.delta.manifest
            found += answers(manifest.kind, manifest, output, own, rows[mine])
        return found

    def _linear(
        self, models: Sequence[nn.Module], starts: Sequence[int], given: Any, inputs: Mapping[str, torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        """What all plain linear heads give, by number of the task, on the host: a device is waited for once."""
        pooled: dict[str, torch.Tensor] = {}
        found: dict[int, torch.Tensor] = {}
        for number, model in enumerate(models):
            if self._is_plain(model):
                head: Any = model
                if head.pooling not in pooled:
                    pooled[head.pooling] = pool(given.last_hidden_state, inputs["attention_mask"], head.pooling)
                rows = pooled[head.pooling][starts[number] : starts[number + 1]]
                found[number] = functional.linear(rows, head.classifier.weight, head.classifier.bias)
        if found:
            parts = torch.cat([logits.reshape(-1) for logits in found.values()]).double().cpu()
            sizes = [logits.numel() for logits in found.values()]
            for (number, logits), part in zip(list(found.items()), torch.split(parts, sizes), strict=True):
                found[number] = part.view(logits.shape)
        return found

    def _check_parts(self, *parts: nn.Module) -> None:
        for part in parts:
            if part not in self._parts:
                raise MismatchError(
                    f"{type(part).__name__} in a mixed pass", expected="one call, and tensors of one row for each text",
                    hint="tasks of this architecture can only be swapped in",
                )  # fmt: skip

    def _is_plain(self, model: nn.Module) -> bool:
        return type(model) is LinearHead and type(model.backbone) is type(self._backbone)


@contextmanager
def _recorded(parts: set[nn.Module], outputs: dict[nn.Module, Any]) -> Iterator[None]:
    handles = []
    try:
        for part in parts:
            handles.append(part.register_forward_hook(lambda module, _, output: outputs.__setitem__(module, output)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replayed(outputs: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Each of these modules gives what it is said to have given."""
    held = {part: vars(part).get("forward") for part in outputs}
    try:
        for part, output in outputs.items():
            part.forward = lambda *_, given=output, **__: given
        yield
    finally:
        for part, forward in held.items():
            vars(part).pop("forward", None)
            if forward is not None:
                part.forward = forward


def _cut(output: Any, mine: slice, rows: int) -> Any:
    """Rows ``mine`` of a module's output, without its cache for tokens to come.

    Raises:
        MismatchError: an output that is not by row.
    """
    if output is None or isinstance(output, str | int | float):
        return output
    if isinstance(output, Cache):
        return None
    if isinstance(output, torch.Tensor) and output.ndim and len(output) == rows:
        return output[mine]
    if is_dataclass(output) and not isinstance(output, type):
        cut = {field.name: _cut(getattr(output, field.name), mine, rows) for field in fields(output)}
        return type(output)(**cut)
    if isinstance(output, tuple):
        return tuple(_cut(item, mine, rows) for item in output)
    raise MismatchError(
        f"{type(output).__name__} of a layer", expected="tensors of one row for each text",
        hint="tasks of this architecture can only be swapped in",
    )  # fmt: skip

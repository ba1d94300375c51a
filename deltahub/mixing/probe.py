"""Which layers of a backbone are given the rows of a batch: found by two small passes, before any task is mixed.

A layer can give each row its own task's output only if it is called, once or more, with a tensor whose first dimension
are the rows, and if nobody reads its parameters without calling it. Tables of relative positions, experts that get some
tokens of all rows, and fused products are none of that, and shapes alone do not tell: there may be as many positions as
rows. So the same rows run in two orders, and what belongs to a row must have changed places with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_LENGTHS = (7, 4, 6)
"""Tokens of the rows: there are fewer rows than tokens."""
_NEAR = 0.05
"""Of what a row is; half-precision numbers depend on the order of rows a little."""


@dataclass(frozen=True)
class Seen:
    """What two passes have shown.

    Attributes:
        layers: those that were given rows, and that alone read their own parameters.
        tables: those that were given rows, or the same numbers for all rows; and that alone read their own parameters.
        parts: those that were called once and gave tensors by row.
        failure: why the module cannot run on tokens alone; None where it can.
    """

    layers: frozenset[nn.Module] = frozenset()
    tables: frozenset[nn.Module] = frozenset()
    parts: frozenset[nn.Module] = frozenset()
    failure: str | None = None


def look(module: nn.Module, tokenizer: Any) -> Seen:
    """Runs ``module``, a backbone in evaluation mode that holds a base's values, on a few tokens."""
    inputs = _inputs(module, tokenizer)
    try:
        one, other = _Pass(module), _Pass(module)
        one.run(inputs)
        other.run({name: column.flip(0) for name, column in inputs.items()})
    except Exception as error:  # noqa: BLE001 (an architecture that wants other inputs fails in any way there is)
        return Seen(failure=(str(error).strip().splitlines() or [type(error).__name__])[0][:160])
    layers, tables, parts = set(), set(), set()
    for layer in module.modules():
        given, again = one.given.get(layer, []), other.given.get(layer, [])
        if given and len(given) == len(again) and layer not in one.outside:
            pairs = list(zip(given, again, strict=True))
            if all(_by_row(*pair) for pair in pairs):
                layers.add(layer)
            if all(_by_row(*pair) or _alike(*pair) for pair in pairs):
                tables.add(layer)
        calls, back = one.gave.get(layer, []), other.gave.get(layer, [])
        once = len(calls) == len(back) == 1 and len(calls[0]) == len(back[0])
        if once and all(_by_row(*pair) for pair in zip(calls[0], back[0], strict=True)):
            parts.add(layer)
    return Seen(frozenset(layers), frozenset(tables), frozenset(parts))


def _inputs(module: Any, tokenizer: Any) -> dict[str, torch.Tensor]:
    """Rows of unlike numbers and lengths, padded."""
    from deltahub.encoding import pad

    words = min(len(tokenizer), module.get_input_embeddings().num_embeddings)
    rows = [[(5 + 11 * row + 3 * at) % words for at in range(length)] for row, length in enumerate(_LENGTHS)]
    values = {"attention_mask": 1}
    names = dict.fromkeys(["input_ids", *tokenizer.model_input_names, "attention_mask"])
    examples = [
        {name: ids if name == "input_ids" else [values.get(name, 0)] * len(ids) for name in names} for ids in rows
    ]
    device = next(module.parameters()).device
    return {name: column.to(device) for name, column in pad(tokenizer, examples).items()}


@dataclass(frozen=True)
class _Glance:
    """As much of a tensor as tells its rows apart: its shape; a number for each row, and how large the row is."""

    shape: torch.Size
    marks: torch.Tensor
    sizes: torch.Tensor

    @staticmethod
    def of(tensor: torch.Tensor) -> _Glance:
        rows = tensor.reshape(len(tensor), -1).double() if tensor.ndim else tensor.reshape(1, 1).double()
        weights = torch.arange(1, rows.shape[1] + 1, device=rows.device).double().cos()
        return _Glance(tensor.shape, rows @ weights, rows.norm(dim=1))


def _by_row(one: _Glance | None, other: _Glance | None) -> bool:
    if one is None or other is None or one.shape != other.shape or one.shape[:1] != (len(_LENGTHS),):
        return False
    return bool(((one.marks - other.marks.flip(0)).abs() <= _NEAR * one.sizes).all())


def _alike(one: _Glance | None, other: _Glance | None) -> bool:
    """Whether it is the same for all rows."""
    return one is not None and other is not None and one.shape[:1] == (1,) and torch.equal(one.marks, other.marks)


class _Pass(TorchFunctionMode):
    """Attributes:
    given: for each layer with parameters, of each call the tensor that it was given; None where it was given more.
    gave: for each module, of each call all tensors that it gave.
    outside: layers whose parameters were read by others.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.given: dict[nn.Module, list[_Glance | None]] = {}
        self.gave: dict[nn.Module, list[list[_Glance]]] = {}
        self.outside: set[nn.Module] = set()
        self._running: list[nn.Module] = []
        self._owners: dict[int, list[nn.Module]] = {}
        for layer in module.modules():
            for parameter in layer.parameters(recurse=False):
                self._owners.setdefault(id(parameter), []).append(layer)

    def run(self, inputs: Mapping[str, torch.Tensor]) -> None:
        with ExitStack() as stack:
            for layer in self.module.modules():
                stack.callback(layer.register_forward_pre_hook(self._before, with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(self._after).remove)
            with torch.inference_mode(), self:
                self.module(**inputs)

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._running.append(layer)
        if layer._parameters:
            alone = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
            self.given.setdefault(layer, []).append(_Glance.of(args[0]) if alone else None)

    def _after(self, layer: nn.Module, _: Any, output: Any) -> None:
        self.gave.setdefault(layer, []).append([_Glance.of(tensor) for tensor in _tensors(output)])
        self._running.pop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        owners = [layer for tensor in _tensors((args, kwargs)) for layer in self._owners.get(id(tensor), [])]
        reader = self._running[-1] if self._running else None
        if any(layer is not reader for layer in owners) and any(True for _ in _tensors(found)):  # not a dtype or shape
            self.outside.update(layer for layer in owners if layer is not reader)
        return found


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    """All tensors in what a module or function takes or gives."""
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, Mapping):
        yield from _tensors(tuple(found.values()))
    elif isinstance(found, tuple | list):
        for item in found:
            yield from _tensors(item)
    elif is_dataclass(found) and not isinstance(found, type):
        yield from _tensors(tuple(getattr(found, field.name) for field in fields(found)))

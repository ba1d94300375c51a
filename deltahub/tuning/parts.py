"""What can be trained of a bound model: masked values, and whole tensors. Low-rank adapters are in hiwi.py.

An optimizer never sees the backbone. A part holds fp32 **masters**, the only parameters that are trained. After every
backward pass its hooks bring the model's gradients to the masters and free the dense ones at once; before every forward
pass it writes the masters into the model, rounded to the model's dtype. So weight decay, momentum and rounding can
reach no parameter that the method does not train (Liao et al., ACL 2023: `w <- w - eta * m * grad`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from deltahub.layout import Segment
from deltahub.resident import Resident

Hook = Callable[[torch.Tensor], None]


class Part(nn.Module, ABC):
    """A part of a training. Its parameters are the masters."""

    def __init__(self) -> None:
        super().__init__()
        self._hooks: list[RemovableHandle] = []

    @abstractmethod
    def write(self) -> None:
        """Puts the masters into the model."""

    def watch(self, parameter: nn.Parameter, hook: Hook) -> None:
        """Lets ``hook`` see each gradient of ``parameter``, and free it."""
        parameter.requires_grad_(True)
        self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]

    def detach(self) -> None:
        """Removes every hook; the model keeps its values."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class MaskedValues(Part):
    """The k values of the mask: one (m,) fp32 vector for each flat buffer of the resident that the mask falls in.

    Args:
        resident: binds the backbone; has a mask.
        skip: base tensors whose masked values stay as they are, since another part trains all of them.
    """

    def __init__(self, resident: Resident, skip: Collection[str] = ()) -> None:
        super().__init__()
        self._segments = resident.segments
        self.values = nn.ParameterList(segment.flat[segment.index].float() for segment in self._segments)
        self._written: list[tuple[torch.Tensor, torch.Tensor]] = []
        for segment, master in zip(self._segments, self.values, strict=True):
            live = torch.ones_like(segment.index, dtype=torch.bool)
            for parameter, sources, rows in _masked(segment, resident):
                if set(skip).isdisjoint(sources):
                    self.watch(parameter, _gather(master, rows))
                else:
                    live[rows.rows] = False
            rows_written = torch.nonzero(live).reshape(-1)
            self._written.append((segment.index[rows_written], rows_written))

    @torch.no_grad()
    def write(self) -> None:
        for segment, master, (index, rows) in zip(self._segments, self.values, self._written, strict=True):
            values = master.detach() if len(rows) == len(master) else master.detach()[rows]
            segment.flat.index_copy_(0, index, values.to(segment.flat.dtype))


class WholeTensors(Part):
    """Parameters that are trained as they are; one of fp32 is its own master.

    Args:
        tensors: parameters of the model by name.
    """

    def __init__(self, tensors: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.names = tuple(tensors)
        self._targets = tuple(tensors.values())
        self.masters = nn.ParameterDict()
        for name, target in tensors.items():
            self.masters[slashed(name)] = master = _master(target)
            target.requires_grad_(True)
            if master is not target:
                self.watch(target, _move(master))

    @torch.no_grad()
    def write(self) -> None:
        for target, master in zip(self._targets, self.masters.values(), strict=True):
            if master is not target:
                # through .data: a second forward pass before the backward pass must not look like a change
                target.data.copy_(master)


def slashed(name: str) -> str:
    """A tensor's name as torch takes it for a parameter: without dots."""
    return name.replace(".", "/")


@dataclass(frozen=True)
class _Rows:
    """Where the masked entries of one parameter lie: offsets ``local`` in it, and ``rows`` of the masters."""

    local: torch.Tensor
    rows: torch.Tensor


def _masked(segment: Segment, resident: Resident) -> Iterator[tuple[nn.Parameter, tuple[str, ...], _Rows]]:
    """Every parameter with masked entries in ``segment``, the base tensors in it, and where the entries lie."""
    ordered, order = segment.index.sort()
    for placement in resident.binding.placements:
        tensor = placement.tensor
        if not isinstance(tensor, nn.Parameter) or not _lies_in(tensor, segment):
            continue
        start = int(tensor.storage_offset())
        bounds = torch.tensor([start, start + tensor.numel()], device=ordered.device)
        low, high = torch.searchsorted(ordered, bounds).tolist()
        if high > low:
            yield tensor, placement.sources, _Rows(ordered[low:high] - start, order[low:high])


def _master(parameter: nn.Parameter) -> nn.Parameter:
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())


def _lies_in(tensor: torch.Tensor, segment: Segment) -> bool:
    return tensor.untyped_storage().data_ptr() == segment.flat.untyped_storage().data_ptr()


def _gather(master: nn.Parameter, part: _Rows) -> Hook:
    def hook(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        master.grad.index_add_(0, part.rows, parameter.grad.reshape(-1)[part.local].float())
        parameter.grad = None

    return hook


def _move(master: nn.Parameter) -> Hook:
    def hook(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad + gradient
        parameter.grad = None

    return hook

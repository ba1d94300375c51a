"""The arithmetic of PaFi: k numbers are trained, and nothing else of the backbone can move.

An optimizer never sees the backbone. It holds fp32 masters: one vector for the masked values, and one tensor for each
whole tensor that is trained (the head, biases). After every backward pass hooks bring the gradients to the masters and
free the dense ones; after every optimizer step the masters are written into the model, rounded to its dtype. So weight
decay, momentum and rounding can reach no parameter outside the mask (Liao et al., ACL 2023: `w <- w - eta * m * grad`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from deltahub.layout import Segment
from deltahub.resident import Resident


@dataclass(frozen=True)
class _Part:
    """Where the masked entries of one parameter lie: offsets ``local`` in it, and ``rows`` of the masters."""

    local: torch.Tensor
    rows: torch.Tensor


class Masters:
    """What is trained of a model, in fp32, with the hooks that feed it.

    Args:
        model: the model to train; every parameter of it that is not named here is frozen.
        resident: binds the backbone inside ``model``; its mask, if any, says which values are trained.
        whole: parameters of ``model`` that are trained as they are, by any name.

    Attributes:
        values: the masked values' masters, one vector for each segment of the resident.
        whole: masters of the whole tensors, by the name given; the parameter itself where that is fp32 already.
    """

    def __init__(self, model: nn.Module, resident: Resident, whole: Mapping[str, nn.Parameter]) -> None:
        self._segments = resident.segments
        self._targets = dict(whole)
        self.values = [nn.Parameter(segment.flat[segment.index].float()) for segment in self._segments]
        self.whole = {name: _master(parameter) for name, parameter in whole.items()}
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self._hooks: list[RemovableHandle] = []
        for parameter, master, part in self._masked(resident):
            parameter.requires_grad_(True)
            self._after_gradient(parameter, _gather(master, part))
        for name, parameter in whole.items():
            parameter.requires_grad_(True)
            if self.whole[name] is not parameter:
                self._after_gradient(parameter, _move(self.whole[name]))

    def _after_gradient(self, parameter: nn.Parameter, hook: Callable[[torch.Tensor], None]) -> None:
        self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]

    def parameters(self) -> list[nn.Parameter]:
        return [*self.values, *self.whole.values()]

    def state(self) -> dict[str, torch.Tensor]:
        """The masters by name, for a checkpoint; not copied."""
        values = {f"values.{number}": master.detach() for number, master in enumerate(self.values)}
        return values | {f"whole.{name}": master.detach() for name, master in self.whole.items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes over what `state` gave, into the model too. Names and shapes must be its own."""
        own = self.state()
        assert own.keys() == state.keys()
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.write()

    @torch.no_grad()
    def write(self) -> None:
        """Puts the masters into the model, rounded to nearest in its dtype."""
        for segment, master in zip(self._segments, self.values, strict=True):
            segment.flat.index_copy_(0, segment.index, master.detach().to(segment.flat.dtype))
        for name, target in self._targets.items():
            if self.whole[name] is not target:
                target.copy_(self.whole[name])

    def follow(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        """From now on each step of ``optimizer`` clips the masters' gradients to ``max_norm`` (0: never), writes the
        masters into the model, and drops the gradients."""

        def before(_optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            if max_norm > 0:
                torch.nn.utils.clip_grad_norm_(self.parameters(), max_norm)

        def after(_optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            self.write()
            for master in self.parameters():
                master.grad = None

        self._hooks.append(optimizer.register_step_pre_hook(before))
        self._hooks.append(optimizer.register_step_post_hook(after))

    def detach(self) -> None:
        """Removes every hook; the model keeps its values."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _masked(self, resident: Resident) -> Iterator[tuple[nn.Parameter, nn.Parameter, _Part]]:
        """Every parameter with masked entries, with the master of its segment."""
        for segment, master in zip(self._segments, self.values, strict=True):
            ordered, order = segment.index.sort()
            for placement in resident.binding.placements:
                tensor = placement.tensor
                if not isinstance(tensor, nn.Parameter) or not _lies_in(tensor, segment):
                    continue
                start = int(tensor.storage_offset())
                bounds = torch.tensor([start, start + tensor.numel()], device=ordered.device)
                low, high = torch.searchsorted(ordered, bounds).tolist()
                if high > low:
                    yield tensor, master, _Part(ordered[low:high] - start, order[low:high])


def _master(parameter: nn.Parameter) -> nn.Parameter:
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())


def _lies_in(tensor: torch.Tensor, segment: Segment) -> bool:
    return tensor.untyped_storage().data_ptr() == segment.flat.untyped_storage().data_ptr()


def _gather(master: nn.Parameter, part: _Part) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        master.grad.index_add_(0, part.rows, parameter.grad.reshape(-1)[part.local].float())
        parameter.grad = None

    return hook


def _move(master: nn.Parameter) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad + gradient
        parameter.grad = None

    return hook

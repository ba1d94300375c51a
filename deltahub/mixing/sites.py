"""Where a task can change a module for some rows of a batch only: matrices, look-up tables, and vectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from deltahub.checkpoint import Base
from deltahub.mask import Mask
from deltahub.resident import Resident

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Site(Generic[Module]):
    """A parameter that one layer uses, and no other.

    Attributes:
        name: of the base tensor.
        module: the layer.
        parameter: its name there.
        part: which of the mask's k values fall in it.
        local: (m,) int64 flat positions of these in the parameter, ascending, on its device.
    """

    name: str
    module: Module
    parameter: str
    part: slice
    local: torch.Tensor

    @property
    def tensor(self) -> torch.Tensor:
        """The parameter itself, without a gradient."""
        found: torch.Tensor = getattr(self.module, self.parameter)
        return found.detach()


@dataclass(frozen=True, eq=False)
class Vector(Site[nn.Module]):
    """A bias or the weight of a norm, (n,).

    Attributes:
        at: its place in the line of all vectors.
    """

    at: slice


@dataclass(frozen=True)
class Sites:
    """All places of a resident where rows can differ.

    Attributes:
        matrices: weights (out, in) of linear layers, in the order of the base's tensors.
        tables: weights (n, width) of embeddings.
        vectors: all one-dimensional ones, whose values stand in one line one after the other.
        masked_elsewhere: names of base tensors with masked positions where rows cannot differ.
        device: of all of them.
    """

    matrices: tuple[Site[nn.Linear], ...]
    tables: tuple[Site[nn.Embedding], ...]
    vectors: tuple[Vector, ...]
    masked_elsewhere: tuple[str, ...]
    device: torch.device

    @cached_property
    def line(self) -> torch.Tensor:
        """(width,) the base's own values of all vectors."""
        found = [vector.tensor for vector in self.vectors]
        return torch.cat(found) if found else torch.empty(0, device=self.device)

    @cached_property
    def masked_line(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the k values fall in vectors, and their places in the line; both (m,) int64."""
        device = self.device
        empty = torch.empty(0, dtype=torch.int64, device=device)
        which = [torch.arange(vector.part.start, vector.part.stop, device=device) for vector in self.vectors]
        where = [vector.local + vector.at.start for vector in self.vectors]
        return torch.cat([empty, *which]), torch.cat([empty, *where])


def find(resident: Resident) -> Sites:
    """Follows every tensor of the base to the layer that uses it."""
    parts = _parts(resident.base, resident.mask)
    users = _users(resident.module)
    matrices: list[Site[nn.Linear]] = []
    tables: list[Site[nn.Embedding]] = []
    vectors: list[Vector] = []
    dtypes = {placement.tensor.dtype for placement in resident.binding.placements}
    width = 0
    for placement in resident.binding.placements:
        name, using = placement.sources[0], users.get(placement.tensor.data_ptr(), [])
        if placement.trace is not None or len(using) != 1 or len(dtypes) != 1:
            continue
        [(module, parameter)] = using
        part, local = parts.get(name, (slice(0, 0), torch.empty(0, dtype=torch.int64)))
        local = local.to(placement.tensor.device)
        if type(module) is nn.Linear and parameter == "weight":
            matrices.append(Site(name, module, parameter, part, local))
        elif type(module) is nn.Embedding and module.max_norm is None:
            tables.append(Site(name, module, parameter, part, local))
        elif placement.tensor.ndim == 1 and (type(module) in (nn.Linear, nn.LayerNorm) or is_rms(module)):
            at = slice(width, width := width + placement.tensor.numel())
            vectors.append(Vector(name, module, parameter, part, local, at))
        else:
            continue
        parts.pop(name, None)
    device = next(resident.module.parameters()).device
    return Sites(tuple(matrices), tuple(tables), tuple(vectors), tuple(parts), device)


def is_rms(module: nn.Module) -> bool:
    """Whether it is one of transformers' many classes of root-mean-square norms, which multiply by their weight."""
    return type(module).__name__.endswith("RMSNorm") and [*module._parameters] == ["weight"]


def _parts(base: Base, mask: Mask | None) -> dict[str, tuple[slice, torch.Tensor]]:
    """For every base tensor with masked positions: which of the values they are, and where in the tensor."""
    if mask is None:
        return {}
    indices = mask.indices
    return {
        tensor.name: (part, torch.from_numpy(indices[part] - tensor.offset))
        for tensor, part in base.space.split(indices)
    }


def _users(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Which layers use a parameter, by where it lies in memory."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for layer in module.modules():
        parameters: dict[str, Any] = layer._parameters
        for name, parameter in parameters.items():
            if parameter is not None:
                found.setdefault(parameter.data_ptr(), []).append((layer, name))
    return found

"""Where a task can change a module for some rows of a batch only: matrices, look-up tables, and vectors."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from deltahub.checkpoint import Base
from deltahub.mask import Mask
from deltahub.mixing.probe import Seen
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
        line: (width,) the base's own values of all vectors, in the dtype and on the device of all of them.
    """

    matrices: tuple[Site[nn.Linear], ...]
    tables: tuple[Site[nn.Embedding], ...]
    vectors: tuple[Vector, ...]
    masked_elsewhere: tuple[str, ...]
    line: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Of the line and all positions."""
        sites: tuple[Site[Any], ...] = (*self.matrices, *self.tables, *self.vectors)
        return self.line.nbytes + sum(site.local.nbytes for site in sites)

    @cached_property
    def masked_line(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the k values fall in vectors, and their places in the line; both (m,) int64."""
        device = self.line.device
        empty = torch.empty(0, dtype=torch.int64, device=device)
        which = [torch.arange(vector.part.start, vector.part.stop, device=device) for vector in self.vectors]
        where = [vector.local + vector.at.start for vector in self.vectors]
        return torch.cat([empty, *which]), torch.cat([empty, *where])


def find(resident: Resident, seen: Seen) -> Sites:
    """Follows every tensor of the base to the layer that uses it.

    Args:
        resident: it holds the base's own values.
        seen: of its module.
    """
    parts = _parts(resident.base, resident.mask)
    users = _users(resident.module)
    single = [one for using in users.values() if len(using) == 1 for one in using]
    linear = {module for module, parameter in single if type(module) is nn.Linear and parameter == "weight"}
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
        if "forward" in vars(module) or module not in (seen.tables if type(module) is nn.Embedding else seen.layers):
            continue
        part, local = parts.get(name, (slice(0, 0), torch.empty(0, dtype=torch.int64)))
        local = local.to(placement.tensor.device)
        if type(module) is nn.Linear and parameter == "weight":
            matrices.append(Site(name, module, parameter, part, local))
        elif type(module) is nn.Embedding and module.max_norm is None:
            tables.append(Site(name, module, parameter, part, local))
        elif placement.tensor.ndim == 1 and (module in linear or type(module) is nn.LayerNorm or is_rms(module)):
            at = slice(width, width := width + placement.tensor.numel())
            vectors.append(Vector(name, module, parameter, part, local, at))
        else:
            continue
        parts.pop(name, None)
    empty = resident.binding.placements[0].tensor.detach().new_empty(0)
    line = torch.cat([empty, *(vector.tensor for vector in vectors)])
    return Sites(tuple(matrices), tuple(tables), tuple(vectors), tuple(parts), line)


def is_rms(module: nn.Module) -> bool:
    """Whether it is one of transformers' many classes of root-mean-square norms, and takes a weight for each row."""
    if not type(module).__name__.endswith("RMSNorm") or [*module._parameters] != ["weight"]:
        return False
    like: Any = module.weight
    numbers = torch.linspace(-1, 1, 6 * like.numel(), device=like.device, dtype=like.dtype).view(3, 2, -1)
    weights, states = numbers[:, :1], numbers.flip(0, 2)
    try:
        with torch.no_grad():
            whole = weighted(module, weights, states)
            rows = [weighted(module, weights[at, 0], states[at : at + 1]) for at in range(3)]
    except Exception:  # noqa: BLE001 (one that wants a weight of its own shape fails in any way there is)
        return False
    return torch.equal(whole, torch.cat(rows))


def weighted(module: nn.Module, weight: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """What a norm gives with another weight; others may read the module meanwhile, and see its own."""
    twin: Any = copy.copy(module)
    vars(twin)["_parameters"] = {"weight": weight}
    found: torch.Tensor = type(module).forward(twin, states)
    return found


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

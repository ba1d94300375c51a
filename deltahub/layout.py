"""How a bound module lies in memory: one flat buffer per dtype and device, and where the mask falls in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from deltahub.binding import Binding
from deltahub.checkpoint import Base
from deltahub.errors import MismatchError
from deltahub.mask import Mask
from deltahub.rawtensor import RawTensor, torch_dtype

_ALIGN = 64  # bytes: the cache line that vectorised kernels like a parameter to start on

Flats = Mapping[tuple[torch.dtype, torch.device], torch.Tensor]


@dataclass(frozen=True)
class Segment:
    """The part of the mask in one flat buffer.

    Attributes:
        flat: (size,) the buffer that the module's parameters are views of.
        index: (m,) int64 offsets in ``flat``.
        part: which of the k values they take: a slice, or (m,) int64.
        base: (m,) the base's own values, for restore.
    """

    flat: torch.Tensor
    index: torch.Tensor
    part: slice | torch.Tensor
    base: torch.Tensor


def check_values(binding: Binding, base: Base) -> None:
    """Compares the module with the base, bit by bit."""
    for placement in binding.placements:
        found = RawTensor.of_torch(placement.tensor)
        for source in placement.sources:
            raw = base.read(source)
            if raw.dtype != found.dtype:
                raise MismatchError(
                    f"{placement.name} of the module", expected=f"{raw.dtype} as in {base.id}", got=found.dtype,
                    hint=f"load it with dtype={torch_dtype(raw.dtype)}",
                )  # fmt: skip
            if placement.trace is None:
                same = np.array_equal(raw.bits, found.bits)
            else:
                at, local = placement.elements(base.space.by_name[source])
                same = np.array_equal(raw.bits[local.numpy()], found.bits[at.numpy()])
            if not same:
                raise MismatchError(
                    f"{placement.name} of the module differs from {source} of {base.id}", expected="the same bits",
                    hint="bind a freshly loaded base; a fine-tuned model goes through `extract` instead",
                )  # fmt: skip


def flatten(binding: Binding) -> Flats:
    """Moves every placed tensor into one buffer per dtype and device, one at a time, freeing each old storage."""
    groups: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for placement in binding.placements:
        groups.setdefault((placement.tensor.dtype, placement.tensor.device), []).append(placement.tensor)
    flats = {}
    with torch.no_grad():
        for (dtype, device), tensors in groups.items():
            step = _ALIGN // dtype.itemsize
            sizes = [-(-tensor.numel() // step) * step for tensor in tensors]
            flat = torch.empty(sum(sizes), dtype=dtype, device=device)
            offset = 0
            for tensor, size in zip(tensors, sizes, strict=True):
                view = flat[offset : offset + tensor.numel()].view(tensor.shape)
                tensor.data = view.copy_(tensor.data)
                offset += size
            flats[dtype, device] = flat
    return flats


def segments(binding: Binding, flats: Flats, base: Base, mask: Mask) -> list[Segment]:
    positions = torch.from_numpy(np.array(mask.indices))
    offsets = torch.full_like(positions, -1)
    holder = torch.full_like(positions, -1)
    keys = list(flats)
    for placement in binding.placements:
        key = (placement.tensor.dtype, placement.tensor.device)
        start = int(placement.tensor.storage_offset())
        for source in placement.sources:
            tensor = base.space.by_name[source]
            low, high = torch.searchsorted(
                positions, torch.tensor([tensor.offset, tensor.offset + tensor.size])
            ).tolist()
            if placement.trace is None:
                offsets[low:high] = positions[low:high] - tensor.offset + start
                holder[low:high] = keys.index(key)
            elif high > low:
                flat, order = placement.trace.reshape(-1).sort()
                at = torch.searchsorted(flat, positions[low:high]).clamp(max=len(flat) - 1)
                hit = torch.nonzero(flat[at] == positions[low:high]).reshape(-1)
                offsets[low + hit] = order[at[hit]] + start
                holder[low + hit] = keys.index(key)
    if bool((holder < 0).any()):
        missing = mask.indices[(holder < 0).numpy()]
        names = [tensor.name for tensor, _ in base.space.split(missing)]
        raise MismatchError(
            f"the mask has {len(missing)} positions that the module lacks", got=f"none of {', '.join(names[:4])}",
            hint="exclude these tensors from the mask, or bind a model that has them",
        )  # fmt: skip
    found = []
    for number, key in enumerate(keys):
        part: slice | torch.Tensor
        members = torch.nonzero(holder == number).reshape(-1)
        if len(members):
            whole = len(members) == mask.k
            part = slice(None) if whole else members
            index = (offsets if whole else offsets[members]).to(key[1])
            found.append(Segment(flats[key], index, part, flats[key][index].clone()))
    return found

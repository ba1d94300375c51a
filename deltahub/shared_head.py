"""Inner layers of a head that all tasks of a base can have in common: random values that names and shapes decide."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deltahub.errors import MismatchError
from deltahub.selection import splitmix64

if TYPE_CHECKING:
    import torch


def fixed_values(name: str, shape: Sequence[int]) -> torch.Tensor:
    """The values of an inner head tensor, float32, the same on every machine and with every version of torch.

    Matrices are uniform in +-sqrt(3 / fan_in), of standard deviation 1 / sqrt(fan_in), which keeps the variance of
    what goes in: they are never trained, so the small ``initializer_range`` of a config would only fade the signal.
    Biases are 0; other vectors, the weights of norms, are 1.

    Element i is number i of the SplitMix64 stream that starts at the first 8 bytes, little-endian, of the sha256 of
    ``"{name} {d0}x{d1}..."``; its upper 24 bits n stand for (2 n + 1) / 2^24 - 1 of the range.
    """
    import torch

    if len(shape) < 2:
        return torch.full(tuple(shape), 0.0 if name.endswith("bias") else 1.0)
    key = hashlib.sha256(f"{name} {'x'.join(map(str, shape))}".encode()).digest()
    drawn = splitmix64(np.arange(math.prod(shape), dtype=np.uint64), int.from_bytes(key[:8], "little"))
    unit = ((drawn >> np.uint64(40)) * np.uint64(2) + np.uint64(1)).astype(np.float64) / (1 << 24) - 1
    values = (unit * math.sqrt(3 / math.prod(shape[1:]))).astype(np.float32)
    return torch.from_numpy(values.reshape(tuple(shape)))


def inner_names(head: Mapping[str, torch.Tensor], labels: int, what: str) -> tuple[str, ...]:
    """Tensors of ``head``, in its order, that are not of the layer that maps to the labels: the last one that can be.

    Raises:
        MismatchError: no layer of ``head`` has as many outputs as there are labels.
    """
    outputs = [name for name, tensor in head.items() if tensor.ndim == 2 and len(tensor) == labels]
    if not outputs:
        raise MismatchError(f"the head of {what}", expected=f"a layer with {labels} outputs", got=list(head)[:5])
    last = outputs[-1].rpartition(".")[0] + "."
    return tuple(name for name in head if not name.startswith(last))

"""Rounding a task's tensors before it is pushed: what they become is then the task.

Every tensor is rounded by itself and keeps its dtype. It stays as it is where it already is such a tensor, where all
its numbers are equal (norms of ones would move for nothing), and where ``head_frozen`` of the manifest's method names
it: one that many tasks share must stay the same in all of them.
"""

from __future__ import annotations

import numpy as np

from deltahub.codecs import quantized
from deltahub.codecs.quantized import Quantized
from deltahub.delta import GROUPS, Delta
from deltahub.errors import UsageError
from deltahub.manifest import ROUNDINGS, Manifest, Quantization
from deltahub.rawtensor import RawTensor, narrow

GROUP = 256
"""Numbers per scale of int8 and int4."""
_LARGEST_BF16 = {"F32": 2.0**128 - 2.0**120, "F16": 65280.0}
"""The largest bf16 number that is a finite number of the dtype."""


def check_rounding(option: str, rounding: str) -> None:
    """Raises UsageError, named by ``option``, unless ``rounding`` is one of ROUNDINGS."""
    if rounding not in ROUNDINGS:
        raise UsageError(option, expected=", ".join(ROUNDINGS[:-1]) + f" or {ROUNDINGS[-1]}", got=ascii(rounding)[:40])


def round_delta(delta: Delta, values: str = "exact", head: str = "exact") -> Delta:
    """The task that ``delta`` becomes when it is rounded; itself where nothing is left to round.

    Args:
        values: one of ROUNDINGS, for values, dense tensors and adapter factors.
        head: one of ROUNDINGS, for the head.
    """
    told, tensors = dict(delta.manifest.quantization), dict(delta.tensors)
    for group in GROUPS:
        rounding = head if group == "head" else values
        if rounding == "exact" or (group in told and _rank(told[group].rounding) >= _rank(rounding)):
            continue
        names = [name for name in tensors if name.partition(".")[0] == group and _may_move(delta, name)]
        rounded = {name: _round(tensors[name], rounding) for name in names}
        if rounding == "bf16" and all(rounded[name] is tensors[name] for name in names):
            continue  # nothing was lost, and nothing is coded in another way
        if names:
            error, rms = quantized.measure(*((tensors[name], rounded[name]) for name in names))
            told[group] = Quantization(rounding, None if rounding == "bf16" else GROUP, error, rms)
            tensors |= rounded
    return (
        delta
        if told == delta.manifest.quantization
        else Delta(delta.with_manifest(quantization=told).manifest, tensors)
    )


def codes(delta: Delta, name: str) -> Quantized | None:
    """The codes that a tensor was rounded to, by the manifest; None where it has none and must be kept as it is."""
    lossy = delta.manifest.quantization.get(name.partition(".")[0])
    if lossy is None or lossy.bits is None or lossy.group is None or is_frozen(delta.manifest, name):
        return None
    tensor = delta.tensors[name]
    return quantized.requantize(tensor, lossy.bits, lossy.group) if tensor.size else None


def is_frozen(manifest: Manifest, name: str) -> bool:
    """Whether the tensor ``head.<name>`` was made once for many tasks: ``head_frozen`` of the method names it."""
    frozen = manifest.method.get("head_frozen")
    return isinstance(frozen, list) and name.startswith("head.") and name.removeprefix("head.") in frozen


def _may_move(delta: Delta, name: str) -> bool:
    bits = delta.tensors[name].bits
    return bits.size > 0 and bits.min() != bits.max() and not is_frozen(delta.manifest, name)


def _round(tensor: RawTensor, rounding: str) -> RawTensor:
    """``tensor`` itself where it is such a one already."""
    if rounding == "bf16":
        rounded = _round_bf16(tensor)
        return tensor if rounded == tensor else rounded
    bits = 8 if rounding == "int8" else 4
    if quantized.requantize(tensor, bits, GROUP) is not None:
        return tensor
    flat = quantized.dequantize(quantized.quantize(tensor, bits, GROUP))
    return RawTensor(tensor.dtype, tensor.shape, flat.data)


def _round_bf16(tensor: RawTensor) -> RawTensor:
    """The nearest bf16 numbers, ties to even, or at the end of the dtype's range its last; in the tensor's dtype."""
    if tensor.dtype == "BF16":
        return tensor
    near = RawTensor.of_bits("BF16", tensor.shape, narrow(tensor.float32(), "BF16")).float32()
    largest = np.float32(_LARGEST_BF16[tensor.dtype])
    return RawTensor.of_bits(tensor.dtype, tensor.shape, narrow(np.clip(near, -largest, largest), tensor.dtype))


def _rank(rounding: str) -> int:
    return ROUNDINGS.index(rounding)

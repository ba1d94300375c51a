"""Codecs ``int8`` and ``int4``: values as small whole numbers times a scale per group, entropy-coded.

Lossy once, and only when asked for: what comes out is bit for bit the same on every machine, and its codes can be found
again from the values alone (`requantize`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from deltahub.codecs.frames import Encoded, check_fields, items, pack, plane_lengths, unpack, whole
from deltahub.errors import CodecError, UsageError
from deltahub.manifest import Plain
from deltahub.rawtensor import FLOATS, ITEMSIZE, Bytes, RawTensor, narrow

_MAX_GROUP = 1 << 20
_LARGEST = {"F32": 2.0**128 - 2.0**104, "BF16": 2.0**128 - 2.0**120, "F16": 65504.0}
_SMALLEST = {"F32": 2.0**-126, "BF16": 2.0**-126, "F16": 2.0**-24}
"""The least scale: a normal bf16 number, so that no machine flushes it, and of which F16 holds every small multiple."""
_HIDDEN_STEPS = {"F32": 0, "BF16": 2, "F16": 24}
"""By how many bf16 steps a scale may be off when it is taken from the group's largest value as rounded to the dtype."""
_BF16_NORMAL, _BF16_INFINITY = 0x0080, 0x7F80
_PROBE = 16  # groups that are tried first: values that were never quantised fail there

Scales = npt.NDArray[np.uint16]
Codes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Quantized:
    """Values of which number i is ``codes[i] * scales[i // group]``, in each of the tensors that they are joined of.

    Attributes:
        bits: 8 or 4; codes lie in -127..127 or -7..7.
        group: values per scale; the last group may be shorter.
        dtype: of the values, one of FLOATS.
        scales: uint16 bits of bf16 numbers, 0 or positive and normal, shape (ceil(size / group),) for each tensor.
        codes: int8, shape (size,).
        parts: sizes of the joined tensors, 1 or more each, since no group runs across two; empty where it is one.
    """

    bits: int
    group: int
    dtype: str
    scales: Scales = field(repr=False)
    codes: Codes = field(repr=False)
    parts: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return self.codes.size


def quantize(values: RawTensor, bits: int, group: int = 256) -> Quantized:
    """Nearest codes (ties to even) under the least bf16 scale that reaches each group's largest value.

    No value moves by more than half its group's scale, which is at most 1.008 x the largest magnitude / 127 (or / 7),
    plus the rounding to the dtype. In a group that touches the end of the dtype's range the scale is the next lower,
    and the largest values move by up to a whole scale.

    Raises:
        UsageError: bits or group that do not exist.
        CodecError: values of a dtype that is no float, NaN or infinite.
    """
    groups = _grouped(values, bits, group)
    wanted = np.abs(groups).max(axis=1, initial=0).astype(np.float64) / _top(bits)
    scales = np.where(wanted > 0, _bf16_above(np.maximum(wanted, _SMALLEST[values.dtype])), 0).astype(np.uint16)
    scales -= _widen(scales).astype(np.float64) * _top(bits) > _LARGEST[values.dtype]
    return Quantized(bits, group, values.dtype, scales, _codes(groups, scales, bits).reshape(-1)[: values.size])


def dequantize(quantized: Quantized, dtype: str | None = None) -> RawTensor:
    """The values, shape (size,): exact fp32 products, then rounded to nearest even in ``dtype`` (its own if None).

    Raises:
        CodecError: a product that ``dtype`` cannot hold.
    """
    dtype = dtype or quantized.dtype
    scales = _widen(quantized.scales)
    values = quantized.codes.astype(np.float32)
    with np.errstate(over="ignore"):  # refused below
        if quantized.parts:
            values *= np.repeat(scales, _group_sizes(quantized.parts, quantized.group))
        else:
            full = quantized.size // quantized.group * quantized.group
            grid = values[:full].reshape(-1, quantized.group)
            np.multiply(grid, scales[: len(grid), None], out=grid)
            if full < quantized.size:
                values[full:] *= scales[-1]
    if values.size and max(values.max(), -values.min()) > _LARGEST[dtype]:
        raise CodecError("quantised values overflow", expected=f"at most {_LARGEST[dtype]:.6g} in {dtype}")
    return RawTensor.of_bits(dtype, values.shape, narrow(values, dtype))


def requantize(values: RawTensor, bits: int, group: int = 256) -> Quantized | None:
    """Codes that give exactly these bits again, or None where there are none.

    Whatever `dequantize` gave for a `quantize` of the same bits, group and dtype is found.
    """
    groups = _grouped(values, bits, group)
    if len(groups) > _PROBE and requantize(_first(values, _PROBE * group), bits, group) is None:
        return None
    wanted = narrow(groups.reshape(-1), values.dtype).reshape(groups.shape)
    scales, codes = np.zeros(len(groups), np.uint16), np.zeros(groups.shape, np.int8)
    left = np.flatnonzero(wanted.any(axis=1))
    for candidates in _candidate_scales(np.abs(groups).max(axis=1, initial=0), bits, values.dtype):
        if not left.size:
            break
        tried = _codes(groups[left], candidates[left], bits)
        with np.errstate(over="ignore"):  # infinite is not what is wanted
            products = tried * _widen(candidates[left])[:, None]
        good = (narrow(products.reshape(-1), values.dtype).reshape(products.shape) == wanted[left]).all(axis=1)
        scales[left[good]], codes[left[good]] = candidates[left[good]], tried[good]
        left = left[~good]
    return None if left.size else Quantized(bits, group, values.dtype, scales, codes.reshape(-1)[: values.size])


def join(found: Sequence[Quantized]) -> Quantized:
    """One after the other, each with groups of its own.

    Args:
        found: one or more of equal bits, group and dtype, none of them empty or joined.
    """
    first, sizes = found[0], tuple(one.size for one in found)
    assert all(
        (one.bits, one.group, one.dtype, one.parts) == (first.bits, first.group, first.dtype, ()) for one in found
    )
    if len(found) == 1:
        return first
    scales, codes = np.concatenate([one.scales for one in found]), np.concatenate([one.codes for one in found])
    return Quantized(first.bits, first.group, first.dtype, scales, codes, sizes)


def encode_quantized(quantized: Quantized) -> Encoded:
    """Scales in two byte planes, codes in one; `codecs.decode` gives the dequantised bytes.

    int4 codes take a byte each, too, before entropy coding: two in a byte save less than 1 % and read slower.
    """
    scales = quantized.scales
    planes = [(scales & 0xFF).astype(np.uint8), (scales >> 8).astype(np.uint8), quantized.codes.view(np.uint8)]
    lengths, stored = pack(planes)
    config: dict[str, Plain] = {"codec": f"int{quantized.bits}", "dtype": quantized.dtype, "group": quantized.group}
    if quantized.parts:
        config["parts"] = list(quantized.parts)
    return Encoded({**config, "planes": lengths}, stored)


def decode(config: Mapping[str, Plain], stored: Bytes, size: int) -> Bytes:
    check_fields(config, "dtype", "group", "planes", *(["parts"] if "parts" in config else []))
    dtype, group = config["dtype"], whole(config, "group", 1, _MAX_GROUP)
    if not isinstance(dtype, str) or dtype not in FLOATS:
        raise CodecError("dtype of quantised values", expected=f"one of {', '.join(FLOATS)}", got=ascii(dtype)[:40])
    bits = 8 if config["codec"] == "int8" else 4
    count = items(size, ITEMSIZE[dtype])
    parts = _parts(config["parts"], count) if "parts" in config else ()
    groups = sum(-(-part // group) for part in parts or [count])
    low, high, last = unpack(stored, plane_lengths(config, 3), [groups, groups, count], 4 * count + size)
    scales = (high.astype(np.uint16) << np.uint16(8)) | low
    if ((scales >= _BF16_INFINITY) | ((scales < _BF16_NORMAL) & (scales != 0))).any():
        raise CodecError("scales of quantised values", expected="0 or positive normal bf16 numbers")
    codes, top = last.view(np.int8), _top(bits)
    if codes.min(initial=0) < -top or codes.max(initial=0) > top:
        raise CodecError("codes of quantised values", expected=f"from {-top} to {top}")
    return dequantize(Quantized(bits, group, dtype, scales, codes, parts)).data


def measure(*pairs: tuple[RawTensor, RawTensor]) -> tuple[float, float]:
    """(largest distance that any value moved, root mean square of the moves over that of the originals).

    The second is 0 where nothing moved and infinite where only zeros did.

    Args:
        pairs: tensors before and after.
    """
    largest = norm = moved = 0.0
    for original, quantized in pairs:
        before, after = original.float32().astype(np.float64), quantized.float32().astype(np.float64)
        if before.shape != after.shape:
            raise UsageError("values to compare", expected=f"{before.size} values", got=after.size)
        moves = after - before
        norm, moved = norm + float(before @ before), moved + float(moves @ moves)
        largest = max(largest, float(np.abs(moves).max(initial=0)))
    return largest, math.sqrt(moved) / math.sqrt(norm) if norm else (math.inf if moved else 0.0)


def _top(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def _parts(found: Plain, count: int) -> tuple[int, ...]:
    sizes = [item for item in found if type(item) is int and 0 < item <= count] if isinstance(found, list) else []
    if not isinstance(found, list) or not 2 <= len(found) == len(sizes) or sum(sizes) != count:
        raise CodecError(
            "parts of quantised values", expected=f"two sizes or more, of sum {count}", got=ascii(found)[:40]
        )
    return tuple(sizes)


def _group_sizes(parts: Sequence[int], group: int) -> npt.NDArray[np.int64]:
    """Values of every group: all of one tensor's have ``group`` but the last, which has what is left."""
    sizes = np.array(parts, np.int64)
    counts = -(-sizes // group)
    found = np.full(int(counts.sum()), group, np.int64)
    found[np.cumsum(counts) - 1] = sizes - (counts - 1) * group
    return found


def _widen(scales: Scales) -> npt.NDArray[np.float32]:
    return (scales.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _bf16_above(values: npt.NDArray[np.float64]) -> Scales:
    """Bits of the least bf16 numbers that are no less than the positive ``values``."""
    near = values.astype(np.float32)
    near = np.where(near < values, np.nextafter(near, np.float32(np.inf)), near)
    return ((near.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)).astype(np.uint16)


def _grouped(values: RawTensor, bits: int, group: int) -> npt.NDArray[np.float32]:
    """fp32 of shape (groups, values of a group), the last group filled up with zeros."""
    if bits not in (8, 4) or not 1 <= group <= _MAX_GROUP:
        raise UsageError("quantisation", expected="8 or 4 bits and a group of 1 to 2^20", got=f"{bits} and {group}")
    if values.dtype not in FLOATS:
        raise CodecError("cannot quantise", expected=f"one of {', '.join(FLOATS)}", got=values.dtype)
    flat = values.float32()
    if not np.isfinite(flat).all():
        raise CodecError("cannot quantise NaN or infinite numbers", hint="the training diverged; do not publish it")
    width = min(group, max(flat.size, 1))
    return np.pad(flat, (0, -flat.size % width)).reshape(-1, width)


def _codes(groups: npt.NDArray[np.float32], scales: Scales, bits: int) -> Codes:
    """Nearest codes, int8 of the shape of ``groups``."""
    nearest = np.rint(groups / np.where(scales, _widen(scales), np.float32(1))[:, None])
    codes: Codes = np.clip(nearest, -_top(bits), _top(bits), out=nearest).astype(np.int8)
    return codes


def _candidate_scales(largest: npt.NDArray[np.float32], bits: int, dtype: str) -> Iterator[Scales]:
    """Scales of all groups that may have led to these largest magnitudes, the likely ones first.

    `quantize` gives the largest value the highest code, or the one below where the scale was rounded up; the value's
    rounding to ``dtype`` hides the scale's last steps. Only the least scale has lower codes.
    """
    found = largest.astype(np.float64)
    least = _bf16_above(np.array([_SMALLEST[dtype]]))
    for step in sorted(range(-_HIDDEN_STEPS[dtype], _HIDDEN_STEPS[dtype] + 1), key=abs):
        for top in (_top(bits), _top(bits) - 1):
            near = _bf16_above(np.maximum(found / top, _SMALLEST[dtype])).astype(np.int64)
            yield np.clip(near + step, least, _BF16_INFINITY - 1).astype(np.uint16)


def _first(values: RawTensor, count: int) -> RawTensor:
    return RawTensor(values.dtype, (count,), values.data[: count * ITEMSIZE[values.dtype]])

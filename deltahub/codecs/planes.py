"""Codec ``planes``: floats split into byte planes, of which mostly the exponents' plane is entropy-coded.

A float's exponent straddles two bytes, with the sign, which is random, on top. Turned left by one bit, an fp32 or bf16
number has its whole exponent in the highest byte and an fp16 number its exponent and 3 bits of mantissa; that plane
takes few bits in a trained tensor. Sign and mantissa are close to random and stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from deltahub.codecs.frames import Encoded, check_fields, items, pack, plane_lengths, unpack, whole
from deltahub.errors import CodecError
from deltahub.manifest import Plain
from deltahub.rawtensor import Bytes

_UINT: dict[int, type[np.unsignedinteger[Any]]] = {2: np.uint16, 4: np.uint32}
_CHUNK = 1 << 15  # items; a chunk and its scratch stay in the second-level cache


def encode(data: Bytes, itemsize: int) -> Encoded:
    """``data`` as items of ``itemsize`` (2 or 4) bytes, in planes from the lowest byte to the highest.

    Raises:
        CodecError: ``data`` ends within an item.
    """
    count = items(data.size, itemsize)
    words = np.ascontiguousarray(data).view(_UINT[itemsize])
    planes = np.empty((itemsize, count), np.uint8)
    turned, low = np.empty((2, min(count, _CHUNK)), words.dtype)
    for start in range(0, count, _CHUNK):
        part = words[start : start + _CHUNK]
        left, right = turned[: part.size], low[: part.size]
        np.left_shift(part, 1, out=left)
        np.right_shift(part, 8 * itemsize - 1, out=right)
        np.bitwise_or(left, right, out=left)
        split = left.view(np.uint8).reshape(-1, itemsize)
        for byte in range(itemsize):
            planes[byte, start : start + part.size] = split[:, byte]
    lengths, stored = pack(list(planes))
    return Encoded({"codec": "planes", "itemsize": itemsize, "planes": lengths}, stored)


def decode(config: Mapping[str, Plain], stored: Bytes, size: int) -> Bytes:
    check_fields(config, "itemsize", "planes")
    itemsize = whole(config, "itemsize", 2, 4)
    if itemsize not in _UINT:
        raise CodecError("itemsize of an encoded blob", expected="2 or 4", got=itemsize)
    count = items(size, itemsize)
    planes = unpack(stored, plane_lengths(config, itemsize), [count] * itemsize, size)
    words: npt.NDArray[Any] = np.empty(count, _UINT[itemsize])
    scratch = np.empty(min(count, _CHUNK), words.dtype)
    for start in range(0, count, _CHUNK):
        part = words[start : start + _CHUNK]
        high = scratch[: part.size]
        split = part.view(np.uint8).reshape(-1, itemsize)
        for byte, plane in enumerate(planes):
            split[:, byte] = plane[start : start + part.size]
        np.left_shift(part, 8 * itemsize - 1, out=high)
        np.right_shift(part, 1, out=part)
        np.bitwise_or(part, high, out=part)
    return words.view(np.uint8)

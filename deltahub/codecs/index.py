"""Codec ``gaps``: the positions of a mask, within about 1 % of what a random mask of that density must take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from deltahub.codecs.frames import Encoded, Source, check_fields, flat, pack, plane_lengths, unpack, whole
from deltahub.errors import CodecError
from deltahub.manifest import Plain
from deltahub.rawtensor import Bytes

Indices = npt.NDArray[np.int64]

_MAX_SHIFT = 8
_MAX_BYTES = 6
_MAX_SIZE = 1 << 62
_CHUNK = 1 << 17  # positions, a multiple of 8; what decoding needs beside planes and result stays this small


def encode_index(indices: Indices) -> Encoded:
    """Codes positions as gaps, the unused positions before each, in bit and byte planes.

    Gaps of a random mask are geometric, so their low bits are random. As many of them are split off as make the rest
    fit a byte nearly always: Huffman codes spend a whole bit on every item of a plane that is nearly always zero.

    Args:
        indices: int64 of shape (k,), strictly ascending from 0 or more, no gap of 2^48 or more.

    Raises:
        CodecError: other indices.
    """
    if indices.dtype != np.int64 or indices.ndim != 1:
        raise CodecError("indices", expected="int64 of one dimension", got=f"{indices.dtype} of shape {indices.shape}")
    gaps = _gaps(indices)
    return min((_encode(gaps, shift) for shift in range(_MAX_SHIFT + 1)), key=lambda encoded: len(encoded.stored))


def decode_index(config: Mapping[str, Plain], stored: Source, k: int, n: int) -> Indices:
    """The ``k`` positions below ``n`` that were encoded: int64, strictly ascending.

    Raises:
        CodecError: another codec, fields, lengths or frames that do not fit, or a position of ``n`` or more.
    """
    if config.get("codec") != "gaps":
        raise CodecError("codec of an index", expected="gaps", got=ascii(config.get("codec"))[:40])
    check_fields(config, "shift", "bytes", "planes")
    shift, width = whole(config, "shift", 0, _MAX_SHIFT), whole(config, "bytes", 1, _MAX_BYTES)
    if type(k) is not int or type(n) is not int or not 0 <= k <= n < _MAX_SIZE:
        raise CodecError("number of positions", expected="0 <= k <= n < 2^62", got=f"k = {k}, n = {n}")
    sizes = [-(-k // 8)] * shift + [k] * width
    planes = unpack(flat(stored), plane_lengths(config, shift + width), sizes, 8 * k)
    positions = np.empty(k, np.int64)
    last = -1
    for start in range(0, k, _CHUNK):
        gaps = _join(planes, shift, start, min(k, start + _CHUNK))
        gaps += 1
        # Gaps are below 2^56 and a chunk has 2^17 of them: halves cannot overflow, whole ones could.
        total = last + (int((gaps >> 32).sum()) << 32) + int((gaps & 0xFFFFFFFF).sum())
        if total >= n:
            raise CodecError("positions of an index", expected=f"all below {n}", got=f"{total} or more")
        gaps[0] += last
        np.cumsum(gaps, out=positions[start : start + len(gaps)])
        last = total
    return positions


def _gaps(indices: Indices) -> Indices:
    if indices.size and (indices[0] < 0 or (indices[1:] <= indices[:-1]).any()):
        raise CodecError("indices", expected="strictly ascending from 0 or more")
    gaps = np.diff(indices, prepend=-1) - 1
    if gaps.size and gaps.max() >> 8 * _MAX_BYTES:
        raise CodecError("indices", expected="gaps below 2^48", got=int(gaps.max()))
    return gaps


def _encode(gaps: Indices, shift: int) -> Encoded:
    high = gaps >> shift
    width = max(1, -(-int(high.max(initial=0)).bit_length() // 8))
    planes = [np.packbits(((gaps >> bit) & 1).astype(np.uint8), bitorder="little") for bit in range(shift)]
    planes += [((high >> 8 * byte) & 0xFF).astype(np.uint8) for byte in range(width)]
    lengths, stored = pack(planes)
    return Encoded({"codec": "gaps", "shift": shift, "bytes": width, "planes": lengths}, stored)


def _join(planes: list[Bytes], shift: int, start: int, end: int) -> Indices:
    """Gaps ``start`` (a multiple of 8) to ``end``."""
    gaps = np.zeros(end - start, np.int64)
    for bit, plane in enumerate(planes[:shift]):
        bits = np.unpackbits(plane[start // 8 :], count=end - start, bitorder="little")
        gaps |= bits.astype(np.int64) << bit
    for byte, plane in enumerate(planes[shift:]):
        gaps |= plane[start:end].astype(np.int64) << (shift + 8 * byte)
    return gaps

"""Bytes of tensors and masks to fewer bytes and back, without loss unless the caller quantises first.

`encode` picks a codec by dtype and `decode` finds it again by the recorded name; `index` holds the codec of masks,
`quantized` the lossy step. The layouts are in FORMAT.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from deltahub.codecs import plain, planes, quantized
from deltahub.codecs.frames import Encoded, Source, flat, items
from deltahub.errors import CodecError
from deltahub.manifest import Plain
from deltahub.rawtensor import FLOATS, ITEMSIZE, Bytes

__all__ = ["Encoded", "decode", "encode"]

_XOR = "planes-xor"
_XOR_GAIN = 0.98  # a blob that needs another one to be read must be worth it
_DECODERS: Mapping[str, Callable[[Mapping[str, Plain], Bytes, int], Bytes]] = {
    "raw": plain.decode_raw,
    "zstd": plain.decode_zstd,
    "planes": planes.decode,
    _XOR: planes.decode,
    "int8": quantized.decode,
    "int4": quantized.decode,
}


def encode(data: Source, dtype: str, reference: Source | None = None) -> Encoded:
    """The smallest of the codecs that suit ``dtype``, without loss.

    Args:
        data: little-endian items; any bits, NaN patterns too.
        dtype: safetensors name; F32, F16 and BF16 are split in planes, others are only compressed.
        reference: as many bytes that the reader will have too, such as the base's values at the same positions.
            Where many items equal theirs, the blob may become one that `decode` cannot read without it.

    Raises:
        CodecError: an unknown dtype, or sizes that do not fit it or each other.
    """
    if dtype not in ITEMSIZE:
        raise CodecError(f"cannot encode dtype {ascii(dtype)[:40]}", expected=f"one of {', '.join(ITEMSIZE)}")
    source = flat(data)
    items(source.size, ITEMSIZE[dtype])
    if dtype not in FLOATS:
        return plain.encode(source)
    best = planes.encode(source, ITEMSIZE[dtype])
    if reference is not None:
        moved = planes.encode(_xor(source, flat(reference)), ITEMSIZE[dtype])
        if len(moved.stored) < _XOR_GAIN * len(best.stored):
            best = Encoded({**moved.config, "codec": _XOR}, moved.stored)
    return best if len(best.stored) < source.size else plain.encode_raw(source)


def decode(config: Mapping[str, Plain], stored: Source, size: int, reference: Source | None = None) -> Bytes:
    """The ``size`` bytes that were encoded; memory stays within a small multiple of ``size`` and ``len(stored)``.

    Args:
        config: as recorded by `encode` or `quantized.encode_quantized`; not trusted.
        stored: as encoded; not trusted.
        size: bytes that must come out. It is checked against what ``stored`` can hold before memory is taken.
        reference: what was given to `encode`; used by ``planes-xor`` only.

    Returns:
        uint8 array of shape (size,); it may be a read-only view of ``stored``.

    Raises:
        CodecError: an unknown codec, fields that are missing or not known, a size, length or frame that does not fit.
    """
    name = config.get("codec")
    if not isinstance(name, str) or name not in _DECODERS:
        raise CodecError(
            f"unknown codec {ascii(name)[:40]}",
            expected=f"one of {', '.join(_DECODERS)}",
            hint="a newer deltahub may have made it: upgrade",
        )
    if type(size) is not int or not 0 <= size < 1 << 62:
        raise CodecError("size of an encoded blob", expected="a number of bytes", got=ascii(size)[:40])
    if name == _XOR and (reference is None or flat(reference).size != size):
        raise CodecError(
            f"codec {_XOR} needs the bytes that it was encoded against",
            expected=f"{size} bytes of reference",
            got="none" if reference is None else flat(reference).size,
        )
    data = _DECODERS[name](config, flat(stored), size)
    return _xor(data, flat(reference)) if name == _XOR and reference is not None else data


def _xor(data: Bytes, reference: Bytes) -> Bytes:
    if data.size != reference.size:
        raise CodecError("reference of the wrong size", expected=f"{data.size} bytes", got=reference.size)
    return np.bitwise_xor(data, reference)

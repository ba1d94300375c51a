"""A301 to A399: encoded blobs that lie about what they hold, in a hub whose records are sealed for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard

from deltahub import codecs, keys, tensorfile
from deltahub.codecs.index import decode_index, encode_index
from deltahub.errors import CodecError, FormatError, IntegrityError
from tests.attacks.attack import MIB, RECORD, REFERENCE, Attack, Place, material, values_of

Run = Callable[[Place], object]
_K = 745  # values of the delta, in F32


def _frame(size: int) -> bytes:
    """A true frame of so many zeros, 1 byte for 32 KiB."""
    chunk = bytes(min(size, 1 << 24))
    packer = zstandard.ZstdCompressor(level=1).compressobj(size=size)
    return b"".join([packer.compress(chunk) for _ in range(size // len(chunk))] + [packer.flush()])


def _claim(size: int) -> bytes:
    """A header of 16 bytes that claims ``size`` bytes, and one empty last block."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\0\0"


def _blob(stored: Callable[[], bytes], config: dict[str, Any]) -> Run:
    """The values of sst2@1 in another blob, under the size that they have."""
    return lambda place: place.section(stored(), config=config).pull(REFERENCE)


def _large(shape: list[int], stored: Callable[[], bytes], config: dict[str, Any]) -> Run:
    """The record says that the delta is large, and all its sizes agree."""

    def run(place: Place) -> None:
        size = 4 * math.prod(shape)

        def change(document: dict[str, Any]) -> None:
            shapes = {name: (s["dtype"], tuple(of)) for s in document["sections"] for name, of in s["tensors"]}
            head = tensorfile.header(shapes, {"deltahub": document["manifest"]})
            document["size"] = len(head) + sum(section["size"] for section in document["sections"])

        place.section(stored(), config=config, tensors=[["values", shape]], size=size)
        place.reseal(RECORD, change).pull(REFERENCE)

    return run


def _decode(config: dict[str, Any], stored: Callable[[], bytes], size: int) -> Run:
    return lambda _: codecs.decode(config, stored(), size)


def _index(config: dict[str, Any], stored: Callable[[], bytes], k: int, n: int) -> Run:
    return lambda _: decode_index(config, stored(), k, n)


def _gaps(*gaps: int) -> bytes:
    """Gaps of 6 bytes each, in byte planes."""
    return b"".join(bytes((gap >> 8 * byte) & 0xFF for gap in gaps) for byte in range(6))


_WIDE = {"codec": "gaps", "shift": 0, "bytes": 6}


def _same_size(place: Place) -> None:
    """As many bytes, of which one is another: what most peers take."""
    hub = place.hub()
    key = max((entry for entry in hub.store.list("blobs")), key=lambda entry: entry.size).key
    data = bytearray(hub.store.get(key))
    data[len(data) // 2] ^= 1
    place.write(f"hub/{key}", bytes(data))
    hub.pull(REFERENCE)
    hub.mask(keys.digest_of(material().mask_key))


def _swapped(place: Place) -> None:
    """The blob of another delta of the same shape, well described and well sealed."""
    other = codecs.encode(np.arange(_K, dtype=np.float32), "F32")
    place.section(other.stored, config=other.config).pull(REFERENCE)


def _mask_blob(place: Place) -> None:
    """Other positions under the mask's own digest."""
    stored, key = encode_index(np.arange(_K, dtype=np.int64)), material().mask_key
    place.section(stored.stored)  # only to put the blob
    name = next(e.key for e in place.hub().store.list("blobs") if e.size == len(stored.stored)).rpartition("/")[2]
    described = {"blob": name, "stored": len(stored.stored), "config": stored.config}
    hub = place.reseal(key, lambda document: document["data"].update(described))
    hub.mask(keys.digest_of(key))


ATTACKS = [
    Attack(301, "one byte of a blob changed, its size as it was", _same_size, IntegrityError),
    Attack(302, "another delta's values in a sealed record", _swapped, IntegrityError),
    Attack(303, "other positions in a sealed mask", _mask_blob, IntegrityError),
    Attack(304, "a codec that there is not", _blob(lambda: b"x", {"codec": "pickle"}), FormatError),
    Attack(305, "a codec that is a list", _blob(lambda: b"x", {"codec": ["raw"]}), FormatError),
    Attack(306, "a codec with a field more", _blob(lambda: b"x", {"codec": "raw", "path": "/etc/passwd"}), FormatError),
    Attack(307, "a bomb: 32 KiB of zstd that are 1 GiB", _blob(lambda: _frame(1 << 30), {"codec": "zstd"}),
           FormatError),
    Attack(308, "a bomb in each plane",
           _blob(lambda: _frame(1 << 26) * 4, {"codec": "planes", "itemsize": 4, "planes": [len(_frame(1 << 26))] * 4}),
           FormatError),
    Attack(309, "16 bytes of zstd that claim a terabyte",
           _large([1 << 38], lambda: _claim(1 << 40), {"codec": "zstd"}), FormatError),
    Attack(310, "a frame that wants a window of 2 GiB",
           _decode({"codec": "zstd"}, lambda: b"\x28\xb5\x2f\xfd\x40\xa8" + bytes(2) + b"\x01\0\0", 256), CodecError),
    Attack(311, "a frame with a dictionary",
           _decode({"codec": "zstd"}, lambda: b"\x28\xb5\x2f\xfd\x61\x07" + bytes(2) + b"\x01\0\0", 256), CodecError),
    Attack(312, "a frame behind the frame", _decode({"codec": "zstd"}, lambda: _frame(4096) * 2, 4096), CodecError),
    Attack(313, "a skippable frame", _decode({"codec": "zstd"}, lambda: b"\x50\x2a\x4d\x18\4\0\0\0skip", 4),
           CodecError),
    Attack(314, "a decoded size of 2^62", _decode({"codec": "zstd"}, lambda: _claim((1 << 62) - 1), (1 << 62) - 1),
           CodecError),
    Attack(315, "a decoded size of 2^63", _decode({"codec": "raw"}, lambda: b"", 1 << 63), CodecError),
    Attack(316, "a negative decoded size", _decode({"codec": "raw"}, lambda: b"", -1), CodecError),
    Attack(317, "planes of negative lengths",
           _decode({"codec": "planes", "itemsize": 2, "planes": [-4, 8]}, lambda: b"four", 4), CodecError),
    Attack(318, "planes whose sum overflows 64 bits",
           _decode({"codec": "planes", "itemsize": 2, "planes": [1 << 63, 1 << 63]}, lambda: b"", 4), CodecError),
    Attack(319, "a million planes",
           _decode({"codec": "planes", "itemsize": 2, "planes": [0] * 10**6}, lambda: b"", 4), CodecError),
    Attack(320, "items of 3 bytes", _decode({"codec": "planes", "itemsize": 3, "planes": [1, 1, 1]}, lambda: b"abc", 3),
           CodecError),
    Attack(321, "groups of no values",
           _decode({"codec": "int8", "dtype": "F32", "group": 0, "planes": [1, 1, 1]}, lambda: b"abc", 4), CodecError),
    Attack(322, "a scale NaN",
           _decode({"codec": "int8", "dtype": "F32", "group": 1, "planes": [1, 1, 1]}, lambda: b"\xc0\x7f\1", 4),
           CodecError),
    Attack(323, "a negative scale",
           _decode({"codec": "int8", "dtype": "F32", "group": 1, "planes": [1, 1, 1]}, lambda: b"\x80\xbf\1", 4),
           CodecError),
    Attack(324, "values that overflow their dtype",
           _decode({"codec": "int8", "dtype": "F16", "group": 1, "planes": [1, 1, 1]}, lambda: b"\x7f\x7f\x7f", 2),
           CodecError),
    Attack(325, "parts that are larger than the whole",
           _decode({"codec": "int8", "dtype": "F32", "group": 1, "parts": [1 << 62, 1], "planes": [0, 0, 0]},
                   lambda: b"", 4), CodecError),
    Attack(326, "a difference to bytes that are not there",
           _blob(lambda: b"x" * 4 * _K, {"codec": "planes-xor", "itemsize": 4, "planes": [_K] * 4}), FormatError),
    Attack(327, "a blob of a terabyte for a few values",
           lambda place: place.reseal(RECORD, lambda found: values_of(found).update(stored=1 << 40)).pull(REFERENCE),
           CodecError),
    Attack(331, "positions outside the base",
           _index({**_WIDE, "planes": [2] * 6}, lambda: _gaps(0, 1 << 40), 2, 1000), CodecError),
    Attack(332, "positions whose sum overflows 64 bits",
           lambda _: decode_index({**_WIDE, "planes": [1 << 17] * 6}, b"\xff" * (6 << 17), 1 << 17, (1 << 62) - 1),
           CodecError),
    Attack(333, "16 bytes that claim 2^40 positions",
           _index({"codec": "gaps", "shift": 0, "bytes": 1, "planes": [16]}, lambda: _claim(1 << 40), 1 << 40, 1 << 41),
           CodecError),
    Attack(334, "true frames of more positions than there is memory",
           lambda _: _many(1 << 36), CodecError),
    Attack(335, "more positions than parameters", _index({**_WIDE, "planes": [1] * 6}, lambda: _gaps(0), 1, 0),
           CodecError),
    Attack(336, "a shift of 2^31", _index({**_WIDE, "shift": 1 << 31, "planes": []}, lambda: b"", 0, 1), CodecError),
    Attack(337, "a hundred bytes that hold 1,000,000 neighbouring positions", lambda _: _neighbours(1_000_000),
           harmless="decoded: 8 bytes of memory a position, no more than the base has parameters"),
]  # fmt: skip


def _many(k: int) -> None:
    """Blocks of one repeated byte, as a compressor writes them: 4 bytes for 128 KiB, 2 MiB for 64 GiB."""
    block = (1 << 17 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (1 << 17 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    frame = _claim(k)[:13] + block * ((k >> 17) - 1) + last
    decode_index({"codec": "gaps", "shift": 0, "bytes": 1, "planes": [len(frame)]}, frame, k, k)


def _neighbours(k: int) -> None:
    encoded = encode_index(np.arange(k, dtype=np.int64))
    assert len(encoded.stored) < 200 < MIB
    assert decode_index(encoded.config, encoded.stored, k, k)[-1] == k - 1

"""The container that all codecs share: byte planes one after another, each as it is or as one zstd frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from deltahub import memory
from deltahub.digest import BytesLike
from deltahub.errors import CodecError
from deltahub.manifest import Plain
from deltahub.rawtensor import Bytes

Source = BytesLike | npt.NDArray[Any]
"""What may be encoded or decoded: any contiguous buffer, read as bytes."""

_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_RATIO = 1 << 15
"""No zstd frame holds more: the smallest block is 4 bytes and yields at most 128 KiB."""
_ENTROPY_CODER = zstandard.ZstdCompressionParameters(
    # Planes have no repeats worth finding, only skewed byte counts. Matches of 7 bytes and more through a table of 64
    # entries leave the plane to the Huffman coder; level 3 gets in its way (20 % larger, several times slower).
    strategy=zstandard.STRATEGY_FAST,
    min_match=7,
    window_log=17,
    hash_log=6,
)


@dataclass(frozen=True)
class Encoded:
    """Bytes as they are stored, and what it takes to decode them.

    Attributes:
        config: plain JSON object, ``{"codec": name, ...}``; to be recorded beside the stored bytes.
        stored: the encoded bytes.
    """

    config: dict[str, Plain]
    stored: bytes = field(repr=False)


def flat(data: Source) -> Bytes:
    """The bytes of ``data``, not copied."""
    size = data.nbytes if isinstance(data, memoryview | np.ndarray) else len(data)
    return np.frombuffer(data, np.uint8) if size else np.empty(0, np.uint8)


def deflate(plane: Bytes) -> bytes:
    """One zstd frame with its content size, good for planes of skewed bytes."""
    return zstandard.ZstdCompressor(compression_params=_ENTROPY_CODER).compress(plane.data)


def inflate(frame: Bytes, size: int) -> Bytes:
    """The ``size`` bytes of one zstd frame.

    Raises:
        CodecError: anything but one whole frame of that size, or a frame that wants more memory than its content.
    """
    check_frame(frame, size)
    memory.check(size, "an encoded blob")
    try:
        data = zstandard.ZstdDecompressor().decompress(frame.data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _damaged(str(error)) from None
    if len(data) != size:
        raise _damaged(f"{len(data)} bytes")
    return flat(data)


def check_frame(frame: Bytes, size: int) -> None:
    """Raises CodecError unless the frame's header allows for ``size`` bytes; takes no memory."""
    if frame[:4].tobytes() != _MAGIC:  # a skippable frame or another format
        raise _damaged("bytes that are no zstd frame")
    try:
        header = zstandard.get_frame_parameters(frame.data)
    except zstandard.ZstdError as error:
        raise _damaged(str(error)) from None
    if header.content_size != size:
        raise CodecError("a zstd frame's content size", expected=size, got=header.content_size)
    if size > frame.size * _MAX_RATIO:
        raise _damaged(f"{frame.size} bytes that claim to hold {size}")
    if header.window_size > size or header.dict_id:
        raise _damaged(f"a window of {header.window_size} bytes and dictionary {header.dict_id}")


def pack(planes: Sequence[Bytes]) -> tuple[list[Plain], bytes]:
    """The stored length of every plane, and all of them joined; a plane stays as it is where zstd does not help."""
    parts: list[bytes | memoryview] = []
    for plane in planes:
        frame = deflate(plane) if plane.size else b""
        parts.append(frame if len(frame) < plane.size else plane.data)
    return [len(part) for part in parts], b"".join(parts)


def unpack(stored: Bytes, lengths: Sequence[int], sizes: Sequence[int], beside: int) -> list[Bytes]:
    """Planes of the given ``sizes``, stored in ``lengths`` bytes each; raw ones are views of ``stored``.

    Every header is checked before the first plane takes memory.

    Args:
        beside: bytes that the caller will take for what it makes of the planes.

    Raises:
        CodecError: lengths that do not fit ``stored`` or ``sizes``, a damaged frame, or more than there is memory.
    """
    if sum(lengths) != stored.size:
        raise CodecError("encoded bytes of the wrong length", expected=sum(lengths), got=stored.size)
    parts = [stored[end - length : end] for length, end in zip(lengths, accumulate(lengths), strict=True)]
    for part, size in zip(parts, sizes, strict=True):
        if part.size > size:
            raise CodecError("a plane is longer than what it holds", expected=f"at most {size} bytes", got=part.size)
        if part.size < size:
            check_frame(part, size)
    memory.check(sum(sizes) + beside, "an encoded blob")
    return [part if part.size == size else inflate(part, size) for part, size in zip(parts, sizes, strict=True)]


def check_fields(config: Mapping[str, Plain], *names: str) -> None:
    """Raises CodecError unless ``config`` has exactly the field ``codec`` and these ``names``."""
    if set(config) != {"codec", *names}:
        raise CodecError(
            f"fields of codec {ascii(config.get('codec'))[:40]}",
            expected=", ".join(names) or "none",
            got=ascii(sorted(set(config) - {"codec"}))[:120],
        )


def whole(config: Mapping[str, Plain], name: str, low: int, high: int) -> int:
    """The field ``name``, a whole number from ``low`` to ``high``."""
    value = config[name]
    if type(value) is not int or not low <= value <= high:
        raise CodecError(f"{name} of an encoded blob", expected=f"from {low} to {high}", got=ascii(value)[:40])
    return value


def plane_lengths(config: Mapping[str, Plain], count: int) -> list[int]:
    """The field ``planes``: ``count`` stored lengths in bytes."""
    found = config["planes"]
    if not isinstance(found, list) or len(found) != count:
        raise CodecError("planes of an encoded blob", expected=f"{count} lengths", got=ascii(found)[:60])
    lengths = [item for item in found if type(item) is int and 0 <= item < 1 << 62]
    if len(lengths) != count:
        raise CodecError("planes of an encoded blob", expected="lengths in bytes", got=ascii(found)[:60])
    return lengths


def items(size: int, itemsize: int) -> int:
    """How many items of ``itemsize`` bytes make ``size`` bytes; CodecError unless that is a whole number."""
    if size % itemsize:
        raise CodecError("a size that ends within an item", expected=f"a multiple of {itemsize}", got=size)
    return size // itemsize


def _damaged(found: str) -> CodecError:
    return CodecError(
        "an encoded blob is damaged",
        expected="one whole zstd frame of the recorded size",
        got=found,
        hint="fetch it again from where it came",
    )

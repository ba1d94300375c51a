"""The safetensors container, read without trust and written to the byte.

`safetensors` itself opens every file written here. We keep a reader and writer of our own because a version's digest is
taken over file bytes, which must not change with a library's release, and because 16-bit floats must pass through
unchanged where neither torch nor numpy has to be told what they mean.
"""

from __future__ import annotations

import json
import math
import os
import stat
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltahub import memory
from deltahub.errors import FormatError
from deltahub.rawtensor import ITEMSIZE, Bytes, RawTensor

_MAX_HEADER = 100 << 20  # the limit of the safetensors library
_MAX_CONTAINERS = 1 << 21
"""Objects and lists of one JSON text: an empty one takes 64 bytes of memory for 3 bytes of text."""
_MAX_DIGITS = 40  # of a whole number: every one fits a float, and so does the 10^30 that configs write for "no limit"


@dataclass(frozen=True)
class TensorSpec:
    """Where a tensor lies: byte range ``[start, end)`` counted from the start of its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def strict_json(text: str | bytes, what: str) -> Any:
    """JSON in UTF-8 without duplicate keys, NaN, infinite or huge numbers, lone surrogates or deep nesting.

    Raises:
        FormatError: for anything else than one plain JSON value.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in items:
            if name in found:
                raise FormatError(f"{what} has the key {name[:80]!r} twice")
            found[name] = value
        return found

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise FormatError(f"{what} holds {number[:40]}", expected="finite numbers")
        return value

    def whole(number: str) -> int:
        if len(number) > _MAX_DIGITS:
            raise FormatError(f"{what} holds a number of {len(number)} digits", expected=f"at most {_MAX_DIGITS}")
        return int(number)

    try:
        text = text if isinstance(text, str) else text.decode()
        if text.count("{") + text.count("[") > _MAX_CONTAINERS:
            raise FormatError(f"{what} holds too much", expected=f"at most {_MAX_CONTAINERS:,} objects and lists")
        found = json.loads(text, object_pairs_hook=pairs, parse_float=finite, parse_int=whole, parse_constant=finite)
        # Half a surrogate pair reads as a string that no file, no terminal and no digest can take.
        (json.dumps(found, ensure_ascii=False) if "\\u" in text else text).encode()
        return found
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON ({str(error)[:100]})") from None


def parse_header(head: bytes, file_size: int, what: str) -> tuple[dict[str, TensorSpec], dict[str, str]]:
    """Specs by name, in the order of their bytes, and the metadata.

    Args:
        head: the file's first 8 bytes and the header that they announce.
        file_size: size of the whole file in bytes; the tensors must fill it exactly.

    Raises:
        FormatError: sizes, shapes, dtypes or ranges that do not fit each other or the file.
    """
    data_start = len(head)
    table = strict_json(head[8:], f"the header of {what}")
    if not isinstance(table, dict):
        raise FormatError(f"the header of {what}", expected="a JSON object", got=type(table).__name__)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"the metadata of {what}", expected="an object of strings")
    specs = [_spec(name, entry, data_start, what) for name, entry in table.items()]
    specs.sort(key=lambda spec: (spec.start, spec.end))
    position = data_start
    for spec in specs:
        if spec.start != position:
            raise FormatError(
                f"tensor {spec.name[:80]!r} of {what}", expected=f"byte {position}", got=f"byte {spec.start}"
            )
        position = spec.end
    if position != file_size:
        raise FormatError(
            f"{what} has the wrong length",
            expected=f"{position} bytes",
            got=f"{file_size} bytes",
            hint="it was cut off or written over; fetch it again",
        )
    return {spec.name: spec for spec in specs}, metadata


def _spec(name: str, entry: object, data_start: int, what: str) -> TensorSpec:
    where = f"tensor {name[:80]!r} of {what}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(where, expected="exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise FormatError(where, expected="a known dtype", got=str(dtype)[:40])
    if not _sizes(shape) or len(shape) > 16 or not _sizes(offsets) or len(offsets) != 2:
        raise FormatError(where, expected="sizes and offsets from 0 to 2^62")
    if math.prod(shape) * ITEMSIZE[dtype] != offsets[1] - offsets[0]:
        raise FormatError(where, expected=f"{math.prod(shape) * ITEMSIZE[dtype]} bytes", got=offsets[1] - offsets[0])
    return TensorSpec(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _sizes(found: object) -> bool:
    return isinstance(found, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in found)


def header_length(first: bytes, file_size: int, what: str) -> int:
    """Bytes up to the first tensor, from the first 8 bytes of the file."""
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or length < 2 or length > min(_MAX_HEADER, file_size - 8):
        raise FormatError(f"{what} is not a safetensors file", hint="it is empty, cut off or of another format")
    return 8 + length


def open_regular(path: Path) -> int:
    """A descriptor to read ``path`` by; never waits for a pipe.

    Raises:
        FormatError: there is none, or it is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise FormatError(f"cannot open {ascii(str(path))[:200]} ({getattr(error, 'strerror', error)})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FormatError(f"{path} is not a regular file")
    return descriptor


def read_json(path: Path) -> Any:
    """The JSON document in a file that others wrote; see `strict_json`.

    Raises:
        FormatError: it cannot be read, is larger than _MAX_HEADER, or no regular file.
    """
    with open(open_regular(path), "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > _MAX_HEADER:
            raise FormatError(f"{path}", expected=f"at most {_MAX_HEADER:,} bytes of JSON", got=f"{size:,}")
        return strict_json(file.read(_MAX_HEADER), str(path))


class TensorFile:
    """A safetensors file on disk; nothing but its header is read until asked for. Closed when dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = open_regular(path)
        weakref.finalize(self, os.close, self._descriptor)
        self.byte_size = os.fstat(self._descriptor).st_size
        length = header_length(self._read(0, min(8, self.byte_size)), self.byte_size, path.name)
        self.specs, self.metadata = parse_header(self._read(0, length), self.byte_size, path.name)

    def read(self, name: str) -> RawTensor:
        spec = self.specs[name]
        memory.check(spec.end - spec.start, f"tensor {name[:80]!r} of {self.path.name}")
        data: Bytes = np.empty(spec.end - spec.start, np.uint8)
        self.read_into(spec.start, data.data)
        return RawTensor(spec.dtype, spec.shape, data)

    def read_into(self, position: int, buffer: memoryview) -> None:
        """Fills ``buffer`` from the byte ``position`` on. Safe to call from several threads."""
        done = 0
        while done < len(buffer):
            got = os.preadv(self._descriptor, [buffer[done:]], position + done)
            if not got:
                raise FormatError(f"{self.path} ended early", hint="it was cut off while being read; fetch it again")
            done += got

    def stat(self) -> os.stat_result:
        """Of the file that is open, whatever its name leads to by now."""
        return os.fstat(self._descriptor)

    def read_all(self) -> memoryview:
        memory.check(self.byte_size, self.path.name)
        data = bytearray(self.byte_size)
        self.read_into(0, memoryview(data))
        return memoryview(data).toreadonly()

    def _read(self, position: int, size: int) -> bytes:
        data = bytearray(size)
        self.read_into(position, memoryview(data))
        return bytes(data)


def read_whole(path: Path) -> memoryview:
    """All bytes of a safetensors file, after its header was found to fit its size.

    Raises:
        FormatError: it does not, or the file cannot be read.
    """
    return TensorFile(path).read_all()


def loads(data: bytes | memoryview, what: str) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """Tensors (read-only views of ``data``) and metadata of a whole safetensors file in memory."""
    view = memoryview(data)
    length = header_length(bytes(view[:8]), len(view), what)
    specs, metadata = parse_header(bytes(view[:length]), len(view), what)
    flat = np.frombuffer(view, np.uint8)
    return {name: RawTensor(s.dtype, s.shape, flat[s.start : s.end]) for name, s in specs.items()}, metadata


def canonical_order(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[str]:
    """Names by descending item size, then ascending: every tensor is aligned, and one set of tensors has one order."""
    return sorted(tensors, key=lambda name: (-ITEMSIZE[tensors[name][0]], name))


def header(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Length and header, canonical to the byte, for tensors of the given (dtype, shape)."""
    table: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name in canonical_order(tensors):
        dtype, shape = tensors[name]
        end = position + math.prod(shape) * ITEMSIZE[dtype]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def dump(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The parts of a canonical safetensors file, in order, none of them copied."""
    shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    yield header(shapes, metadata)
    for name in canonical_order(shapes):
        yield tensors[name].data.data


def dumps(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> bytes:
    return b"".join(dump(tensors, metadata))

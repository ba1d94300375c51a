"""The safetensors container, read without trust and written to the byte.

`safetensors` itself opens every file written here. We keep a reader and writer of our own because a version's digest is
taken over file bytes, which must not change with a library's release, and because 16-bit floats must pass through
unchanged where neither torch nor numpy has to be told what they mean.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deltahub.errors import FormatError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Bytes = npt.NDArray[np.uint8]

ITEMSIZE = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip
FLOATS = ("F32", "F16", "BF16")
"""The dtypes that a parameter may have, all embedded exactly in fp32."""
_TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_MAX_HEADER = 100 << 20  # the limit of the safetensors library
_UINT = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class RawTensor:
    """A tensor as its little-endian bytes.

    Attributes:
        dtype: safetensors name, such as ``"BF16"``.
        shape: sizes, row-major.
        data: flat ``uint8`` array of ``prod(shape) * itemsize`` bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Bytes = field(repr=False)

    def __post_init__(self) -> None:
        assert self.data.dtype == np.uint8
        assert self.data.ndim == 1
        assert self.data.size == self.size * ITEMSIZE[self.dtype]

    def __eq__(self, other: object) -> bool:
        """Equal in dtype, shape and every bit (NaN equals itself, -0 is not 0)."""
        return (
            isinstance(other, RawTensor)
            and (self.dtype, self.shape) == (other.dtype, other.shape)
            and bool(np.array_equal(self.data, other.data))
        )

    __hash__ = None  # type: ignore[assignment]  # holds a mutable array

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bits(self) -> npt.NDArray[Any]:
        """Flat view as unsigned integers of the item's width."""
        return self.data.view(_UINT[ITEMSIZE[self.dtype]])

    def float32(self) -> npt.NDArray[np.float32]:
        """Flat fp32 copy or view; exact for every dtype in FLOATS."""
        if self.dtype == "F32":
            return self.data.view(np.float32)
        if self.dtype == "F16":
            return self.data.view(np.float16).astype(np.float32)
        if self.dtype == "BF16":
            return (self.bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
        raise FormatError(f"tensor of dtype {self.dtype}", expected=f"one of {', '.join(FLOATS)}")

    def copy(self) -> RawTensor:
        """The same in memory of its own."""
        return RawTensor(self.dtype, self.shape, self.data.copy())

    def torch(self) -> Tensor:
        """A CPU tensor over the same memory where that is writable, else over a copy."""
        import torch

        dtype = torch_dtype(self.dtype)
        data = self.data if self.data.flags.writeable else self.data.copy()
        if not self.size:
            return torch.empty(self.shape, dtype=dtype)
        return torch.from_numpy(data).view(dtype).reshape(self.shape)

    @staticmethod
    def of_bits(dtype: str, shape: tuple[int, ...], bits: npt.NDArray[Any]) -> RawTensor:
        return RawTensor(dtype, shape, np.ascontiguousarray(bits).reshape(-1).view(np.uint8))

    @staticmethod
    def of_torch(tensor: Tensor) -> RawTensor:
        """A view of the tensor's memory where it is contiguous and on the CPU, else of a copy."""
        import torch

        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return RawTensor(dtype_name(tensor.dtype), tuple(tensor.shape), flat.view(torch.uint8).numpy())


def torch_dtype(name: str) -> torch.dtype:
    import torch

    if name not in _TORCH:
        raise FormatError(f"dtype {name}", expected=f"one of {', '.join(_TORCH)}")
    dtype: torch.dtype = getattr(torch, _TORCH[name])
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    for name, attribute in _TORCH.items():
        if str(dtype) == f"torch.{attribute}":
            return name
    raise FormatError(f"dtype {dtype}", expected=f"one of {', '.join(_TORCH.values())}")


def narrow(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """Bits of ``values`` rounded to nearest, ties to even, in ``dtype`` (one of FLOATS)."""
    if dtype == "F32":
        return values.view(np.uint32)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


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
    """JSON without duplicate keys, NaN or deep nesting.

    Raises:
        FormatError: for anything else than one plain JSON value.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise FormatError(f"{what} has the key {twice[:80]!r} twice")
        return found

    def constant(name: str) -> Any:
        raise FormatError(f"{what} holds {name}", expected="finite numbers")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
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
            raise FormatError(f"tensor {spec.name!r} of {what}", expected=f"byte {position}", got=f"byte {spec.start}")
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


class TensorFile:
    """A safetensors file on disk; nothing but its header is read until asked for. Closed when dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise FormatError(f"cannot open {path} ({error.strerror})") from None
        weakref.finalize(self, os.close, self._descriptor)
        self.byte_size = os.fstat(self._descriptor).st_size
        length = header_length(self._read(0, min(8, self.byte_size)), self.byte_size, path.name)
        self.specs, self.metadata = parse_header(self._read(0, length), self.byte_size, path.name)

    def read(self, name: str) -> RawTensor:
        spec = self.specs[name]
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

    def _read(self, position: int, size: int) -> bytes:
        data = bytearray(size)
        self.read_into(position, memoryview(data))
        return bytes(data)


def loads(data: bytes | mmap.mmap | memoryview, what: str) -> tuple[dict[str, RawTensor], dict[str, str]]:
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


def names_like(pattern: str, names: Sequence[str]) -> list[str]:
    """Names that match a shell glob, case-sensitively."""
    from fnmatch import fnmatchcase

    return [name for name in names if fnmatchcase(name, pattern)]

"""Tensors as their bytes: dtypes by name, exact widening to fp32, correct rounding back; no torch until asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
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

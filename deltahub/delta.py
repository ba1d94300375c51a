"""One fine-tuned task as a file: values aligned to a mask, whole small tensors, adapter factors, a head, a manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deltahub import digest, tensorfile
from deltahub.errors import FormatError, MismatchError
from deltahub.files import write_atomic
from deltahub.manifest import BaseRef, Manifest
from deltahub.rawtensor import FLOATS, RawTensor

if TYPE_CHECKING:
    import torch

GROUPS = ("values", "dense", "adapter", "head")
_KEY = "deltahub"  # the one metadata entry: a second one would have no canonical order in other writers
_CHUNK = 1 << 16  # items looked at together: they and what is computed of them stay in the cache
_INFINITY = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}


@dataclass(frozen=True)
class Delta:
    """One task.

    Attributes:
        manifest: what it is, of which base and mask.
        tensors: raw tensors by name: ``values``, ``dense.<base tensor>``, ``adapter.<base tensor>.<part>``,
            ``head.<state-dict name>``.

    Raises:
        FormatError: names, sizes or dtypes that do not fit the manifest, or NaN and infinite numbers.
    """

    manifest: Manifest
    tensors: Mapping[str, RawTensor] = field(repr=False)

    def __post_init__(self) -> None:
        mask = self.manifest.mask
        values = self.tensors.get("values")
        if (mask is None) != (values is None):
            raise FormatError(
                f"delta {self.task}", expected="values and a mask, or neither",
                got="values without a mask" if mask is None else "a mask without values",
            )  # fmt: skip
        if mask and values and values.shape != (mask.k,):
            raise FormatError(f"values of {self.task}", expected=f"shape ({mask.k},)", got=values.shape)
        for name, tensor in self.tensors.items():
            group, _, rest = name.partition(".")
            if group not in GROUPS or (group == "values") != (rest == ""):
                raise FormatError(f"tensor {name[:80]!r}", expected="values, dense.*, adapter.* or head.*")
            _check_finite(name, tensor)

    @property
    def task(self) -> str:
        return self.manifest.task

    @cached_property
    def values(self) -> torch.Tensor | None:
        """The k replaced parameters, in ascending canonical position; None without a mask."""
        raw = self.tensors.get("values")
        return None if raw is None else raw.torch()

    @cached_property
    def dense(self) -> dict[str, torch.Tensor]:
        """Whole replaced tensors, by base tensor name."""
        return self._torch("dense.")

    @cached_property
    def adapter(self) -> dict[str, torch.Tensor]:
        """Low-rank factors ``<base tensor>.up`` (out x r) and ``<base tensor>.down`` (r x in)."""
        return self._torch("adapter.")

    @cached_property
    def head(self) -> dict[str, torch.Tensor]:
        """Parameters that the base lacks, by their name in the task model's state dict."""
        return self._torch("head.")

    def raw(self, group: str) -> dict[str, RawTensor]:
        """Raw tensors of ``dense``, ``adapter`` or ``head``, without the group's name."""
        return {
            name.removeprefix(f"{group}."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{group}.")
        }

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical file: what a version is known by."""
        return digest.of_stream(self.dump())

    def check_base(self, base: BaseRef) -> None:
        """Raises MismatchError unless the delta was made on ``base``."""
        own = self.manifest.base
        if own.digest != base.digest:
            raise MismatchError(
                f"{self.task} was made on another base", expected=f"base {own.digest[:16]} ({own.id})",
                got=f"{base.digest[:16]} ({base.id})", hint="give the base that it was made on",
            )  # fmt: skip

    def dump(self) -> Iterator[bytes | memoryview]:
        """The parts of the canonical file; equal deltas give equal bytes."""
        return tensorfile.dump(self.tensors, {_KEY: self.manifest.to_json()})

    def save(self, path: str | Path) -> Path:
        """Writes the ``.delta`` file, whole or not at all; replaces an older one."""
        write_atomic(path := Path(path), self.dump())
        return path

    def with_manifest(self, **changes: object) -> Delta:
        """The same tensors under a changed manifest."""
        return Delta(replace(self.manifest, **changes), self.tensors)  # type: ignore[arg-type]

    @staticmethod
    def load(path: str | Path) -> Delta:
        """Raises FormatError unless ``path`` is a whole, well-formed delta."""
        path = Path(path)
        if not os.path.exists(path):  # Path.exists raises for a name that is too long
            raise FormatError(f"no file {path}", hint="tasks of a hub are named without .delta")
        return Delta.loads(tensorfile.read_whole(path), path.name)

    @staticmethod
    def loads(data: bytes | memoryview, what: str = "the delta") -> Delta:
        tensors, metadata = tensorfile.loads(data, what)
        if set(metadata) != {_KEY}:
            raise FormatError(
                f"{what} is not a delta", expected=f"one metadata entry {_KEY!r}", got=sorted(metadata)[:5],
                hint="make one with `deltahub extract` or `deltahub train`",
            )  # fmt: skip
        return Delta(Manifest.from_json(metadata[_KEY]), tensors)

    def _torch(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name: tensor.torch() for name, tensor in self.raw(prefix[:-1]).items()}


def _check_finite(name: str, tensor: RawTensor) -> None:
    if tensor.dtype not in FLOATS:
        raise FormatError(f"tensor {name[:80]!r}", expected=f"dtype {', '.join(FLOATS)}", got=tensor.dtype)
    sign_off = tensor.bits.dtype.type((1 << (8 * tensor.bits.itemsize - 1)) - 1)
    bad = 0
    for start in range(0, tensor.size, _CHUNK):
        magnitude = tensor.bits[start : start + _CHUNK] & sign_off
        if magnitude.max() >= _INFINITY[tensor.dtype]:
            bad += int(np.count_nonzero(magnitude >= _INFINITY[tensor.dtype]))
    if bad:
        raise FormatError(
            f"tensor {name[:80]!r} has {bad} NaN or infinite numbers", hint="the training diverged; do not publish it"
        )

"""Deltas with random content, for tests that only need some delta."""

from __future__ import annotations

import numpy as np

from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.manifest import Manifest
from deltahub.mask import Mask
from deltahub.rawtensor import RawTensor, narrow


def random_delta(
    base: Base, mask: Mask | None, seed: int = 0, *, task: str = "sst2", dense: tuple[str, ...] = (), classes: int = 0
) -> Delta:
    """Random values in the right dtypes; ``classes`` > 0 adds a linear head of that many outputs."""
    rng = np.random.default_rng(seed)

    def draw(dtype: str, shape: tuple[int, ...]) -> RawTensor:
        return RawTensor.of_bits(dtype, shape, narrow(rng.normal(0, 0.05, shape).astype(np.float32).reshape(-1), dtype))

    tensors = {}
    if mask is not None:
        own = base.space.widest(mask.indices)
        values = draw(own, (mask.k,))
        for tensor, part in base.space.split(mask.indices):  # exactly representable in their own tensor's dtype
            values.bits[part] = _rounded(values, part, tensor.dtype)
        tensors["values"] = values
    for name in dense:
        tensors[f"dense.{name}"] = draw(base.space.by_name[name].dtype, base.space.by_name[name].shape)
    if classes:
        tensors["head.classifier.weight"] = draw("F32", (classes, 32))
        tensors["head.classifier.bias"] = draw("F32", (classes,))
    labels = tuple(f"class {number}" for number in range(classes))
    manifest = Manifest(task, "text-classification", base.ref, mask and mask.ref, labels)
    return Delta(manifest, tensors)


def _rounded(values: RawTensor, part: slice, dtype: str) -> np.ndarray:
    exact = RawTensor.of_bits(dtype, (part.stop - part.start,), narrow(values.float32()[part], dtype))
    return exact.bits if dtype == values.dtype else exact.float32().view(np.uint32)

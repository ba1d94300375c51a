"""Tasks as training leaves them: values near the base's smallest ones, and a head."""

from __future__ import annotations

import numpy as np

from deltahub.delta import Delta
from deltahub.manifest import BaseRef, Manifest, MaskRef, Plain
from deltahub.rawtensor import RawTensor

VALUES, WIDTH = 113_566, 384


def made_delta(task: str, seed: int, k: int = VALUES) -> Delta:
    """0.5 % of a base of 22.7 M parameters, moved a little, and a linear head of two classes; about 385 kB stored."""
    rng = np.random.default_rng(seed)
    own = np.sort(np.abs(rng.standard_normal(8 * k).astype(np.float32)))[:k] * np.float32(0.02)
    moved = own * np.where(rng.random(k) < 0.5, -1, 1) + rng.standard_normal(k) * 3e-3
    recipe: dict[str, Plain] = {"name": "smallest-magnitude", "density": 0.005, "scope": "blocks"}
    mask = MaskRef("2" * 64, k, 200 * k, recipe)
    manifest = Manifest(task, "text-classification", BaseRef("1" * 64, "made"), mask, ("no", "yes"))
    head = {"head.weight": (2, WIDTH), "head.bias": (2,)}
    tensors = {"values": _raw(moved)} | {name: _raw(rng.normal(0, 0.02, shape)) for name, shape in head.items()}
    return Delta(manifest, tensors)


def _raw(values: np.ndarray) -> RawTensor:
    return RawTensor("F32", values.shape, values.astype(np.float32).reshape(-1).view(np.uint8))

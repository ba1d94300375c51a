"""Makes the golden hub and files anew: `python -m tests.golden.make`. Run by hand, for a new format version only.

What is there already stays as it is: files of old versions must be read for ever, and the digests stand in the tests.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.rawtensor import RawTensor
from deltahub.rounding import round_delta
from deltahub.syncing import sync
from tests.deltas import random_delta
from tests.models import write_base

HERE = Path(__file__).parent
BIASES = tuple(f"encoder.layer.{layer}.{part}.dense.bias" for layer in (0, 1) for part in ("intermediate", "output"))


def make(folder: Path) -> None:
    """A hub with everything that format version 1 of hubs, 1 and 2 of records can say, and deltas of both versions."""
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "cache"
        base = Base.open(write_base(Path(place) / "base", "bert"), cache=cache)
        _make(folder, base)


def _make(folder: Path, base: Base) -> None:
    hub, other = Hub.open(folder / "hub"), Hub.open("memory://golden")
    mask, positions = Mask.build(base, 0.02), Mask.of_indices(base, np.arange(3, 4000, 13))
    for seed in (1, 2, 3):
        hub.push(_of("pafi", random_delta(base, mask, seed, task="topic", classes=4)), ["prod"] if seed == 2 else [])
    hub.remove("topic@1")
    hub.push(_of("hiwi", random_delta(base, None, 4, task="tone", dense=BIASES, classes=2)), ["prod", "best"])
    hub.push(_of("hiwi-weight", _with_adapter(random_delta(base, mask, 5, task="adapted", classes=2))))
    small = random_delta(base, mask, 6, task="small", dense=BIASES, classes=3)
    hub.push(small, values="int4", head="bf16")
    hub.push(random_delta(base, positions, 7, task="given"), mask=positions)
    for seed in (8, 9):
        other.push(random_delta(base, mask, seed, task="copied"))
    sync(other, hub, newest=True)
    random_delta(base, mask, 10, task="first", classes=2).save(folder / "format-1.delta")
    round_delta(small, "int8", "bf16").save(folder / "format-2.delta")
    positions.save(folder / "format-1.mask")


def _of(method: str, delta: Delta) -> Delta:
    return delta.with_manifest(method={"name": method}, metrics={"validation_accuracy": 0.75}, licence="MIT")


def _with_adapter(delta: Delta) -> Delta:
    def factor(*shape: int) -> RawTensor:
        numbers = np.random.default_rng(len(shape) + shape[0]).normal(0, 0.1, shape).astype(np.float32)
        return RawTensor.of_bits("F32", shape, numbers.reshape(-1).view(np.uint32))

    name = "adapter.encoder.layer.0.output.dense.weight"
    rows, columns = 32, 64
    return Delta(delta.manifest, {**delta.tensors, f"{name}.up": factor(rows, 2), f"{name}.down": factor(2, columns)})


if __name__ == "__main__":
    if (HERE / "hub").exists():
        sys.exit(f"{HERE / 'hub'} is there: golden files are never made anew; give a new version a folder of its own")
    make(HERE)

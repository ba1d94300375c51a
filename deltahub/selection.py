"""The k smallest entries by (key, position), found in one read with memory for about 2 k candidates.

A sample first guesses a bound that a few more than k keys pass. Chunks are then filtered against it, and what passes
is pooled; a pool that grows past 2 k is cut back to its k smallest, which lowers the bound. The order is total, so the
result depends neither on the guess nor on the order in which threads deliver; a guess that was too low is replaced by
no bound at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltahub.checkpoint import Base, Progress
from deltahub.space import Positions, SpaceTensor

Keys = npt.NDArray[np.unsignedinteger[Any]]

_SAMPLE = 1 << 20
_RUN = 1 << 12  # neighbours sampled together: a page or two, wherever it lies
_POOL = 1 << 20  # candidates pooled before a cut pays, however small k is


class Pool:
    """Collects candidates from several threads; ``bound`` is the largest key that can still be among the k smallest."""

    def __init__(self, k: int, bound: int) -> None:
        self.k = k
        self.bound = bound
        self._keys: list[Keys] = []
        self._positions: list[Positions] = []
        self._count = 0
        self._lock = threading.Lock()

    def add(self, keys: Keys, positions: Positions) -> None:
        with self._lock:
            self._keys.append(keys)
            self._positions.append(positions)
            self._count += len(keys)
            if self._count > 2 * self.k + _POOL:
                self._cut()

    def smallest(self) -> Positions | None:
        """The k chosen positions, ascending; None if fewer passed the bound."""
        if self._count < self.k:
            return None
        self._cut()
        return np.sort(self._positions[0])

    def _cut(self) -> None:
        keys, positions = np.concatenate(self._keys), np.concatenate(self._positions)
        last = np.partition(keys, self.k - 1)[self.k - 1]
        below = np.flatnonzero(keys < last)
        equal = np.flatnonzero(keys == last)
        rest = self.k - len(below)
        equal = equal[np.argsort(positions[equal])[:rest]]
        kept = np.concatenate([below, equal])
        self._keys, self._positions, self._count = [keys[kept]], [positions[kept]], self.k
        self.bound = min(self.bound, int(last))


def smallest(base: Base, tensors: Sequence[SpaceTensor], k: int, progress: Progress | None) -> Positions:
    """The k parameters of ``tensors`` with the smallest (\\|w\\| widened to fp32 as unsigned bits, position)."""
    widened = {dtype: _widened(dtype) for dtype in ("F16", "BF16")}

    def collect(pool: Pool) -> None:
        def visit(tensor: SpaceTensor, start: int, bits: npt.NDArray[Any]) -> None:
            # 16-bit magnitudes are compared as they are, against the largest one whose widened bits pass the bound.
            table = widened.get(tensor.dtype)
            limit = min(pool.bound, 0x7FFFFFFF)
            bound = limit if table is None else int(np.searchsorted(table, limit, "right")) - 1
            hits = np.flatnonzero(bits <= bits.dtype.type(bound))
            if len(hits):
                found = bits[hits]
                pool.add(found if table is None else table[found], hits + (tensor.offset + start))

        base.scan(tensors, visit, progress)

    return _select(collect, k, _guess(base, tensors, k, widened))


def random(base: Base, tensors: Sequence[SpaceTensor], k: int, seed: int, progress: Progress | None) -> Positions:
    """k uniformly random positions of ``tensors``: those with the smallest (SplitMix64(seed, position), position)."""
    room = sum(tensor.size for tensor in tensors)
    chunk = 1 << 16

    def collect(pool: Pool) -> None:
        done = 0
        for tensor in tensors:
            for start in range(tensor.offset, tensor.offset + tensor.size, chunk):
                positions = np.arange(start, min(start + chunk, tensor.offset + tensor.size), dtype=np.int64)
                keys = splitmix64(positions.astype(np.uint64), seed)
                hits = np.flatnonzero(keys <= np.uint64(pool.bound))
                if len(hits):
                    pool.add(keys[hits], positions[hits])
                done += len(positions)
                if progress:
                    progress(done, room)

    share = min(1.0, k / room + 6 * (k / room / room) ** 0.5 + 1 / room)
    return _select(collect, k, min(int(share * 2.0**64), (1 << 64) - 1))


def splitmix64(positions: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """Output number ``position`` of the SplitMix64 stream (Steele, Lea, Flood, OOPSLA 2014) that starts at ``seed``."""
    z = (positions + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _select(collect: Callable[[Pool], None], k: int, bound: int) -> Positions:
    for limit in (bound, (1 << 64) - 1):
        pool = Pool(k, limit)
        collect(pool)
        if (found := pool.smallest()) is not None:
            return found
    raise AssertionError("k exceeds the scope")  # Mask.build checks it


def _guess(base: Base, tensors: Sequence[SpaceTensor], k: int, widened: dict[str, Keys]) -> int:
    """A bound that a few more than k magnitudes pass, if the sampled runs are like the rest."""
    room = sum(tensor.size for tensor in tensors)
    parts = []
    for tensor in tensors:
        raw_runs = base.sample(tensor, max(1, round(_SAMPLE * tensor.size / room / _RUN)), _RUN)
        table = widened.get(tensor.dtype)
        parts.append(raw_runs if table is None else table[raw_runs])
    sample = np.concatenate(parts)
    share = 1.2 * k / room + 5 * (k / room / len(sample)) ** 0.5
    rank = min(len(sample) - 1, int(share * len(sample)))
    return int(np.partition(sample, rank)[rank])


def _widened(dtype: str) -> Keys:
    """fp32 bits of every non-negative 16-bit float, ascending with the index up to infinity."""
    half = np.arange(1 << 15, dtype=np.uint16)
    if dtype == "BF16":
        return half.astype(np.uint32) << np.uint32(16)
    with np.errstate(invalid="ignore"):
        return half.view(np.float16).astype(np.float32).view(np.uint32)

"""The products on a CPU in float32, by the compiled kernel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from deltahub.mixing.kernel import FIELDS, TILE, Kernel
from deltahub.mixing.products import Batch, Pattern

__all__ = ["TILE", "CompiledProducts"]
_LINE = 64
"""Bytes of a cache line."""


class CompiledProducts:
    """Takes products by `kernel.Kernel`.

    Args:
        patterns: all that will be asked for, float32, at least TILE wide both ways.
    """

    name = "compiled"

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._kernel = Kernel()
        self._rows = {pattern.site.name: number for number, pattern in enumerate(patterns)}
        self._offsets = np.array([4 * pattern.site.part.start for pattern in patterns])
        self._bases = np.array([pattern.base.data_ptr() for pattern in patterns])
        self._widest = max(sum(pattern.site.tensor.shape) for pattern in patterns)
        self._scratch = torch.empty(0)
        self._jobs = {pattern.site.name: self._job(pattern) for pattern in patterns}

    def batch(self, tasks: Sequence[torch.Tensor | None], starts: Sequence[int], plain: set[tuple[str, int]]) -> Batch:
        return _CompiledBatch(self, tasks, starts, plain)

    def addresses(self, tasks: Sequence[torch.Tensor | None], plain: set[tuple[str, int]]) -> npt.NDArray[np.int64]:
        """Where each task's values of each matrix stand, (matrices, tasks); the base's where those stay."""
        values = np.array([0 if task is None else task.data_ptr() for task in tasks])
        found: npt.NDArray[np.int64] = values[None] + self._offsets[:, None]
        for name, number in plain:
            if name in self._rows:
                found[self._rows[name], number] = self._bases[self._rows[name]]
        return found

    def run(
        self, pattern: Pattern, states: torch.Tensor, out: torch.Tensor,
        values: npt.NDArray[np.int64], units: npt.NDArray[np.int32],
    ) -> None:  # fmt: skip
        """``values`` is the address of each task's; ``units`` (n, 3): task, first token, number of tokens."""
        threads = min(torch.get_num_threads(), len(units))
        job = self._jobs[pattern.site.name]
        job[_OWN] = (
            states.data_ptr(), out.data_ptr(), values.ctypes.data, units.ctypes.data, len(units), 0, 0,
            self._room(threads),
        )  # fmt: skip
        self._kernel.run(job.ctypes.data, threads)

    def row(self, pattern: Pattern) -> int:
        return self._rows[pattern.site.name]

    def _job(self, pattern: Pattern) -> npt.NDArray[np.int64]:
        outputs, inputs = pattern.site.tensor.shape
        fixed = {"base": pattern.base.data_ptr(), "ends": pattern.ends.data_ptr(),
                 "columns": pattern.columns.data_ptr(), "inputs": inputs, "outputs": outputs}  # fmt: skip
        return np.array([fixed.get(field, 0) for field in FIELDS])

    def _room(self, threads: int) -> int:
        """Address of memory for two tiles of each thread."""
        size = threads * TILE * self._widest + _LINE // 4
        if len(self._scratch) < size:
            self._scratch = torch.empty(size)
        return -(-self._scratch.data_ptr() // _LINE) * _LINE


_OWN = [FIELDS.index(name) for name in ("x", "y", "values", "units", "count", "next", "thread", "scratch")]


class _CompiledBatch:
    def __init__(
        self, products: CompiledProducts, tasks: Sequence[torch.Tensor | None], starts: Sequence[int],
        plain: set[tuple[str, int]],
    ) -> None:  # fmt: skip
        self._products = products
        self._starts = starts
        self._changed = [number for number, values in enumerate(tasks) if values is not None]
        self._tasks = tasks  # keeps the memory that the addresses are of
        self._addresses = products.addresses(tasks, plain)
        self._units: dict[int, npt.NDArray[np.int32]] = {}

    def add(self, pattern: Pattern, states: torch.Tensor, out: torch.Tensor) -> None:
        assert states.is_contiguous()
        assert out.is_contiguous()
        tokens = len(states) // self._starts[-1]
        if tokens not in self._units:
            self._units[tokens] = self._tiles(tokens)
        values = self._addresses[self._products.row(pattern)]
        self._products.run(pattern, states, out, values, self._units[tokens])

    def _tiles(self, tokens: int) -> npt.NDArray[np.int32]:
        found = []
        ranges = list(pairwise(self._starts))
        for number in self._changed:
            start, stop = (row * tokens for row in ranges[number])
            found += [(number, first, min(TILE, stop - first)) for first in range(start, stop, TILE)]
        return np.array(found, np.int32).reshape(-1, 3)

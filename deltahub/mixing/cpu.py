"""The products on a CPU in float32, by the compiled kernel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from deltahub.errors import MismatchError
from deltahub.mixing.kernel import TILE, Job, Kernel
from deltahub.mixing.products import Batch, Pattern

__all__ = ["TILE", "CompiledProducts"]
_LINE = 64
"""Bytes of a cache line."""


class CompiledProducts:
    """Takes products by `kernel.Kernel`. One batch at a time.

    Args:
        patterns: all that will be asked for, float32, at least TILE wide both ways.
    """

    name = "compiled"

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.kernel = Kernel()
        self._patterns = tuple(patterns)  # keeps the memory that the addresses are of
        self.numbers = {pattern.site.name: number for number, pattern in enumerate(patterns)}
        self._rows = [_by_count(pattern) for pattern in patterns]
        self.jobs = [_job(pattern, rows) for pattern, rows in zip(patterns, self._rows, strict=True)]
        self._offsets = np.array([4 * pattern.site.part.start for pattern in patterns])
        self._bases = np.array([pattern.base.data_ptr() for pattern in patterns])
        self.zeros = torch.zeros(max(pattern.site.tensor.shape[0] for pattern in patterns))
        self._tile = TILE * max(sum(pattern.site.tensor.shape) for pattern in patterns)
        self._scratch = torch.empty(0)

    def batch(self, tasks: Sequence[torch.Tensor | None], starts: Sequence[int], plain: set[tuple[str, int]]) -> Batch:
        return _CompiledBatch(self, tasks, starts, self._addresses(tasks, plain))

    def room(self, threads: int) -> int:
        """Address of memory for two tiles of each thread."""
        size = threads * self._tile + _LINE // 4
        if len(self._scratch) < size:
            self._scratch = torch.empty(size)
        return -(-self._scratch.data_ptr() // _LINE) * _LINE

    def _addresses(self, tasks: Sequence[torch.Tensor | None], plain: set[tuple[str, int]]) -> npt.NDArray[np.int64]:
        """Where each task's values of each matrix stand, (matrices, tasks); the base's where those stay."""
        values = np.array([0 if task is None else task.data_ptr() for task in tasks])
        found: npt.NDArray[np.int64] = np.where(values, values + self._offsets[:, None], self._bases[:, None])
        for name, number in plain:
            if name in self.numbers:
                found[self.numbers[name], number] = self._bases[self.numbers[name]]
        return found


class _CompiledBatch:
    def __init__(
        self, products: CompiledProducts, tasks: Sequence[torch.Tensor | None], starts: Sequence[int],
        addresses: npt.NDArray[np.int64],
    ) -> None:  # fmt: skip
        self._products = products
        self._tasks = tasks  # keeps the memory that the addresses are of
        self._starts = starts
        self._addresses = addresses
        self._first = addresses.ctypes.data
        self._units: dict[int, tuple[int, int, npt.NDArray[np.int32]]] = {}
        self._threads = torch.get_num_threads()
        self._room = products.room(self._threads)
        self._zeros = products.zeros.data_ptr()

    def add(self, pattern: Pattern, states: torch.Tensor, out: torch.Tensor, biases: torch.Tensor | None) -> None:
        outputs, inputs = pattern.site.tensor.shape
        for found, width in ((states, inputs), (out, outputs)):  # the kernel writes where it is told to
            if found.dtype != torch.float32 or found.shape[1] != width or not found.is_contiguous():
                raise MismatchError(
                    f"states of {pattern.site.name} in a mixed pass", expected=f"float32 (n, {width}), contiguous",
                    got=f"{found.dtype} {tuple(found.shape)}", hint="mix without autocast, on the base's own dtype",
                )  # fmt: skip
        tokens = states.shape[0] // self._starts[-1]
        if tokens not in self._units:
            self._units[tokens] = self._tiles(tokens)
        units, count, _ = self._units[tokens]
        number = self._products.numbers[pattern.site.name]
        job = self._products.jobs[number]
        job.x, job.y, job.values = states.data_ptr(), out.data_ptr(), self._first + number * self._addresses.strides[0]
        if biases is None:
            job.biases, job.stride = self._zeros, 0
        else:
            assert biases.stride(1) == 1
            job.biases, job.stride = biases.data_ptr(), biases.stride(0)
        job.units, job.count, job.scratch, job.next, job.thread = units, count, self._room, 0, 0
        self._products.kernel.run(job, min(self._threads, count))

    def _tiles(self, tokens: int) -> tuple[int, int, npt.NDArray[np.int32]]:
        """Address and number of the units, and what keeps them in memory."""
        units = np.array(
            [
                (number, first, min(TILE, stop * tokens - first))
                for number, (start, stop) in enumerate(pairwise(self._starts))
                for first in range(start * tokens, stop * tokens, TILE)
            ],
            np.int32,
        )
        return units.ctypes.data, len(units), units


def _job(pattern: Pattern, rows: torch.Tensor) -> Job:
    outputs, inputs = pattern.site.tensor.shape
    return Job(
        base=pattern.base.data_ptr(), rows=rows.data_ptr(), indices=pattern.indices.data_ptr(),
        inputs=inputs, outputs=outputs, positions=len(pattern.indices),
    )  # fmt: skip


def _by_count(pattern: Pattern) -> torch.Tensor:
    """(out, 3) int32: an output, where its positions begin and end; those with as many positions beside each other.

    So the processor foresees the end of each sum: a mistake costs more than the sum itself.
    """
    starts, stops = pattern.indptr[:-1], pattern.indptr[1:]
    order = (stops - starts).sort(stable=True).indices
    return torch.stack([order.int(), starts[order], stops[order]], 1).contiguous()

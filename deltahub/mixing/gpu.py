"""The products on a GPU, by a Triton kernel.

A program takes a tile of one task's tokens and a block of outputs, and goes through the masked inputs of its outputs
side by side: each step reads one position of every output (the index, the task's value where the delta has it, the
base's) and multiplies one column of the states by it.

The states are transposed once for each matrix, so that the tokens of a feature lie beside each other. Columns that
follow each other in the index lie anywhere in a row: read in place, the lanes of a warp touch a dozen cache lines or
more, transposed they touch one or two, and every state is read again for about 1 % of the outputs, 8 times for 768 of
them.
Values are found by a table of addresses, so that they are copied for no matrix.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import triton
import triton.language as tl

from deltahub.mixing.products import Batch, Pattern

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of weights; sums are taken in float32."""
TILES = (16, 64)
"""Tokens of a tile: the first that holds the longest task, or else the last."""
OUTPUTS = 16
"""Outputs of a block, of which all wait for the one with the most positions; fewer would write less than 32 bytes."""
_EACH = 4
"""Sums of each thread: their reads overlap, and registers last (80 for float32 on sm_90)."""


def usable() -> bool:
    """Whether Triton can launch kernels here: it has to find a device, and a C compiler to build its launcher with."""
    try:
        triton.runtime.driver.active.get_current_target()
    except (RuntimeError, OSError, subprocess.CalledProcessError):
        return False
    return True


class TritonProducts:
    """Takes products by a Triton kernel, which is compiled here, so that no batch waits for it: some seconds.

    Args:
        patterns: all that will be asked for, of one of DTYPES and on one device.
    """

    name = "triton"

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.numbers = {pattern.site.name: number for number, pattern in enumerate(patterns)}
        self._device, self._dtype = patterns[0].base.device, patterns[0].base.dtype
        assert self._dtype in DTYPES
        assert all((one.base.device, one.base.dtype) == (self._device, self._dtype) for one in patterns)
        self._offsets = np.array([pattern.site.part.start * pattern.base.itemsize for pattern in patterns])
        self._compile(patterns)

    def batch(self, tasks: Sequence[torch.Tensor | None], starts: Sequence[int], plain: set[tuple[str, int]]) -> Batch:
        here = [None if task is None else task.to(self._device, self._dtype).contiguous() for task in tasks]
        values = np.array([0 if task is None else task.data_ptr() for task in here])
        addresses = np.where(values, values + self._offsets[:, None], 0)
        for name, number in plain:
            if name in self.numbers:
                addresses[self.numbers[name], number] = 0
        table = np.concatenate([np.array(starts), addresses.ravel()])
        return _TritonBatch(self, here, starts, torch.from_numpy(table).to(self._device, non_blocking=True))

    def _compile(self, patterns: Sequence[Pattern]) -> None:
        for tile in TILES:
            batch = self.batch([None], [0, tile], set())
            for pattern in patterns:
                out, states = (pattern.base.new_zeros(tile, width) for width in pattern.site.tensor.shape)
                batch.add(pattern, states, out, None)
                batch.add(pattern, states, out, out)


class _TritonBatch:
    """``table`` is int64: the first row of each task, and after the last the number of rows; then for each matrix the
    address of every task's values, 0 where the base's stay.
    """

    def __init__(
        self, products: TritonProducts, tasks: Sequence[torch.Tensor | None], starts: Sequence[int], table: torch.Tensor
    ) -> None:
        self._numbers = products.numbers
        self._tasks = tasks  # keeps the memory that the addresses are of
        self._rows = starts[-1]
        self._longest = max(stop - start for start, stop in pairwise(starts))
        self._table = table

    def add(self, pattern: Pattern, states: torch.Tensor, out: torch.Tensor, biases: torch.Tensor | None) -> None:
        assert states.is_contiguous()
        assert out.is_contiguous()
        assert biases is None or biases.stride(1) == 1
        count, outputs, tasks = len(states), out.shape[1], len(self._tasks)
        tokens = count // self._rows
        longest = self._longest * tokens
        tile = next((tile for tile in TILES if longest <= tile), TILES[-1])
        grid = (triton.cdiv(outputs, OUTPUTS), tasks, triton.cdiv(longest, tile))
        with torch.cuda.device(states.get_device()):  # a launch goes to the current device
            _add[grid](
                out, states.t().contiguous(), biases, pattern.base, pattern.indptr, pattern.indices, self._table,
                tasks + 1 + self._numbers[pattern.site.name] * tasks, tokens, count, outputs,
                0 if biases is None else biases.stride(0), TOKENS=tile, OUTPUTS=OUTPUTS,
                num_warps=tile * OUTPUTS // (32 * _EACH), enable_fp_fusion=True,
            )  # fmt: skip


@triton.jit(do_not_specialize=["row", "tokens", "count"], do_not_specialize_on_alignment=["biases"])  # type: ignore[untyped-decorator]
def _add(
    out: tl.tensor, transposed: tl.tensor, biases: tl.tensor, base: tl.tensor, indptr: tl.tensor, indices: tl.tensor,
    table: tl.tensor, row: tl.tensor, tokens: tl.tensor, count: tl.tensor, outputs: tl.tensor, stride: tl.tensor,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr,
) -> None:  # fmt: skip
    """Adds one tile of a task's tokens and one block of outputs.

    ``transposed`` is (in, count); ``table`` is that of a batch, where the addresses of the matrix begin at ``row``;
    ``tokens`` are those of a row of the batch, ``stride`` is from one task's biases to the next's.
    """
    task = tl.program_id(1)
    first = tl.load(table + task) * tokens + tl.program_id(2) * TOKENS
    end = tl.load(table + task + 1) * tokens
    if first >= end:  # a task with fewer rows than the longest
        return
    token = first + tl.arange(0, TOKENS)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    real, inside = token < end, output < outputs
    start = tl.load(indptr + output, inside, other=0)
    stop = tl.load(indptr + output + 1, inside, other=0)
    address = tl.load(table + row + task)
    own = address.to(tl.pointer_type(base.dtype.element_ty))
    steps = tl.where(address == 0, 0, tl.max(stop - start, 0))
    total = tl.zeros((OUTPUTS, TOKENS), tl.float32)
    for step in tl.range(0, steps, loop_unroll_factor=4):  # the reads of four steps are under way together
        at = start + step
        some = at < stop
        change = tl.load(own + at, some, other=0).to(tl.float32) - tl.load(base + at, some, other=0).to(tl.float32)
        column = tl.load(indices + at, some, other=0).to(tl.int64)
        states = tl.load(transposed + column[:, None] * count + token[None, :], some[:, None] & real[None, :], other=0)
        total += change[:, None] * states.to(tl.float32)
    if biases is not None:
        total += tl.load(biases + task * stride + output, inside, other=0).to(tl.float32)[:, None]
    place = out + token[:, None] * outputs + output[None, :]
    whole = real[:, None] & inside[None, :]
    tl.store(place, tl.load(place, whole, other=0).to(tl.float32) + tl.trans(total), whole)

"""``y += x (W_task - W_base) + b_task`` for rows of many tasks: what it takes, a plain way, and the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import nn

from deltahub.mixing.sites import Site


@dataclass(frozen=True, eq=False)
class Pattern:
    """The masked positions of one matrix (out, in), which all tasks share; all tensors on its device.

    Attributes:
        site: the matrix.
        indptr: (out + 1,) int32, where the positions of each output begin, and the last ends; as in CSR.
        indices: (m,) int32, the input of each position, outputs one after the other.
        base: (m,) the base's own values there.
    """

    site: Site[nn.Linear]
    indptr: torch.Tensor
    indices: torch.Tensor
    base: torch.Tensor

    @staticmethod
    def of(site: Site[nn.Linear]) -> Pattern:
        outputs, inputs = site.tensor.shape
        counts = torch.bincount(site.local // inputs, minlength=outputs)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
        return Pattern(site, indptr, (site.local % inputs).int(), site.tensor.reshape(-1)[site.local])

    @property
    def nbytes(self) -> int:
        return self.indptr.nbytes + self.indices.nbytes + self.base.nbytes


class Batch(Protocol):
    """The tasks of one pass."""

    def add(self, pattern: Pattern, states: torch.Tensor, out: torch.Tensor, biases: torch.Tensor | None) -> None:
        """Adds to ``out`` what each task's rows of ``states`` give by its own values, and its bias.

        Args:
            states: (rows x t, in) contiguous, t the same for all rows.
            out: (rows x t, out) contiguous, changed in place.
            biases: (tasks, out), the last dimension contiguous; None where there is nothing to add.
        """


class Products(Protocol):
    """A way to take the products."""

    name: str

    def batch(self, tasks: Sequence[torch.Tensor | None], starts: Sequence[int], plain: set[tuple[str, int]]) -> Batch:
        """Makes ready for a pass.

        Args:
            tasks: the (k,) values of each on the resident's device; None where the base's stay.
            starts: the first row of each task, and after the last the number of rows.
            plain: base tensor and number of task, where the base's values stay all the same.
        """


class PlainProducts:
    """With torch alone, a whole matrix for each task: right on every device and in every dtype, and slow.

    Args:
        why: no faster way was taken.
    """

    def __init__(self, why: str = "") -> None:
        self.name = f"torch ({why})" if why else "torch"

    def batch(self, tasks: Sequence[torch.Tensor | None], starts: Sequence[int], plain: set[tuple[str, int]]) -> Batch:
        return _PlainBatch(tasks, starts, plain)


@dataclass(frozen=True)
class _PlainBatch:
    tasks: Sequence[torch.Tensor | None]
    starts: Sequence[int]
    plain: set[tuple[str, int]]

    def add(self, pattern: Pattern, states: torch.Tensor, out: torch.Tensor, biases: torch.Tensor | None) -> None:
        tokens, site = len(states) // self.starts[-1], pattern.site
        for number, ((start, stop), values) in enumerate(zip(pairwise(self.starts), self.tasks, strict=True)):
            rows = slice(start * tokens, stop * tokens)
            if biases is not None:
                out[rows] += biases[number]
            if values is not None and (site.name, number) not in self.plain:
                change = torch.zeros_like(site.tensor)
                change.view(-1)[site.local] = values[site.part].to(change) - pattern.base
                out[rows] += states[rows] @ change.t()


def fastest(patterns: Sequence[Pattern]) -> Products:
    """The fastest way that this machine has for ``patterns``; the plain one where no compiler works here."""
    try:
        return _compiled(patterns) or PlainProducts()
    except Exception as error:  # noqa: BLE001  (not installed, without its library, a compiler's own failure)
        return PlainProducts(" ".join(f"{type(error).__name__}: {error}".split())[:200])


def _compiled(patterns: Sequence[Pattern]) -> Products | None:
    weights = [pattern.site.tensor for pattern in patterns]
    if not weights:
        return None
    device, dtype = weights[0].device, weights[0].dtype
    if device.type == "cpu" and dtype == torch.float32:
        from deltahub.mixing.cpu import TILE, CompiledProducts

        if all(min(weight.shape) >= TILE for weight in weights):
            return CompiledProducts(patterns)
    if device.type == "cuda":
        from deltahub.mixing.gpu import DTYPES, TritonProducts, usable

        if dtype in DTYPES and usable():
            return TritonProducts(patterns)
    return None

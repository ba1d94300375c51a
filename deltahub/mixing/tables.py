"""Embeddings that look each row's numbers up in its own task's table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from deltahub.errors import MismatchError
from deltahub.mixing.sites import Site


class Table:
    """The masked positions of an embedding, by its rows.

    Args:
        site: the embedding.
    """

    def __init__(self, site: Site[nn.Embedding]) -> None:
        self.module = site.module
        self._part = site.part
        rows, width = site.tensor.shape
        self._columns = site.local % width
        self._counts = torch.bincount(site.local // width, minlength=rows)
        self._first = self._counts.cumsum(0) - self._counts

    def look_up(
        self, values: Sequence[torch.Tensor | None], starts: Sequence[int], numbers: torch.Tensor
    ) -> torch.Tensor:
        """What the module gives, with each task's values over those of the base.

        Args:
            values: (k,) of each task; None where the base's stay.
            starts: the first row of each task, and after the last the number of rows.
            numbers: (rows, ...) int64; or (1, ...), such as positions, for all rows alike.
        """
        rows = starts[-1]
        if numbers.shape[:1] not in ((rows,), (1,)):
            raise MismatchError(
                f"an embedding was given {tuple(numbers.shape)}", expected=f"{rows} rows or one",
                hint="tasks of this architecture can only be swapped in",
            )  # fmt: skip
        numbers = numbers.expand(rows, *numbers.shape[1:])
        found = type(self.module).forward(self.module, numbers)
        for number, own in enumerate(values):
            if own is not None:
                mine = slice(starts[number], starts[number + 1])
                self._write(found[mine], numbers[mine], own)
        return found

    def _write(self, found: torch.Tensor, numbers: torch.Tensor, values: torch.Tensor) -> None:
        flat = numbers.reshape(-1)
        counts = self._counts[flat]
        token = torch.repeat_interleave(counts)
        within = torch.arange(len(token), device=flat.device) - (counts.cumsum(0) - counts)[token]
        at = self._first[flat][token] + within
        found.view(-1, found.shape[-1])[token, self._columns[at]] = values[self._part][at].to(found)

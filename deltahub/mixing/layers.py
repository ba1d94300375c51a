"""The layers of one mixed pass: each gives every row of the batch its own task's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from deltahub.errors import MismatchError
from deltahub.mixing.changes import Changes
from deltahub.mixing.products import Batch, Pattern, Products
from deltahub.mixing.sites import Site, Sites, Vector

Forward = Callable[[torch.Tensor], torch.Tensor]


class Layers:
    """What all passes over one resident have in common.

    Args:
        sites: where rows can differ.
        patterns: of the masked matrices, by base tensor.
        products: how their products are taken.
    """

    def __init__(self, sites: Sites, patterns: Mapping[str, Pattern], products: Products) -> None:
        self.sites = sites
        self.patterns = patterns
        self.products = products
        self.matrices = {site.module: site for site in sites.matrices}
        self.tables = [_Table(site) for site in sites.tables if len(site.local)]
        self.vectors: dict[nn.Module, dict[str, Vector]] = {}
        for vector in sites.vectors:
            self.vectors.setdefault(vector.module, {})[vector.parameter] = vector
        self.masked = frozenset(vector.module for vector in sites.vectors if len(vector.local))

    @contextmanager
    def changed(self, tasks: Sequence[Changes], starts: Sequence[int]) -> Iterator[None]:
        """Every layer that some task changes gives each row its own output, until the end.

        Args:
            tasks: of the pass.
            starts: the first row of each, and after the last the number of rows.
        """
        forwards = _Pass(self, tasks, starts).forwards()
        try:
            for module, forward in forwards.items():
                module.forward = forward  # type: ignore[method-assign]
            yield
        finally:
            for module in forwards:
                vars(module).pop("forward", None)


class _Pass:
    def __init__(self, layers: Layers, tasks: Sequence[Changes], starts: Sequence[int]) -> None:
        self.layers = layers
        self.tasks = tasks
        self.starts = starts
        self.rows = starts[-1]
        self.values = [task.values for task in tasks]
        self.masked = any(values is not None for values in self.values)
        plain = {(name, number) for number, task in enumerate(tasks) for name in task.factors}
        self.products: Batch | None = layers.products.batch(self.values, starts, plain) if self.masked else None

    def forwards(self) -> dict[nn.Module, Forward]:
        layers = self.layers
        own: set[nn.Module] = set(layers.masked) if self.masked else set()
        own = own.union(*(task.modules for task in self.tasks))
        lines = self.lines() if own else None  # of tasks
        found: dict[nn.Module, Forward] = {}
        factors = {name for task in self.tasks for name in task.factors}
        for module, site in layers.matrices.items():
            pattern = layers.patterns.get(site.name) if self.masked else None
            if pattern is not None or site.name in factors or module in own:
                found[module] = self.linear(module, site, pattern, lines if module in own else None)
        for module in own - found.keys():
            assert lines is not None
            at = {name: self.of_rows(lines[:, vector.at]) for name, vector in layers.vectors[module].items()}
            found[module] = self.norm(module, at)
        if self.masked:
            found |= {table.site.module: self.looked_up(table) for table in layers.tables}
        return found

    def lines(self) -> torch.Tensor:
        """All vectors of each task, (tasks, width)."""
        base, (which, where) = self.layers.sites.line, self.layers.sites.masked_line
        lines = base.repeat(len(self.tasks), 1)
        for line, task in zip(lines, self.tasks, strict=True):
            if task.values is not None and len(which):
                line[where] = task.values[which].to(line)
            if task.line is not None:  # dense tensors win over values, as in a swap
                assert task.given is not None
                line.copy_(torch.where(task.given, task.line, line) if task.values is not None else task.line)
        return lines

    def of_rows(self, lines: torch.Tensor) -> torch.Tensor:
        """From one for each task to one for each row."""
        if len(self.tasks) == self.rows:
            return lines
        return lines.repeat_interleave(torch.tensor([b - a for a, b in pairwise(self.starts)], device=lines.device), 0)

    def linear(
        self, module: nn.Linear, site: Site[nn.Linear], pattern: Pattern | None, lines: torch.Tensor | None
    ) -> Forward:
        weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
        turned, width = weight.t(), weight.shape[0]
        biases = None if lines is None else lines[:, self.layers.vectors[module]["bias"].at]
        by_row = None if biases is None or pattern is not None else self.of_rows(biases)[:, None]
        factors = [(number, task.factors[site.name]) for number, task in enumerate(self.tasks) if site.name in task.factors]
        products, rows = self.products, self.rows

        def forward(states: torch.Tensor) -> torch.Tensor:
            flat = self.by_row(module, states).reshape(-1, states.shape[-1])
            if by_row is not None:
                out = flat.new_empty(flat.shape[0], width)
                out.view(rows, -1, width).copy_(by_row)
                out.addmm_(flat, turned)
            else:
                out = functional.linear(flat, weight, bias if biases is None else None)
            if pattern is not None:
                assert products is not None
                products.add(pattern, flat.contiguous(), out, biases)
            for number, (up, down) in factors:
                mine = self.range(number, flat.shape[0])
                out[mine].addmm_(flat[mine] @ down.t(), up.t())
            return out.view(*states.shape[:-1], width)

        return forward

    def norm(self, module: nn.Module, lines: Mapping[str, torch.Tensor]) -> Forward:
        """``lines`` are (rows, n), by parameter."""

        def forward(states: torch.Tensor) -> torch.Tensor:
            self.by_row(module, states)
            between = (1,) * (states.ndim - 2)
            own = {name: line.view(len(line), *between, -1) for name, line in lines.items()}
            if not isinstance(module, nn.LayerNorm):
                found: torch.Tensor = torch.func.functional_call(module, own, (states,), strict=False)
                return found
            weight, bias = own.get("weight", module.weight), own.get("bias", module.bias)
            plain = functional.layer_norm(states, module.normalized_shape, eps=module.eps)
            return plain.mul_(weight) if bias is None else plain.mul_(weight).add_(bias)

        return forward

    def looked_up(self, table: _Table) -> Forward:
        module = table.site.module

        def forward(numbers: torch.Tensor) -> torch.Tensor:
            found = type(module).forward(module, numbers)
            if numbers.shape[:1] == (self.rows,):
                for number, values in enumerate(self.values):
                    if values is not None:
                        mine = slice(self.starts[number], self.starts[number + 1])
                        table.write(found[mine], numbers[mine], values)
                return found
            # positions are looked up once for all rows: from here on each has its own
            by_row = numbers.expand(self.rows, *numbers.shape[1:]) if numbers.shape[:1] == (1,) else None
            if by_row is None:
                raise MismatchError(f"an embedding of {tuple(numbers.shape)}", expected=f"{self.rows} rows or one")
            return forward(by_row.contiguous())

        return forward

    def by_row(self, module: nn.Module, states: torch.Tensor) -> torch.Tensor:
        if states.shape[:1] != (self.rows,):
            raise MismatchError(
                f"{type(module).__name__} was given {tuple(states.shape)}", expected=f"the {self.rows} rows of the batch",
                hint="tasks of this architecture can only be swapped in",
            )  # fmt: skip
        return states

    def range(self, number: int, tokens: int) -> slice:
        each = tokens // self.rows
        return slice(self.starts[number] * each, self.starts[number + 1] * each)


class _Table:
    """The masked positions of an embedding, by its rows."""

    def __init__(self, site: Site[nn.Embedding]) -> None:
        self.site = site
        rows, width = site.tensor.shape
        self._columns = site.local % width
        self._counts = torch.bincount(site.local // width, minlength=rows)
        self._first = self._counts.cumsum(0) - self._counts

    def write(self, found: torch.Tensor, numbers: torch.Tensor, values: torch.Tensor) -> None:
        """Puts a task's values over those of the base that were looked up: ``found`` is (..., width) contiguous."""
        flat = numbers.reshape(-1)
        counts = self._counts[flat]
        token = torch.repeat_interleave(counts)
        within = torch.arange(len(token), device=flat.device) - (counts.cumsum(0) - counts)[token]
        at = self._first[flat][token] + within
        own = values[self.site.part][at].to(found)
        found.view(-1, found.shape[-1])[token, self._columns[at]] = own



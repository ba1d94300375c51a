"""The layers of one mixed pass: each gives every row of the batch its own task's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from deltahub.errors import MismatchError
from deltahub.mixing.changes import Changes
from deltahub.mixing.products import Batch, Pattern, Products
from deltahub.mixing.sites import Site, Sites, Vector, weighted
from deltahub.mixing.tables import Table

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
        self.products = products
        biases = {vector.module: vector for vector in sites.vectors if vector.parameter == "bias"}
        self.matrices = [_Matrix(site, patterns.get(site.name), biases.get(site.module)) for site in sites.matrices]
        self.tables = [Table(site) for site in sites.tables if len(site.local)]
        self.masked = frozenset(vector for vector in sites.vectors if len(vector.local))

    @contextmanager
    def changed(self, tasks: Sequence[Changes], starts: Sequence[int]) -> Iterator[None]:
        """Every layer that some task changes gives each row its own output, until the end.

        Args:
            tasks: of the pass.
            starts: the first row of each, and after the last the number of rows.

        Raises:
            MismatchError: at the end, where one of these layers was not called: its changes are in no answer.
        """
        running = _Pass(self, tasks, starts)
        forwards = running.forwards()
        try:
            for module, forward in forwards.items():
                vars(module)["forward"] = forward  # as by assignment, without what torch does beside
            yield
            if missing := [type(module).__name__ for module in forwards if module not in running.called]:
                raise MismatchError(
                    f"{len(missing)} layers that a task changes took no part in the pass, {missing[0]} first",
                    expected=f"{len(forwards)} layers", hint="tasks of this architecture can only be swapped in",
                )  # fmt: skip
        finally:
            for module in forwards:
                vars(module).pop("forward", None)


class _Matrix:
    """A linear layer, with all that is the same in every pass."""

    def __init__(self, site: Site[nn.Linear], pattern: Pattern | None, bias: Vector | None) -> None:
        module = site.module
        self.module = module
        self.name = site.name
        self.pattern = pattern
        self.vector = bias
        self.weight = module.weight.detach()
        self.transposed = self.weight.t()
        self.bias = None if module.bias is None else module.bias.detach()
        self.outputs, self.inputs = self.weight.shape


class _Pass:
    def __init__(self, layers: Layers, tasks: Sequence[Changes], starts: Sequence[int]) -> None:
        self.layers = layers
        self.tasks = tasks
        self.starts = starts
        self.rows = starts[-1]
        self.called: set[nn.Module] = set()
        self.values = [task.values for task in tasks]
        self.masked = any(values is not None for values in self.values)
        plain = {(name, number) for number, task in enumerate(tasks) for name in task.factors}
        self.products: Batch | None = layers.products.batch(self.values, starts, plain) if self.masked else None

    def forwards(self) -> dict[nn.Module, Forward]:
        layers = self.layers
        own = set(layers.masked) if self.masked else set()
        own = own.union(*(task.vectors for task in self.tasks))
        lines = self.lines() if own else None
        factors = {name for task in self.tasks for name in task.factors}
        found: dict[nn.Module, Forward] = {}
        for matrix in layers.matrices:
            pattern = matrix.pattern if self.masked else None
            vector = matrix.vector
            biases = lines[:, vector.at] if lines is not None and vector is not None and vector in own else None
            if pattern is not None or biases is not None or matrix.name in factors:
                low_rank = self.low_rank(matrix.name) if matrix.name in factors else ()
                found[matrix.module] = partial(self.linear, matrix, pattern, biases, low_rank)
        norms: dict[nn.Module, dict[str, torch.Tensor]] = {}
        for vector in own:
            if lines is not None and vector.module not in found:
                norms.setdefault(vector.module, {})[vector.parameter] = self.of_rows(lines[:, vector.at])
        found |= {module: partial(self.norm, module, changed) for module, changed in norms.items()}
        if self.masked:
            found |= {table.module: partial(self.look_up, table) for table in layers.tables}
        return found

    def lines(self) -> torch.Tensor:
        """All vectors of each task, (tasks, width)."""
        sites = self.layers.sites
        lines = sites.line.repeat(len(self.tasks), 1)
        masked = [number for number, task in enumerate(self.tasks) if task.masked is not None]
        if masked:
            values = torch.stack([task.masked for task in self.tasks if task.masked is not None])
            lines[torch.tensor(masked, device=lines.device)[:, None], sites.masked_line[1]] = values
        for number, task in enumerate(self.tasks):
            if task.line is not None:  # dense tensors win over values, as in a swap
                assert task.given is not None
                line = lines[number]
                line.copy_(task.line if task.masked is None else torch.where(task.given, task.line, line))
        return lines

    def of_rows(self, lines: torch.Tensor) -> torch.Tensor:
        """From one for each task to one for each row."""
        if len(self.tasks) == self.rows:
            return lines
        counts = torch.tensor([stop - start for start, stop in pairwise(self.starts)], device=lines.device)
        return lines.repeat_interleave(counts, 0, output_size=self.rows)

    def low_rank(self, name: str) -> list[tuple[slice, torch.Tensor, torch.Tensor]]:
        return [
            (slice(self.starts[number], self.starts[number + 1]), *task.factors[name])
            for number, task in enumerate(self.tasks)
            if name in task.factors
        ]

    def linear(
        self, matrix: _Matrix, pattern: Pattern | None, biases: torch.Tensor | None,
        factors: Sequence[tuple[slice, torch.Tensor, torch.Tensor]], states: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """``biases`` are (tasks, out), ``factors`` the rows, ``up`` and ``down`` of the tasks that have some."""
        self.called.add(matrix.module)
        check_rows(matrix.module, states, self.rows)
        flat = states.reshape(-1, matrix.inputs)
        if biases is not None and pattern is None:
            out = flat.new_empty(flat.shape[0], matrix.outputs)
            out.view(self.rows, -1, matrix.outputs).copy_(self.of_rows(biases)[:, None])
            out.addmm_(flat, matrix.transposed)
        else:
            out = functional.linear(flat, matrix.weight, matrix.bias if biases is None else None)
        if pattern is not None:
            assert self.products is not None
            self.products.add(pattern, flat.contiguous(), out, biases)
        tokens = flat.shape[0] // self.rows
        for rows, up, down in factors:
            mine = slice(rows.start * tokens, rows.stop * tokens)
            out[mine].addmm_(flat[mine] @ down.t(), up.t())
        return out.view(*states.shape[:-1], matrix.outputs)

    def norm(self, module: nn.Module, changed: Mapping[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        """``changed`` are (rows, n), by parameter."""
        self.called.add(module)
        check_rows(module, states, self.rows)
        between = (1,) * (states.ndim - 2)
        own = {name: rows.view(self.rows, *between, -1) for name, rows in changed.items()}
        if not isinstance(module, nn.LayerNorm):
            return weighted(module, own["weight"], states)
        shape, bias = module.normalized_shape, own.get("bias", module.bias)
        if "weight" not in own:
            assert bias is not None
            return functional.layer_norm(states, shape, module.weight, None, module.eps).add_(bias)
        plain = functional.layer_norm(states, shape, eps=module.eps)
        return plain.mul_(own["weight"]) if bias is None else torch.addcmul(bias, plain, own["weight"])

    def look_up(self, table: Table, numbers: torch.Tensor) -> torch.Tensor:
        self.called.add(table.module)
        return table.look_up(self.values, self.starts, numbers)


def check_rows(module: nn.Module, states: torch.Tensor, rows: int) -> None:
    """Raises MismatchError unless ``states`` are (rows, ...)."""
    if states.shape[:1] != (rows,):
        raise MismatchError(
            f"{type(module).__name__} was given {tuple(states.shape)}", expected=f"the {rows} rows of the batch",
            hint="tasks of this architecture can only be swapped in",
        )  # fmt: skip

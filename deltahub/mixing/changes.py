"""What one task changes in a mixed pass, found once when it is admitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from deltahub.delta import Delta
from deltahub.errors import MismatchError
from deltahub.fit import adapted
from deltahub.mixing.sites import Sites, Vector


@dataclass(frozen=True, eq=False)
class Changes:
    """What one task changes; all tensors on the resident's device.

    Attributes:
        values: (k,) those of the delta, where they are if the device is the CPU.
        masked: (m,) those of ``values`` that fall in vectors.
        line: (width,) all vectors, for a task that has dense ones; those of the base where it has none.
        given: (width,) bool, which of ``line`` are the task's own.
        vectors: these.
        factors: ``up`` (out, r) and ``down`` (r, in) by base tensor.
    """

    values: torch.Tensor | None
    masked: torch.Tensor | None
    line: torch.Tensor | None
    given: torch.Tensor | None
    vectors: frozenset[Vector]
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def nbytes(self) -> int:
        """Memory that is kept beside the delta's own."""
        kept = [tensor for tensor in (self.masked, self.line, self.given) if tensor is not None]
        if self.values is not None and self.values.device.type != "cpu":
            kept.append(self.values)
        return sum(tensor.nbytes for tensor in kept)


def of(delta: Delta, sites: Sites) -> Changes:
    """What ``delta``, which fits the resident, changes.

    Raises:
        MismatchError: it changes what rows cannot differ in.
    """
    vectors = {vector.name: vector for vector in sites.vectors}
    matrices = {site.name: site for site in sites.matrices}
    places = list(sites.masked_elsewhere) if delta.values is not None else []
    places += [name for name in delta.dense if name not in vectors]
    places += [name for name in adapted(delta) if name not in matrices]
    if places:
        raise MismatchError(
            f"{delta.task} changes {', '.join(places[:3])}, in which the rows of a pass cannot differ",
            expected="masked or low-rank changes of linear layers, masked ones of embeddings, biases and norms",
            hint="it can only be swapped in",
        )
    base = sites.line
    line = given = None
    if delta.dense:
        line, given = base.clone(), torch.zeros_like(base, dtype=torch.bool)
        for name, tensor in delta.dense.items():
            line[vectors[name].at] = tensor.to(line)
            given[vectors[name].at] = True
    factors = {}
    for name in adapted(delta):
        weight = matrices[name].tensor
        factors[name] = (delta.adapter[f"{name}.up"].to(weight), delta.adapter[f"{name}.down"].to(weight))
    values = None if delta.values is None else delta.values.to(base.device)
    return Changes(
        values=values, masked=None if values is None else values[sites.masked_line[0]].to(base.dtype),
        line=line, given=given, vectors=frozenset(vectors[name] for name in delta.dense), factors=factors,
    )  # fmt: skip

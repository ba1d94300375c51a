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
        sites: where that is.
        values: (k,) those of the delta in the dtype of the sites, where they are if device and dtype are theirs.
        masked: (m,) those of ``values`` that fall in vectors.
        line: (width,) all vectors, for a task that has dense ones; those of the base where it has none.
        given: (width,) bool, which of ``line`` are the task's own.
        vectors: these.
        factors: ``up`` (out, r) and ``down`` (r, in) by base tensor.
        nbytes: memory that is kept beside the delta's own.
    """

    sites: Sites
    values: torch.Tensor | None
    masked: torch.Tensor | None
    line: torch.Tensor | None
    given: torch.Tensor | None
    vectors: frozenset[Vector]
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    nbytes: int


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
    factors, copies = {}, [line, given]
    for name in adapted(delta):
        weight = matrices[name].tensor
        own = delta.adapter[f"{name}.up"], delta.adapter[f"{name}.down"]
        factors[name] = own[0].to(weight), own[1].to(weight)
        copies += [made for made, mine in zip(factors[name], own, strict=True) if made is not mine]
    values = masked = None
    if (whole := delta.values) is not None:
        values = whole.to(base)
        masked = values[sites.masked_line[0]]
        copies += [masked, None if values is whole else values]
    return Changes(
        sites=sites, values=values, masked=masked, line=line, given=given,
        vectors=frozenset(vectors[name] for name in delta.dense), factors=factors,
        nbytes=sum(tensor.nbytes for tensor in copies if tensor is not None),
    )  # fmt: skip

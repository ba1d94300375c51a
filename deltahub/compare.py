"""How two tasks differ, and where a mask's budget went."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.errors import MismatchError
from deltahub.mask import Mask
from deltahub.space import SpaceTensor

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LayerDifference:
    """One tensor's masked values in two tasks; cosine and signs are those of their changes from the base."""

    tensor: str
    values: int
    cosine: float
    sign_agreement: float
    distance: float


@dataclass(frozen=True)
class Difference:
    """Two tasks compared.

    Attributes:
        values: k.
        equal: values with the same bits in both.
        moved: values of A and of B that differ from the base.
        cosine: between the two changes from the base, in [-1, 1]; 0 where one of them is zero.
        sign_agreement: share of values moved by both that moved in the same direction.
        distance: Euclidean distance of the values.
        layers: by descending distance.
        dense: whole tensors that differ or that only one of them has.
        head: the same for the heads.
    """

    a: str
    b: str
    values: int
    equal: int
    moved: tuple[int, int]
    cosine: float
    sign_agreement: float
    distance: float
    layers: tuple[LayerDifference, ...]
    dense: tuple[str, ...]
    head: tuple[str, ...]


def diff(base: Base, a: Delta, b: Delta, mask: Mask | None = None) -> Difference:
    """Raises MismatchError unless both belong to ``base`` and to one mask."""
    for delta in (a, b):
        delta.check_base(base.ref)
    if a.manifest.mask != b.manifest.mask:
        raise MismatchError(f"{a.task} and {b.task} have different masks", hint="only aligned tasks can be compared")
    changed = [
        tuple(
            sorted(
                name for name in {**a.raw(group), **b.raw(group)} if a.raw(group).get(name) != b.raw(group).get(name)
            )
        )
        for group in ("dense", "head")
    ]
    if a.manifest.mask is None:
        return Difference(a.task, b.task, 0, 0, (0, 0), 0.0, 0.0, 0.0, (), changed[0], changed[1])
    mask = Mask.resolve(base, a.manifest.mask, mask)
    own = base.gather(mask.indices)
    left, right, ours = (raw.float32().astype(np.float64) for raw in (a.tensors["values"], b.tensors["values"], own))
    layers = [_layer(tensor, left[part], right[part], ours[part]) for tensor, part in base.space.split(mask.indices)]
    whole = _layer(base.space.tensors[0], left, right, ours)
    bits = [raw.bits for raw in (a.tensors["values"], b.tensors["values"], own)]
    return Difference(
        a.task, b.task, mask.k, int((bits[0] == bits[1]).sum()),
        (int((bits[0] != bits[2]).sum()), int((bits[1] != bits[2]).sum())),
        whole.cosine, whole.sign_agreement, whole.distance,
        tuple(sorted(layers, key=lambda layer: -layer.distance)), changed[0], changed[1],
    )  # fmt: skip


def _layer(tensor: SpaceTensor, a: Vector, b: Vector, own: Vector) -> LayerDifference:
    moves = a - own, b - own
    norms = float(np.linalg.norm(moves[0]) * np.linalg.norm(moves[1]))
    both = (moves[0] != 0) & (moves[1] != 0)
    agree = np.sign(moves[0][both]) == np.sign(moves[1][both])
    return LayerDifference(
        tensor.name, len(a), float(moves[0] @ moves[1]) / norms if norms else 0.0,
        float(agree.mean()) if len(agree) else 0.0, float(np.linalg.norm(a - b)),
    )  # fmt: skip


@dataclass(frozen=True)
class Share:
    """A group of like tensors (numbers in names replaced by ``*``) and its part of the mask's budget."""

    group: str
    role: str
    tensors: int
    parameters: int
    masked: int
    zeros: int

    @property
    def density(self) -> float:
        return self.masked / self.parameters


def budget(base: Base, mask: Mask) -> list[Share]:
    """Where the mask's positions lie, by descending count; ``zeros`` of them are exactly zero in the base."""
    mask.check_base(base)
    parts = {tensor.name: part for tensor, part in base.space.split(mask.indices)}
    rows: dict[str, list[Share]] = {}
    for tensor in base.space.tensors:
        part = parts.get(tensor.name)
        masked, zeros = 0, 0
        if part is not None:
            masked = part.stop - part.start
            raw = base.read(tensor.name)
            zeros = int((raw.float32()[mask.indices[part] - tensor.offset] == 0).sum())
        group = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", tensor.name)
        rows.setdefault(group, []).append(Share(group, tensor.role, 1, tensor.size, masked, zeros))
    return sorted((_sum(shares) for shares in rows.values()), key=lambda share: (-share.masked, share.group))


def _sum(shares: Sequence[Share]) -> Share:
    return Share(
        shares[0].group, shares[0].role, len(shares), sum(share.parameters for share in shares),
        sum(share.masked for share in shares), sum(share.zeros for share in shares),
    )  # fmt: skip

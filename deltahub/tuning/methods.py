"""What a training method may change. To add one, add a line to METHODS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltahub.errors import MismatchError, UsageError
from deltahub.mask import Mask

if TYPE_CHECKING:
    from torch import nn

    from deltahub.checkpoint import Base
    from deltahub.resident import Resident


@dataclass(frozen=True)
class Method:
    """A training method; the head is trained by each of them.

    Attributes:
        about: one line for people.
        recipe: of the mask whose values are trained; None where the method trains no values.
        biases: whether every bias of the backbone is trained, as dense tensors.
    """

    about: str
    recipe: str | None = None
    biases: bool = False


METHODS = {
    "pafi": Method("the k parameters of smallest magnitude (Liao et al., ACL 2023)", recipe="smallest-magnitude"),
    "random": Method("k parameters chosen at random, the baseline of pafi", recipe="random"),
    "bitfit": Method("all biases of the backbone (Ben Zaken et al., ACL 2022)", biases=True),
    "head": Method("the head alone, on the frozen base"),
}


def method_named(name: str) -> Method:
    if name not in METHODS:
        raise UsageError(f"method {name!r}", expected=f"one of {', '.join(METHODS)}")
    return METHODS[name]


def mask_for(name: str, base: Base, mask: Mask | None) -> Mask | None:
    """The mask that method ``name`` trains on: the given one if it may be, else one of the method's recipe at 0.5 %.

    Raises:
        UsageError: an unknown method, or one that has no use for ``mask``.
        MismatchError: ``mask`` belongs to another base.
    """
    method = method_named(name)
    if mask is None:
        return Mask.build(base, recipe=method.recipe) if method.recipe else None
    if method.recipe is None:
        raise UsageError(f"method {name!r} trains no values", hint="leave the mask away, or choose pafi")
    if method.recipe != (found := mask.recipe.get("name")) and "random" in (method.recipe, found):
        raise UsageError(f"the mask for method {name!r}", expected=f"recipe {method.recipe}", got=found)
    mask.check_base(base)
    return mask


def biases(resident: Resident) -> dict[str, nn.Parameter]:
    """All one-dimensional biases that the module holds, by their name in the base.

    Raises:
        MismatchError: there are none, or the module fuses some of them into one.
    """
    from torch import nn

    found = {}
    for place in resident.binding.placements:
        if place.sources[0].endswith("bias") and place.tensor.ndim == 1 and isinstance(place.tensor, nn.Parameter):
            if place.trace is not None:
                raise MismatchError(f"{place.name} is made of several biases of the base", hint="train with pafi")
            found[place.sources[0]] = place.tensor
    if not found:
        raise MismatchError(f"{resident.base.id} has no biases", hint="train with pafi")
    return found

"""From the name of a method to what it trains of a bound model: a mask, whole tensors, tensors with an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltahub.checkpoint import Base
from deltahub.errors import MismatchError, UsageError
from deltahub.manifest import REBUILDABLE
from deltahub.mask import Mask
from deltahub.resident import Resident
from deltahub.tuning import tensors
from deltahub.tuning.methods import methods_named, recipe_of
from deltahub.tuning.tensors import Tensors

_PLURAL = {"bias": "biases", "weight": "weights"}


@dataclass(frozen=True)
class Adapters:
    """How `hiwi` and `hiwi-weight` adapt.

    Attributes:
        bottleneck: r, the adapter's inner size.
        activation: ``gelu``, ``relu`` or ``tanh``.
        layers: globs of base tensor names, such as ``("encoder.layer.[0-2].*",)``.
        seed: of the adapter's first values.
    """

    bottleneck: int = 16
    activation: str = "gelu"
    layers: Sequence[str] = ("*",)
    seed: int = 0


@dataclass(frozen=True)
class Choice:
    """What a method trains beside the mask's values and the head.

    Attributes:
        whole: tensors trained whole, by their name in the base.
        adapted: tensors with an adapter.
        notes: what could not be done as asked, a line each.
    """

    whole: Tensors = field(default_factory=dict)
    adapted: Tensors = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def mask_for(method: str, base: Base, mask: Mask | None) -> Mask | None:
    """The mask that ``method`` trains on: the given one if it may be, else one of the method's recipe at 0.5 %.

    Raises:
        UsageError: an unknown method, one that has no use for ``mask``, or one whose mask must be given.
        MismatchError: ``mask`` belongs to another base.
    """
    recipe = recipe_of(method)
    if mask is not None:
        if recipe is None:
            raise UsageError(f"method {method!r} trains no values", hint="leave the mask away, or choose pafi")
        if (found := mask.recipe.get("name")) not in (recipe, "file"):
            raise UsageError(f"the mask for method {method!r}", expected=f"recipe {recipe}", got=found)
        mask.check_base(base)
        return mask
    if recipe is not None and recipe not in REBUILDABLE:
        how = "--recipe gradient --texts FILE" if recipe == "gradient" else f"--recipe {recipe}"
        raise UsageError(
            f"method {method!r} needs its mask, which nothing can make again",
            hint=f"make one with `deltahub mask build BASE {how} -o FILE` and share it among all tasks",
        )
    return Mask.build(base, recipe=recipe) if recipe else None


def choose(resident: Resident, names: str, adapters: Adapters) -> Choice:
    """What the methods ``names`` train of the module that ``resident`` binds.

    Raises:
        UsageError: parts that would train one tensor twice.
        MismatchError: the module has nothing that a method trains.
    """
    made = Choice()
    for method in methods_named(names):
        found = getattr(tensors, method.whole)(resident) if method.whole else {}
        _disjoint(names, made.whole, found)
        made.whole.update(found)
        if method.hiwi:
            _add_adapted(made, resident, method.hiwi, adapters)
    _disjoint(names, made.whole, made.adapted)
    mask = resident.mask
    matrices = {name for name, tensor in made.adapted.items() if tensor.ndim == 2}
    masked = [tensor.name for tensor, _ in resident.base.space.split(mask.indices)] if mask and matrices else []
    if clash := sorted(matrices.intersection(masked)):
        raise UsageError(
            f"method {names!r} would train {clash[0]} twice, by mask and by adapter",
            hint="build the mask with --exclude for the feed-forward weights, or use hiwi, which is on biases",
        )
    return made


def _add_adapted(made: Choice, resident: Resident, what: str, adapters: Adapters) -> None:
    """Feed-forward tensors for the adapter; biases of zeros, on which it has no gradient, are trained whole."""
    found = tensors.feed_forward(resident, what, adapters.layers)
    if what == "bias" and not found:
        made.notes.append(f"{resident.base.id} has no feed-forward biases: the adapter works on the weights instead")
        what, found = "weight", tensors.feed_forward(resident, "weight", adapters.layers)
    if not found:
        raise MismatchError(f"{resident.base.id} has no feed-forward {_PLURAL[what]}", hint="train with pafi")
    zero = {name: tensor for name, tensor in found.items() if not bool(tensor.detach().any())}
    if zero:
        made.notes.append(
            f"{len(zero)} feed-forward {_PLURAL[what]} are zero in the base, where an adapter has no gradient: "
            "they are trained directly"
        )
    _disjoint("hiwi", made.whole, zero)
    made.whole.update(zero)
    made.adapted.update({name: tensor for name, tensor in found.items() if name not in zero})


def _disjoint(method: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    if both := sorted(set(left) & set(right)):
        raise UsageError(f"method {method!r} would train {both[0]} twice", expected="parts that share no tensor")

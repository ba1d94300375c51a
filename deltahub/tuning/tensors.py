"""Which tensors of a bound model a method means: biases, norms, the biases and weights of the feed-forward layers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from deltahub.binding import Placement
from deltahub.errors import MismatchError, UsageError
from deltahub.names import names_like
from deltahub.resident import Resident

Tensors = dict[str, nn.Parameter]
"""Parameters of the module by their name in the base."""

_FEED_FORWARD = re.compile(
    r".*\.(mlp|ffn|ffn_output|feed_forward|feedforward|densereludense|fc1|fc2|lin1|lin2|experts?)(\..+)?"
    r"\.(weight|bias)|(?!.*attention).*\.(intermediate|output)\.dense\.(weight|bias)|.*\.layer\.1\.\w*densereludense.*",
    re.IGNORECASE,
)
_NOT_FEED_FORWARD = re.compile(r".*(norm|\.ln_\d|\.router|\.gate\.(weight|bias)).*", re.IGNORECASE)


def biases(resident: Resident) -> Tensors:
    """Every one-dimensional bias, BitFit's choice."""
    return _named(resident, [place for place in _vectors(resident) if place.sources[0].endswith("bias")], "biases")


def norms(resident: Resident) -> Tensors:
    """Weights and biases of all LayerNorm and RMSNorm modules."""
    modules = {
        id(parameter)
        for module in resident.module.modules()
        if type(module).__name__.endswith(("LayerNorm", "RMSNorm", "LayerNormalization"))
        for parameter in module.parameters(recurse=False)
    }
    return _named(resident, [place for place in _vectors(resident) if id(place.tensor) in modules], "norms")


def everything(resident: Resident) -> Tensors:
    """Every parameter that the module holds of the base."""
    return _named(
        resident, [p for p in resident.binding.placements if isinstance(p.tensor, nn.Parameter)], "parameters"
    )


def feed_forward(resident: Resident, what: str, layers: Sequence[str] = ("*",)) -> Tensors:
    """The feed-forward layers' biases or weights.

    Args:
        what: ``"bias"`` or ``"weight"``.
        layers: globs of base tensor names; a tensor must match one of them.

    Raises:
        UsageError: a glob that matches no feed-forward tensor.
        MismatchError: the module fuses several of them into one. None at all is an empty result.
    """
    found = {}
    for place in resident.binding.placements:
        name = place.sources[0]
        if (
            isinstance(place.tensor, nn.Parameter)
            and name.rpartition(".")[2] == what
            and place.tensor.ndim == (1 if what == "bias" else 2)
            and _FEED_FORWARD.fullmatch(name)
            and not _NOT_FEED_FORWARD.fullmatch(name)
        ):
            found[name] = place
    chosen: set[str] = set()
    for pattern in layers:
        if not (matches := names_like(pattern, list(found))) and found:
            raise UsageError(
                f"layers {pattern!r} match no feed-forward {what}",
                expected=f"a glob over names like {next(iter(found))!r}",
            )
        chosen.update(matches)
    return _named(resident, [place for name, place in found.items() if name in chosen], "") if chosen else {}


def _vectors(resident: Resident) -> list[Placement]:
    return [
        place
        for place in resident.binding.placements
        if isinstance(place.tensor, nn.Parameter) and place.tensor.ndim == 1
    ]


def _named(resident: Resident, places: Sequence[Placement], what: str) -> Tensors:
    for place in places:
        if place.trace is not None:
            raise MismatchError(f"{place.name} is made of several tensors of the base", hint="train with pafi")
    if not places:
        raise MismatchError(f"{resident.base.id} has no {what}", hint="train with pafi")
    return {place.sources[0]: place.tensor for place in places}  # type: ignore[misc]

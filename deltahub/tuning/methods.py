"""What each training method may change. To add one, add a line to METHODS; `a+b` trains what a and b train.

Every method trains the head too. Nothing here imports torch: the command line lists the methods in its help.
"""

from __future__ import annotations

from dataclasses import dataclass

from deltahub.errors import UsageError


@dataclass(frozen=True)
class Method:
    """A training method.

    Attributes:
        about: one line for people.
        mask: recipe of the mask whose values are trained; None where the method trains no values.
        whole: function of `tensors` that names the tensors that are trained whole and stored as ``dense``.
        hiwi: ``"bias"`` or ``"weight"`` of the feed-forward layers, for the adapter of `hiwi`.
        lr: learning rate that suits it, where nothing else is known.
    """

    about: str
    lr: float
    mask: str | None = None
    whole: str | None = None
    hiwi: str | None = None


METHODS = {
    "pafi": Method("the k parameters of smallest magnitude (Liao et al., ACL 2023)", 1e-2, mask="smallest-magnitude"),
    "random": Method("k parameters chosen at random, the baseline of pafi", 3e-3, mask="random"),
    "gradient": Method(
        "k parameters that move the hidden states of some text most, chosen once", 1e-3, mask="gradient"
    ),
    "lift": Method("k largest entries of low-rank approximations of the weights, chosen at step 0", 1e-3, mask="lift"),
    "hiwi": Method("an adapter on the feed-forward biases, stored as new biases (Liao et al.)", 3e-3, hiwi="bias"),
    "hiwi-weight": Method(
        "an adapter on the feed-forward weights, stored as its low-rank factors", 1e-3, hiwi="weight"
    ),
    "bitfit": Method("all biases (Ben Zaken et al., ACL 2022)", 3e-3, whole="biases"),
    "layernorm": Method("weights and biases of all norms", 3e-3, whole="norms"),
    "head": Method("the head alone, on the frozen base", 0.0),
    "full": Method("every parameter, stored whole: the costly yardstick", 1e-4, whole="everything"),
}


def methods_named(names: str) -> tuple[Method, ...]:
    """The methods in ``"pafi"`` or ``"hiwi+pafi"``.

    Raises:
        UsageError: an unknown name, one twice, or two that train masked values.
    """
    parts = names.split("+")
    for part in parts:
        if part not in METHODS:
            raise UsageError(f"method {part!r}", expected=f"one of {', '.join(METHODS)}, or some joined by +")
    found = tuple(METHODS[part] for part in parts)
    if len(set(parts)) < len(parts):
        raise UsageError(f"method {names!r}", expected="each part once")
    if sum(method.mask is not None for method in found) > 1:
        raise UsageError(f"method {names!r}", expected="one mask", got="two methods that each train a mask's values")
    return found


def recipe_of(names: str) -> str | None:
    """The recipe of the mask that the method needs, if it needs one."""
    return next((method.mask for method in methods_named(names) if method.mask), None)

"""What is compared: a row for each method, with the learning rates that are tried for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from deltahub.errors import DeltahubError, UsageError
from deltahub.tuning.methods import methods_named

HEAD_LR = 5e-3
LADDER = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
MOST_RATES = 5
"""A search goes on beyond the end of a row's rates while the best one is at the end, up to this many in all."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: how the command line and the table call it.
        about: one line for people.
        rates: learning rates tried on each task, neighbours on LADDER.
        method: as in `deltahub.train`; None where PEFT trains.
        peft: ``lora`` or ``shira``, and in which layers: ``qv`` or ``all``.
        head: style of the head.
        must: one of those that run first.
    """

    name: str
    about: str
    rates: tuple[float, ...]
    method: str | None = None
    peft: tuple[str, str] | None = None
    head: str = "native"
    must: bool = False

    @property
    def rates_head(self) -> bool:
        """Whether the rates are the head's, as there is nothing else to train."""
        return self.method == "head"


def _own(name: str, about: str, rates: tuple[float, ...], *, must: bool = False, head: str = "native") -> Row:
    return Row(name if head == "native" else f"{name} {head} head", about, rates, name, head=head, must=must)


ROWS = {
    row.name: row
    for row in (
        _own("pafi", "0.5 % smallest magnitudes", (3e-3, 1e-2, 3e-2), must=True),
        _own("full", "every parameter", (3e-5, 1e-4, 3e-4), must=True),
        Row("lora-all", "PEFT LoRA r=8 on all linear layers", (1e-3, 3e-3, 1e-2), peft=("lora", "all"), must=True),
        _own("hiwi", "adapter on feed-forward biases", (3e-3, 1e-2, 3e-2), must=True),
        _own("bitfit", "all biases", (1e-3, 3e-3, 1e-2), must=True),
        _own("head", "the head alone", (3e-3, 1e-2, 3e-2), must=True),
        _own("random", "0.5 % at random", (1e-3, 3e-3, 1e-2), must=True),
        Row("lora-qv", "PEFT LoRA r=8 on query and value", (1e-3, 3e-3, 1e-2), peft=("lora", "qv")),
        _own("gradient", "0.5 % largest gradients on unlabelled text", (1e-3, 3e-3, 1e-2)),
        _own("hiwi-weight", "adapter on feed-forward weights", (1e-3, 3e-3, 1e-2)),
        _own("hiwi+pafi", "both", (3e-3, 1e-2, 3e-2)),
        _own("lift", "0.5 % largest of low-rank parts", (3e-4, 1e-3, 3e-3)),
        _own("layernorm", "weights and biases of the norms", (1e-3, 3e-3, 1e-2)),
        Row("shira-all", "PEFT SHiRA, random, about as many values", (1e-3, 3e-3, 1e-2), peft=("shira", "all")),
        _own("pafi", "one linear layer", (3e-3, 1e-2, 3e-2), head="linear"),
        _own("pafi", "inner layers fixed and shared", (3e-3, 1e-2, 3e-2), head="shared"),
    )
}
HEADS = ("pafi", "pafi linear head", "pafi shared head")
METHODS = tuple(name for name, row in ROWS.items() if row.head == "native")


def chosen(names: Sequence[str]) -> list[Row]:
    """The rows of these names in the table's order.

    Raises:
        UsageError: a name that is none.
    """
    if unknown := [name for name in names if name not in ROWS]:
        raise UsageError(f"method {unknown[0]!r}", expected=f"one of {', '.join(ROWS)}")
    return [row for name, row in ROWS.items() if name in names]


def is_there(row: Row) -> bool:
    """Whether this deltahub has the row's method."""
    try:
        return row.method is None or bool(methods_named(row.method))
    except DeltahubError:
        return False


def next_rate(best: float, tried: Collection[float]) -> float | None:
    """The rate to try next where ``best`` is the lowest or highest of those tried; None where the search is over."""
    if len(tried) >= MOST_RATES:
        return None
    step = 1 if best == max(tried) else -1 if best == min(tried) else 0
    place = LADDER.index(best) + step
    return LADDER[place] if step and 0 <= place < len(LADDER) else None

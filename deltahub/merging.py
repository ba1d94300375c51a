"""Arithmetic on tasks: all of them are vectors over the same positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deltahub.delta import Delta
from deltahub.errors import MismatchError, UsageError
from deltahub.names import check_task
from deltahub.rawtensor import RawTensor, narrow

METHODS = ("average",)


def merge(
    deltas: Sequence[Delta],
    *,
    weights: Sequence[float] | None = None,
    method: str = "average",
    task: str | None = None,
    head: str | None = None,
) -> Delta:
    """Combines tasks of one base and mask into one.

    ``average`` is the weighted mean of the parameters: since values replace parameters, that is the base plus the
    weighted mean of the changes. Computed in fp64, rounded once.

    Args:
        weights: one per delta, of sum 1; equal by default.
        task: name of the result; the names joined with ``-`` by default.
        head: task whose head the result keeps. Without it the heads are averaged too, which needs equal labels.

    Raises:
        MismatchError: different bases, masks, dense tensors, adapters, or heads that cannot be averaged.
        UsageError: no delta, weights that do not fit, an unknown method or head.
    """
    if not deltas:
        raise UsageError("merge", expected="at least one delta", got="none")
    if method not in METHODS:
        raise UsageError(f"method {method!r}", expected=" or ".join(METHODS))
    shares = [1 / len(deltas)] * len(deltas) if weights is None else list(weights)
    if len(shares) != len(deltas) or abs(sum(shares) - 1) > 1e-6:
        raise UsageError("weights", expected=f"{len(deltas)} numbers of sum 1", got=shares)
    first = deltas[0]
    for other in deltas[1:]:
        _check_pair(first, other)
    owner = _owner(deltas, head)
    tensors = {
        name: _mean([delta.tensors[name] for delta in deltas], shares)
        for name in first.tensors
        if not name.startswith("head.")
    }
    if owner is not None:
        tensors |= {name: raw for name, raw in owner.tensors.items() if name.startswith("head.")}
    else:
        tensors |= _averaged_heads(deltas, shares)
    parents = [f"{delta.task} {delta.digest[:16]}" for delta in deltas]
    manifest = replace(
        (owner or first).manifest,
        task=check_task(task or "-".join(delta.task for delta in deltas)[:100].strip("-._")),
        method={"name": "merge", "how": method, "weights": list(shares), "of": list(parents)},
        metrics={},
        parent=None,
        quantization={},
    )
    return Delta(manifest, tensors)


def _check_pair(first: Delta, other: Delta) -> None:
    if other.manifest.base.digest != first.manifest.base.digest or other.manifest.mask != first.manifest.mask:
        raise MismatchError(
            f"{other.task} and {first.task} are not aligned", expected="one base and one mask for all",
            hint="retrain one of them on the other's mask",
        )  # fmt: skip
    here, there = ({name for name in delta.tensors if not name.startswith("head.")} for delta in (first, other))
    if here != there:
        raise MismatchError(
            f"{other.task} and {first.task}", expected="the same dense tensors", got=sorted(here ^ there)[:3]
        )
    if any(name.startswith("adapter.") for name in here):
        raise MismatchError(f"{first.task} has low-rank factors, whose mean is not the mean of what they make")


def _owner(deltas: Sequence[Delta], head: str | None) -> Delta | None:
    if head is None:
        return None
    for delta in deltas:
        if delta.task == head:
            return delta
    raise UsageError(f"head {head!r}", expected=f"one of {', '.join(delta.task for delta in deltas)}")


def _averaged_heads(deltas: Sequence[Delta], shares: Sequence[float]) -> dict[str, RawTensor]:
    first = deltas[0]
    shapes = [{name: (raw.dtype, raw.shape) for name, raw in delta.raw("head").items()} for delta in deltas]
    if any(shape != shapes[0] for shape in shapes) or any(d.manifest.labels != first.manifest.labels for d in deltas):
        raise MismatchError(
            "the heads cannot be averaged",
            expected="equal labels and shapes",
            hint="name the one to keep with --head TASK",
        )
    names = [name for name in first.tensors if name.startswith("head.")]
    return {name: _mean([delta.tensors[name] for delta in deltas], shares) for name in names}


def _mean(parts: Sequence[RawTensor], shares: Sequence[float]) -> RawTensor:
    total = np.zeros(parts[0].size, np.float64)
    for part, share in zip(parts, shares, strict=True):
        if (part.dtype, part.shape) != (parts[0].dtype, parts[0].shape):
            raise MismatchError("tensors to merge", expected=f"{parts[0].dtype} {parts[0].shape}", got=part)
        total += share * part.float32().astype(np.float64)
    dtype = parts[0].dtype
    return RawTensor.of_bits(dtype, parts[0].shape, narrow(total.astype(np.float32), dtype))

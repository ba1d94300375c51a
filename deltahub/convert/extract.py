"""From a fine-tuned model to a delta: exact, or not at all unless the user accepts a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltahub.checkpoint import Base, Progress
from deltahub.convert.finetuned import FineTuned, open_finetuned
from deltahub.delta import Delta
from deltahub.errors import MismatchError, OutsideMaskError, UsageError
from deltahub.manifest import Manifest, Plain
from deltahub.mask import Mask
from deltahub.names import LINEAR_HEAD, names_like
from deltahub.rawtensor import RawTensor, narrow
from deltahub.space import SpaceTensor

if TYPE_CHECKING:
    import torch

_KINDS = {
    "ForSequenceClassification": "text-classification",
    LINEAR_HEAD: "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text-generation",
}


def extract(
    base: Base,
    finetuned: str | Path | torch.nn.Module,
    mask: Mask | None,
    *,
    task: str,
    dense: Sequence[str] = (),
    adapter: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    lossy: bool = False,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    method: Mapping[str, Plain] | None = None,
    metrics: Mapping[str, float] | None = None,
    inputs: Mapping[str, Plain] | None = None,
    licence: str | None = None,
    created: str | None = None,
    progress: Progress | None = None,
) -> Delta:
    """Takes from a fine-tuned model all that differs from its base.

    Args:
        finetuned: a checkpoint (folder, file or model id) or a loaded module.
        mask: positions that the delta can replace; None for a delta of dense tensors and head only.
        dense: globs of base tensors to store whole where they changed (``"*.bias"``).
        adapter: base tensor to fp32 factors ``up`` (out, r) and ``down`` (r, in), where the fine-tuned tensor is
            W + up @ down to the bit; stored in its place.
        lossy: keep what mask and ``dense`` can hold, drop the rest; the manifest's method says what share was lost.
        kind, labels: guessed from the model's config where not given.
        created: ``YYYY-MM-DDTHH:MM:SSZ``; now by default.

    Raises:
        OutsideMaskError: parameters outside the mask changed, and ``lossy`` was not given.
        MismatchError: another architecture, shape or dtype than the base, or a mask of another base.
    """
    if mask is not None:
        mask.check_base(base)
    model = open_finetuned(base, finetuned)
    chosen = _dense_names(base, dense)
    factors = dict(adapter or {})
    split = {tensor.name: part for tensor, part in base.space.split(mask.indices)} if mask is not None else {}
    dtype = base.space.widest(mask.indices) if mask is not None else "F32"
    values = np.empty(mask.k if mask is not None else 0, np.uint32 if dtype == "F32" else np.uint16)
    tensors: dict[str, RawTensor] = {}
    tally = _Tally()
    done = 0
    for tensor in base.space.tensors:
        before = base.read(tensor.name)
        after = _checked(model.read(tensor.name), before, tensor)
        part = split.get(tensor.name)
        local = mask.indices[part] - tensor.offset if mask is not None and part is not None else None
        if local is not None:
            values[part] = after.bits[local] if after.dtype == dtype else narrow(after.float32()[local], dtype)
        if tensor.name in factors:
            tensors |= _factors(tensor.name, before, after, *factors[tensor.name])
        elif tensor.name in chosen:
            if before != after:
                tensors[f"dense.{tensor.name}"] = after.copy()
        else:
            tally.compare(tensor, before, after, local)
        done += tensor.size
        if progress:
            progress(done, base.space.size)
    if tally.outside and not lossy:
        raise tally.refusal()
    if mask is not None:
        tensors["values"] = RawTensor.of_bits(dtype, values.shape, values)
    tensors |= {f"head.{name}": raw.copy() for name, raw in model.head.items()}
    guessed_kind, guessed_labels = _guess(model)
    how: dict[str, Plain] = dict(method or {"name": "extract"})
    if lossy:
        how |= {"lossy": True, "lost_share": tally.lost_share}
    manifest = Manifest(
        task=task,
        kind=kind or guessed_kind,
        base=base.ref,
        mask=mask.ref if mask is not None else None,
        labels=tuple(guessed_labels if labels is None else labels),
        method=how,
        metrics=dict(metrics or {}),
        inputs=dict(inputs or {}),
        backbone_prefix=model.prefix,
        architecture=(model.config.get("architectures") or [None])[0],
        licence=licence,
        created=created or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    return Delta(Manifest.from_json(manifest.to_json()), tensors)


@dataclass
class _Tally:
    """Counts what changed outside, and how much of the whole change (sum of squares) that is."""

    outside: list[tuple[str, int, int]] = field(default_factory=list)
    lost: float = 0.0
    total: float = 0.0

    def compare(
        self, tensor: SpaceTensor, before: RawTensor, after: RawTensor, local: np.ndarray[Any, Any] | None
    ) -> None:
        changed = before.bits != after.bits
        if not changed.any():
            return
        squares = np.square(after.float32().astype(np.float64) - before.float32())
        self.total += float(squares.sum())
        if local is not None:
            changed[local] = False
        if count := int(np.count_nonzero(changed)):
            self.outside.append((tensor.name, count, tensor.size))
            self.lost += float(squares[changed].sum())

    @property
    def lost_share(self) -> float:
        return self.lost / self.total if self.total else 0.0

    def refusal(self) -> OutsideMaskError:
        worst = sorted(self.outside, key=lambda row: -row[1])
        shown = ", ".join(f"{name} ({count:,} of {size:,})" for name, count, size in worst[:3])
        count = sum(row[1] for row in worst)
        return OutsideMaskError(
            f"{count:,} parameters outside the mask changed in {len(worst)} tensors, "
            f"{self.lost_share:.1%} of the whole change (sum of squares); most in {shown}",
            changes=worst,
            hint="train with the mask, list small tensors with --dense 'GLOB', or accept the loss with --lossy",
        )


def _factors(
    name: str, before: RawTensor, after: RawTensor, up: torch.Tensor, down: torch.Tensor
) -> dict[str, RawTensor]:
    from deltahub.dense import low_rank

    if RawTensor.of_torch(low_rank(before.torch(), up, down)) != after:
        raise MismatchError(
            f"{name} of the fine-tuned model", expected="W + up @ down to the bit", got="another tensor"
        )
    return {
        f"adapter.{name}.{part}": RawTensor.of_torch(factor).copy() for part, factor in (("up", up), ("down", down))
    }


def _checked(after: RawTensor | None, before: RawTensor, tensor: SpaceTensor) -> RawTensor:
    if after is None:
        return before
    if (after.dtype, after.shape) != (before.dtype, before.shape):
        raise MismatchError(
            f"{tensor.name} of the fine-tuned model", expected=f"{before.dtype} {before.shape} as in the base",
            got=f"{after.dtype} {after.shape}", hint="save it in the base's dtype, with the base's vocabulary",
        )  # fmt: skip
    return after


def _dense_names(base: Base, patterns: Sequence[str]) -> set[str]:
    names = [tensor.name for tensor in base.space.tensors]
    found: set[str] = set()
    for pattern in patterns:
        if not (matches := names_like(pattern, names)):
            raise UsageError(f"--dense {pattern!r} matches no tensor", expected=f"a glob over names like {names[0]!r}")
        found.update(matches)
    return found


def _guess(model: FineTuned) -> tuple[str, list[str]]:
    architecture = str((model.config.get("architectures") or [""])[0])
    kind = next((kind for suffix, kind in _KINDS.items() if architecture.endswith(suffix)), "other")
    if kind == "other" and not model.head:
        return "embeddings", []
    labels = model.config.get("id2label") or {}
    if kind == "text-classification":
        problem = model.config.get("problem_type")
        if problem == "multi_label_classification":
            kind = "multi-label-classification"
        elif problem == "regression" or len(labels) == 1:
            return "regression", []
    if not kind.endswith("classification"):
        return kind, []
    return kind, [str(labels[key]) for key in sorted(labels, key=int)]

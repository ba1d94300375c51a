"""A fine-tuned model as the base sees it: each base tensor's new bits, and what the base lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltahub.checkpoint import Base
from deltahub.errors import MismatchError
from deltahub.rawtensor import FLOATS, RawTensor

if TYPE_CHECKING:
    import torch

_OPTIONAL = ("pooler", "head", "buffer")
"""Roles that a task model may lack: it left the part out, which is no change."""


@dataclass(frozen=True)
class FineTuned:
    """Attributes:
    read: bits of a base tensor after fine-tuning, None where the model has no place for it.
    head: parameters that the base lacks, by state-dict name.
    prefix: what the model's names have before the base's.
    config: the model's config as a dictionary.
    """

    read: Callable[[str], RawTensor | None]
    head: Mapping[str, RawTensor]
    prefix: str
    config: Mapping[str, Any]


def open_finetuned(base: Base, source: str | Path | torch.nn.Module) -> FineTuned:
    """Raises CheckpointError or MismatchError where ``source`` is no fine-tuned ``base``."""
    if not isinstance(source, str | Path):
        return _of_module(base, source)
    checkpoint = Base.open(source)
    names, prefix = _match(base, checkpoint)
    lacking = [tensor for tensor in base.space.tensors if tensor.name not in names and tensor.role not in _OPTIONAL]
    if lacking:
        return _of_module(base, _load(checkpoint))
    used = set(names.values()) | set(checkpoint.space.aliases)
    head = {
        name: checkpoint.read(name)
        for name, spec in checkpoint.specs.items()
        if spec.dtype in FLOATS and name not in used and name not in names
    }
    return FineTuned(
        lambda name: checkpoint.read(names[name]) if name in names else None, head, prefix, checkpoint.config
    )


def _match(base: Base, checkpoint: Base) -> tuple[dict[str, str], str]:
    """Base tensor to checkpoint tensor by name, where one of them may have every name under a prefix."""
    theirs = checkpoint.specs
    ours = [tensor.name for tensor in base.space.tensors]
    probe = max((tensor for tensor in base.space.tensors if tensor.role == "block"), key=lambda t: t.size, default=None)
    adding = {name.removesuffix(probe.name) for name in theirs if probe and name.endswith(f".{probe.name}")}
    dropping = {probe.name.removesuffix(name) for name in theirs if probe and probe.name.endswith(f".{name}")}
    best: tuple[dict[str, str], str] = ({name: name for name in ours if name in theirs}, "")
    for prefix in sorted(adding):
        found = {name: prefix + name for name in ours if prefix + name in theirs}
        best = max(best, (found, prefix), key=lambda match: len(match[0]))
    for prefix in sorted(dropping):
        found = {name: name.removeprefix(prefix) for name in ours if name.removeprefix(prefix) in theirs}
        best = max(best, (found, ""), key=lambda match: len(match[0]))
    return best


def _load(checkpoint: Base) -> torch.nn.Module:
    """The checkpoint as the transformers class that its config names, for names that only transformers can resolve."""
    import transformers

    from deltahub.backbone import load_backbone, quiet

    wanted = (checkpoint.config.get("architectures") or [""])[0]
    kind: Any = getattr(transformers, wanted, None) if isinstance(wanted, str) and wanted.isidentifier() else None
    if kind is None or not issubclass(kind, transformers.PreTrainedModel):
        backbone: torch.nn.Module = load_backbone(checkpoint)
        return backbone
    with quiet():
        loaded: torch.nn.Module = kind.from_pretrained(checkpoint.path, dtype="auto", local_files_only=True)
    return loaded


def _of_module(base: Base, module: torch.nn.Module) -> FineTuned:
    from deltahub.binding import bind

    binding = bind(module, base)
    absent = [name for name in binding.absent if base.space.by_name[name].role not in _OPTIONAL]
    if absent:
        raise MismatchError(
            f"{type(module).__name__} lacks {len(absent)} tensors of {base.id}", expected=absent[0],
            hint="is it a fine-tuned model of this base?",
        )  # fmt: skip
    state = module.state_dict(keep_vars=True)

    def read(name: str) -> RawTensor | None:
        source = base.space.by_name[name]
        found: np.ndarray[Any, Any] | None = None
        for place in binding.placements:
            if name not in place.sources:
                continue
            raw = RawTensor.of_torch(place.tensor)
            if place.trace is None:
                return raw
            at, local = place.elements(source)
            found = np.empty(source.size, raw.bits.dtype) if found is None else found
            found[local.numpy()] = raw.bits[at.numpy()]
            dtype = raw.dtype
        return None if found is None else RawTensor.of_bits(dtype, source.shape, found)

    head = {name: RawTensor.of_torch(state[name]) for name in binding.own}
    config = getattr(module, "config", None)
    return FineTuned(
        read,
        head,
        binding.prefix,
        {} if config is None else {**config.to_dict(), "architectures": [type(module).__name__]},
    )

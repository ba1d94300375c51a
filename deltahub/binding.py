"""Where each tensor of a checkpoint lives in a loaded module.

transformers renames tensors when it loads them, and for some models fuses, splits, stacks, transposes or permutes
them. Its own rules (`transformers.core_model_loading`) are followed here: renames by name, conversions by sending
positions through them in place of parameters, so that whatever only moves elements is traced exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from deltahub.checkpoint import Base
from deltahub.errors import MismatchError
from deltahub.space import SpaceTensor

_SCRAMBLE = 0x2A5A_17C3_5AA5_0F69
"""Positions are sent twice, once scrambled: only moving commutes with that, arithmetic on them does not."""


@dataclass(frozen=True)
class Placement:
    """A module tensor and the parameters of the base that it holds.

    Attributes:
        name: in the module's state dict.
        tensor: the module's own parameter or buffer.
        sources: names of the base tensors in it; exactly one unless ``trace`` is given.
        trace: None where it is the source as it is; else int64 of the tensor's shape, the position in the parameter
            space of each element.
    """

    name: str
    tensor: torch.Tensor
    sources: tuple[str, ...]
    trace: torch.Tensor | None = None

    def elements(self, source: SpaceTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For a traced tensor, which of its elements hold parameters of ``source``, and which ones: both (m,) int64."""
        assert self.trace is not None
        flat = self.trace.reshape(-1)
        at = torch.nonzero(_inside(flat, source)).reshape(-1)
        return at, flat[at] - source.offset


@dataclass(frozen=True)
class Binding:
    """All placements of a base in a module.

    Attributes:
        placements: in the order of the base's tensors; a tied tensor appears once.
        absent: base tensors that the module has no place for (a pre-training head, an unused pooler).
        prefix: what the module's names have before the base's names, such as ``"bert."``; empty if nothing.
        own: state-dict names of floating-point tensors that the base lacks: the head.
    """

    placements: tuple[Placement, ...]
    absent: tuple[str, ...]
    prefix: str
    own: tuple[str, ...]


def bind(module: torch.nn.Module, base: Base) -> Binding:
    """Finds every tensor of ``base`` in ``module``, looking into wrapped transformers models too.

    Raises:
        MismatchError: nothing of the base is in the module, or shapes or dtypes differ, or a conversion changes values.
    """
    best: Binding | None = None
    for path, inner in _candidates(module):
        binding = _bind_to(module, path, inner, base)
        if best is None or len(binding.absent) < len(best.absent):
            best = binding
        if not binding.absent:
            break
    assert best is not None
    if not best.placements:
        raise MismatchError(
            f"{type(module).__name__} holds no tensor of {base.id}",
            expected=f"tensors like {base.space.tensors[0].name}",
            got=f"tensors like {next(iter(module.state_dict()), 'none')}",
            hint="load the module from this base",
        )
    return best


def _candidates(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    from transformers import PreTrainedModel

    yield "", module
    for path, inner in module.named_modules():
        if path and isinstance(inner, PreTrainedModel):
            yield f"{path}.", inner


def _bind_to(module: torch.nn.Module, path: str, inner: torch.nn.Module, base: Base) -> Binding:
    state = {name: tensor for name, tensor in inner.state_dict(keep_vars=True).items() if tensor.is_floating_point()}
    routes = _Routes(inner, set(inner.state_dict()))
    plain: dict[str, str] = {}
    groups: dict[str, list[tuple[str, str]]] = {}
    mappings: dict[str, Any] = {}
    absent = []
    for name in [tensor.name for tensor in base.space.tensors] + list(base.space.aliases):
        target, pattern, mapping = routes.route(name)
        if target not in state:
            absent += [name] if name in base.space.by_name else []
        elif mapping is None:
            plain.setdefault(target, name)
        else:
            mappings.setdefault(target, mapping)
            groups.setdefault(target, []).append((name, pattern))
    placements = [_plain(base, path + target, state[target], name) for target, name in plain.items()]
    for target, parts in groups.items():
        placements += _traced(inner, path, target, mappings[target], parts, base, state)
    placements = _once(placements, base)
    held = {placement.tensor.data_ptr() for placement in placements}
    return Binding(
        tuple(placements),
        tuple(name for name in absent if not any(name in placement.sources for placement in placements)),
        _prefix(placements, path),
        tuple(
            name
            for name, tensor in module.state_dict(keep_vars=True).items()
            if tensor.is_floating_point() and tensor.data_ptr() not in held
        ),
    )


class _Routes:
    """Checkpoint name to module name, by the rules that transformers loads with."""

    def __init__(self, inner: torch.nn.Module, names: set[str]) -> None:
        from transformers import PreTrainedModel
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self.names = names
        self.meta = dict.fromkeys(names, True)
        self.prefix = inner.base_model_prefix if isinstance(inner, PreTrainedModel) else ""
        rules = get_model_conversion_mapping(inner) if isinstance(inner, PreTrainedModel) else []
        self.renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self.converters = [rule for rule in rules if isinstance(rule, WeightConverter)]

    def route(self, name: str) -> tuple[str, str, Any]:
        """Target in the module, and for a conversion the source pattern and the rule."""
        from transformers.core_model_loading import rename_source_key

        target, pattern = rename_source_key(name, self.renamings, self.converters, self.prefix or None, self.meta)
        if target not in self.names and name in self.names:
            target, pattern = rename_source_key(name, [], [], self.prefix or None, self.meta)
        if pattern is None:
            return target, "", None
        return target, pattern, next(rule for rule in self.converters if pattern in rule.source_patterns)


def _plain(base: Base, target: str, tensor: torch.Tensor, name: str) -> Placement:
    name = base.space.aliases.get(name, name)
    source = base.space.by_name[name]
    if tuple(tensor.shape) != source.shape:
        raise MismatchError(f"{target} of the module", expected=f"shape {source.shape}", got=tuple(tensor.shape))
    return Placement(target, tensor, (name,))


def _traced(
    inner: torch.nn.Module,
    path: str,
    target: str,
    mapping: Any,
    parts: list[tuple[str, str]],
    base: Base,
    state: dict[str, torch.Tensor],
) -> list[Placement]:
    """Sends the positions of ``parts`` through a conversion rule, to see where it puts each of them."""
    from transformers.core_model_loading import dot_natural_key

    sources = [
        (name, pattern, base.space.by_name[base.space.aliases.get(name, name)])
        for name, pattern in sorted(parts, key=lambda part: dot_natural_key(part[0]))
    ]
    names = [tensor.name for _, _, tensor in sources]

    def convert(scramble: int) -> dict[str, torch.Tensor]:
        rule = copy.deepcopy(mapping)
        for name, pattern, tensor in sources:
            rule.add_tensor(target, name, pattern, _positions(tensor) ^ scramble)
        try:
            results = rule.convert(target, model=inner, config=getattr(inner, "config", None))
        except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise MismatchError(
                f"loading {', '.join(names[:3])} cannot be traced ({str(error)[:100]})", hint="it cannot be bound"
            ) from None
        return {name: found[0] if isinstance(found, list) else found for name, found in results.items()}

    traces, scrambled = convert(0), convert(_SCRAMBLE)
    placements = []
    for name, trace in traces.items():
        if name not in state:
            raise MismatchError(f"{name}, made of {names[0]}, is not in the module")
        moved = trace.dtype == torch.int64 and torch.equal(trace ^ _SCRAMBLE, scrambled[name])
        if not moved or trace.shape != state[name].shape or _repeats(trace):
            raise MismatchError(
                f"loading {', '.join(names[:3])} computes new values",
                expected="a conversion that only moves parameters", hint="it cannot be bound",
            )  # fmt: skip
        flat = trace.reshape(-1)
        used = [tensor.name for _, _, tensor in sources if bool(_inside(flat, tensor).any())]
        placements.append(Placement(path + name, state[name], tuple(used), trace.contiguous()))
    return placements


def _positions(tensor: SpaceTensor) -> torch.Tensor:
    return torch.arange(tensor.offset, tensor.offset + tensor.size, dtype=torch.int64).reshape(tensor.shape)


def _inside(flat: torch.Tensor, tensor: SpaceTensor) -> torch.Tensor:
    return (flat >= tensor.offset) & (flat < tensor.offset + tensor.size)


def _repeats(trace: torch.Tensor) -> bool:
    flat = trace.reshape(-1).sort().values
    return bool((flat[1:] == flat[:-1]).any())


def _once(placements: list[Placement], base: Base) -> list[Placement]:
    """One placement per storage, in canonical order; two storages for one base tensor cannot be kept equal."""
    found: dict[tuple[int, torch.device], Placement] = {}
    for placement in placements:
        found.setdefault((placement.tensor.data_ptr(), placement.tensor.device), placement)
    by_source: dict[str, Placement] = {}
    for placement in found.values():
        for source in placement.sources if placement.trace is None else ():
            if (other := by_source.setdefault(source, placement)) is not placement:
                raise MismatchError(
                    f"{source} is tied in {base.id}, but {other.name} and {placement.name} are two tensors",
                    hint="load the model with `model.tie_weights()`, or set tie_word_embeddings to false in its config",
                )
    return sorted(found.values(), key=lambda placement: base.space.by_name[placement.sources[0]].offset)


def _prefix(placements: list[Placement], path: str) -> str:
    for placement in placements:
        if placement.trace is None and placement.name.endswith(placement.sources[0]):
            return placement.name.removesuffix(placement.sources[0])
    return path

"""Task models around one shared backbone, built once for each shape of head and copied for every task."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from deltahub.errors import MismatchError, UsageError
from deltahub.names import LINEAR_HEAD
from deltahub.pooling import check_pooling, default_pooling

if TYPE_CHECKING:
    import torch
    from torch import nn

_AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "multi-label-classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
}
_PROBLEM = {
    "text-classification": "single_label_classification",
    "multi-label-classification": "multi_label_classification",
    "regression": "regression",
    "image-classification": "single_label_classification",
}
KINDS = (*_AUTO, "embeddings")
_POOLED = ("text-classification", "multi-label-classification", "regression")
_DTYPE = threading.Lock()


class Skeletons:
    """Gives task models of one backbone; safe for many threads.

    transformers takes 10 ms to build a small task model, a copy of all but the backbone takes less than one.

    Args:
        backbone: as `heads.task_model` takes it; every task model has it, none a copy.
        lacking: parameters of it that its base does not have.
    """

    def __init__(self, backbone: nn.Module, lacking: Collection[str]) -> None:
        self._backbone = backbone
        self._lacking = tuple(lacking)
        self._lock = threading.Lock()
        self._built: dict[tuple[str, int, str | None, str | None], tuple[nn.Module, dict[int, Any]]] = {}

    def task_model(
        self, kind: str, labels: Sequence[str], architecture: str | None = None, pooling: object = None
    ) -> nn.Module:
        """As `heads.task_model` with the native head, or the linear one by ``architecture``; no value of the head is
        set yet: `heads.load_head` has to follow.

        Args:
            pooling: of a linear head; others do not have it.

        Raises:
            UsageError, MismatchError: as `heads.task_model`.
        """
        if kind == "embeddings":
            return self._backbone
        linear = is_linear(kind, "native", architecture)
        how = check_pooling(pooling) if linear and pooling is not None else None
        key = (kind, len(labels), architecture, how)
        with self._lock:
            if key not in self._built:
                config: Any = self._backbone.config
                made = skeleton(
                    self._backbone, config, kind, labels, architecture, lacking=self._lacking, linear=linear,
                    pooling=how,
                )  # fmt: skip
                self._built[key] = made, _themselves(self._backbone)
            built, shared = self._built[key]
        model = copy.deepcopy(built, dict(shared))
        _label(model.config, kind, labels)
        fill(model, next(self._backbone.parameters()), initialise=False)
        return model


def skeleton(
    backbone: nn.Module,
    config: Any,
    kind: str,
    labels: Sequence[str],
    architecture: str | None,
    *,
    lacking: Collection[str],
    linear: bool,
    pooling: str | None,
) -> nn.Module:
    """A task model around ``backbone`` whose other parameters are on the meta device; see `heads.task_model`."""
    if kind not in _AUTO:
        raise UsageError(f"kind {kind!r} has no task model", expected=f"one of {', '.join(KINDS)}")
    config = copy.deepcopy(config)
    _label(config, kind, labels)
    model = _empty_linear(config, backbone, pooling) if linear else _empty_native(config, kind, backbone)
    if architecture is not None and type(model).__name__ != architecture:
        raise MismatchError(
            f"the task's model on {type(backbone).__name__}", expected=architecture, got=type(model).__name__,
            hint="the delta belongs to another base or needs another version of transformers",
        )  # fmt: skip
    prefix = backbone_prefix(model)
    _share(model, prefix[:-1], model.get_submodule(prefix[:-1]), backbone, frozenset(lacking))
    return model


def is_linear(kind: str, head: str, architecture: str | None) -> bool:
    """Whether a task has a `linear_head.LinearHead`: only kinds with one answer for each text can."""
    return kind in _POOLED and (head == "linear" or architecture == LINEAR_HEAD)


def backbone_prefix(model: nn.Module) -> str:
    """Where the backbone's parameters stand in a task model: ``"bert."``; empty for a backbone itself."""
    name = str(getattr(model, "base_model_prefix", ""))
    return f"{name}." if name and hasattr(model, name) else ""


def fill(model: nn.Module, like: torch.Tensor, *, initialise: bool) -> None:
    """Gives the modules that are on the meta device memory on the device of ``like``, in its dtype.

    Args:
        initialise: with the first values of a training, by torch's global random generator. Else only buffers get
            values; the parameters are left to whoever has them.
    """
    for module in model.modules():
        tensors = [*module._parameters.values(), *module._buffers.values()]
        if not any(tensor is not None and tensor.is_meta for tensor in tensors):
            continue
        if not all(tensor is None or tensor.is_meta for tensor in tensors):
            raise MismatchError(
                f"{type(module).__name__} is partly in the base", hint="this architecture is not supported"
            )
        module.to_empty(device=like.device, recurse=False)
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(like.dtype)
        if initialise or module._buffers:
            model._init_weights(module)  # type: ignore[operator]


def _empty_native(config: Any, kind: str, backbone: nn.Module) -> nn.Module:
    """The transformers class of ``kind``, on the meta device."""
    import torch
    import transformers

    try:
        # transformers sets torch's default dtype to the config's meanwhile, which other threads would see
        with _DTYPE, torch.device("meta"):
            model: nn.Module = getattr(transformers, _AUTO[kind]).from_config(config, dtype=torch.get_default_dtype())
    except ValueError:
        raise MismatchError(f"{type(backbone).__name__} has no model for {kind}", hint="choose another base") from None
    return model


def _empty_linear(config: Any, like: nn.Module, pooling: str | None) -> nn.Module:
    """A linear head on a backbone as ``like``, without the pooler that it would not use, on the meta device."""
    import torch
    from transformers import AutoModel

    from deltahub.linear_head import LinearHead

    has_pooler = "add_pooling_layer" in inspect.signature(type(like)).parameters
    with _DTYPE, torch.device("meta"):
        own: dict[str, Any] = {"add_pooling_layer": False} if has_pooler else {}
        backbone = AutoModel.from_config(config, dtype=torch.get_default_dtype(), **own)
        return LinearHead(backbone, config, default_pooling(config) if pooling is None else pooling)


def _label(config: Any, kind: str, labels: Sequence[str]) -> None:
    if kind == "regression":
        config.num_labels = 1
    else:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = _PROBLEM.get(kind)


def _themselves(backbone: nn.Module) -> dict[int, Any]:
    """For `copy.deepcopy`: all of ``backbone`` is its own copy."""
    return {id(part): part for part in (*backbone.modules(), *backbone.parameters(), *backbone.buffers())}


def _share(parent: nn.Module, name: str, empty: nn.Module, filled: nn.Module, lacking: frozenset[str]) -> None:
    """Puts ``filled`` in the place of ``empty`` in ``parent``, or as much of it as ``empty`` has and is not lacking."""
    if not lacking and _layout(empty) == _layout(filled):
        setattr(parent, name, filled)
        return
    for parameter in list(empty._parameters):
        if parameter not in lacking and parameter in filled._parameters:
            empty._parameters[parameter] = filled._parameters[parameter]
    for buffer in list(empty._buffers):
        if buffer in filled._buffers:
            empty._buffers[buffer] = filled._buffers[buffer]
    for child, module in list(empty.named_children()):
        below = frozenset(item.removeprefix(f"{child}.") for item in lacking if item.startswith(f"{child}."))
        if child in filled._modules and (held := filled._modules[child]) is not None:
            _share(empty, child, module, held, below)


def _layout(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters(remove_duplicate=False)]

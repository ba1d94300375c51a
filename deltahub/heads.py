"""Task models around one shared backbone, and the head: everything in a task model that the base does not have."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deltahub.errors import CheckpointError, MismatchError, UsageError
from deltahub.names import LINEAR_HEAD
from deltahub.pooling import default_pooling

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from deltahub.checkpoint import Base

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
HEADS = ("native", "linear", "shared")
"""The head of the transformers class; one linear layer; the native one with inner layers that all tasks share."""

_POOLED = ("text-classification", "multi-label-classification", "regression")
_POSITIONS_AFTER_PADDING = (
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "ibert", "mpnet",
    "xmod", "luke", "esm", "longformer",
)  # fmt: skip
"""Models that count positions from the padding token's number on, and so take fewer than they have."""
_DTYPE = threading.Lock()
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder of ``base``.

    Raises:
        CheckpointError: there is none, it is damaged, or it has no padding token.
    """
    from transformers import AutoTokenizer

    from deltahub.backbone import quiet

    if not any(True for pattern in _VOCABULARIES for _ in base.path.glob(pattern)):
        # transformers would make one up, to which every word is unknown
        raise CheckpointError(f"{base.id} has no tokenizer", hint=f"put tokenizer.json into {base.path}")
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                base.path, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # noqa: BLE001 (odd tokenizer files make transformers fail in any way there is)
        raise CheckpointError(
            f"the tokenizer of {base.id} cannot be loaded ({_first_line(error)})",
            hint=f"see the tokenizer's files in {base.path}",
        ) from None
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"the tokenizer of {base.id} has no padding token", hint="set pad_token in its config")
    return tokenizer


def shortest_input(tokenizer: PreTrainedTokenizerBase, pair: bool = False) -> int:
    """The fewest tokens that a text, or a pair, can be cut to: the special tokens and one of each text."""
    return int(tokenizer.num_special_tokens_to_add(pair=pair)) + (2 if pair else 1)


def longest_input(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    """The most tokens that a model takes, as far as its tokenizer and config say."""
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    known = [tokenizer.model_max_length, positions]
    return min([size for size in known if isinstance(size, int) and 0 < size < 1 << 30], default=1 << 30)


def task_model(
    backbone: nn.Module,
    config: Any,
    kind: str,
    labels: Sequence[str],
    architecture: str | None = None,
    *,
    lacking: Collection[str] = (),
    head: str = "native",
    pooling: str | None = None,
) -> nn.Module:
    """A transformers model of ``kind`` whose backbone is ``backbone`` itself, not a copy.

    Only what the backbone lacks is created, on its device and in its dtype, and initialised with torch's global random
    generator. Where the task class wants another top level than ``backbone`` has (no pooler, or one of its own), the
    task model gets its own top level around the same submodules.

    Args:
        backbone: what ``AutoModel`` gives for ``config``.
        config: its configuration; it is copied, not changed.
        kind: one of KINDS; ``embeddings`` gives ``backbone`` back.
        labels: class names; none for ``embeddings`` and ``regression``.
        architecture: class name that the task was trained with.
        lacking: parameters of ``backbone`` that its base does not have (such as a pooler); the task model gets its
            own, as a part of its head.
        head: one of HEADS; an ``architecture`` of "LinearHead" is a linear one. The native head of token
            classification is linear already.
        pooling: of a linear head, one of `pooling.POOLINGS`; None takes `pooling.default_pooling`.

    Raises:
        UsageError: a kind that has no task model, or a head that there is not.
        MismatchError: the backbone's architecture has none of this kind, or another one than ``architecture``.
    """
    if kind == "embeddings":
        return backbone
    if kind not in _AUTO:
        raise UsageError(f"kind {kind!r} has no task model", expected=f"one of {', '.join(KINDS)}")
    if head not in HEADS:
        raise UsageError(f"head {head!r}", expected=f"one of {', '.join(HEADS)}")
    config = _labelled(config, kind, labels)
    linear = kind in _POOLED and (head == "linear" or architecture == LINEAR_HEAD)
    model = _empty_linear(config, backbone, pooling) if linear else _empty_native(config, kind, backbone)
    if architecture is not None and type(model).__name__ != architecture:
        raise MismatchError(
            f"the task's model on {type(backbone).__name__}", expected=architecture, got=type(model).__name__,
            hint="the delta belongs to another base or needs another version of transformers",
        )  # fmt: skip
    prefix = backbone_prefix(model)
    _share(model, prefix[:-1], model.get_submodule(prefix[:-1]), backbone, frozenset(lacking))
    _materialize(model, next(backbone.parameters()))
    if head == "shared":
        share_inner(model, lacking)
    return model


def share_inner(model: nn.Module, lacking: Collection[str] = ()) -> tuple[str, ...]:
    """Sets the inner layers of a native head, all but the one that maps to the labels, to `shared_head.fixed_values`.

    Returns:
        Names of the tensors that were set, which training leaves alone; none where the head is one layer.

    Raises:
        MismatchError: no layer of the head has as many outputs as there are labels.
    """
    import torch

    from deltahub.shared_head import fixed_values, inner_names

    state = model.state_dict()
    parameters = dict(model.named_parameters())
    names = [name for name in head_names(model, lacking) if name in parameters]
    inner = inner_names({name: state[name] for name in names}, int(model.config.num_labels), type(model).__name__)  # type: ignore[union-attr, arg-type]
    with torch.no_grad():
        for name in inner:
            state[name].copy_(fixed_values(name, state[name].shape))
    return inner


def know_padding(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tells a task model its tokenizer's padding token where its config names none.

    The native heads of decoders read a text's last token that is no padding, and refuse batches without knowing it.
    """
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def backbone_prefix(model: nn.Module) -> str:
    """Where the backbone's parameters stand in a task model: ``"bert."``; empty for a backbone itself."""
    name = str(getattr(model, "base_model_prefix", ""))
    return f"{name}." if name and hasattr(model, name) else ""


def head_names(model: nn.Module, lacking: Collection[str] = ()) -> list[str]:
    """Floating-point names of ``model``'s state dict that the base does not have; ``lacking`` as in `task_model`."""
    prefix = backbone_prefix(model)
    if not prefix:
        return []
    own = {prefix + name for name in lacking}
    state = model.state_dict()
    return [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and (not name.startswith(prefix) or name in own)
    ]


def load_head(model: nn.Module, head: Mapping[str, torch.Tensor], lacking: Collection[str] = ()) -> None:
    """Copies ``head`` into ``model``; nothing is written unless names and shapes fit exactly.

    Raises:
        MismatchError: a tensor that is missing, unknown or of another shape.
    """
    import torch

    state = model.state_dict()
    wanted = head_names(model, lacking)
    what = f"the head of {type(model).__name__}"
    if missing := sorted(set(wanted) - set(head)):
        raise MismatchError(f"{what} lacks {', '.join(missing[:5])}", expected=f"{len(wanted)} tensors", got=len(head))
    if unknown := sorted(set(head) - set(wanted)):
        raise MismatchError(
            f"{what} has no place for {', '.join(unknown[:5])}", expected=", ".join(wanted) or "no head"
        )
    for name in wanted:
        if state[name].shape != head[name].shape:
            raise MismatchError(f"{name} of {what}", expected=tuple(state[name].shape), got=tuple(head[name].shape))
    with torch.no_grad():
        for name in wanted:
            state[name].copy_(head[name])


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


def _labelled(config: Any, kind: str, labels: Sequence[str]) -> Any:
    config = copy.deepcopy(config)
    if kind == "regression":
        config.num_labels = 1
    else:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = _PROBLEM.get(kind)
    return config


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


def _materialize(model: nn.Module, like: torch.Tensor) -> None:
    """Gives memory and initial values to the modules that are still on the meta device."""
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
        model._init_weights(module)  # type: ignore[operator]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]

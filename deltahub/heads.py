"""Task models around one shared backbone, and the head: everything in a task model that the base does not have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deltahub.errors import CheckpointError, MismatchError, UsageError
from deltahub.skeletons import backbone_prefix, fill, is_linear, skeleton

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from deltahub.checkpoint import Base

HEADS = ("native", "linear", "shared")
"""The head of the transformers class; one linear layer; the native one with inner layers that all tasks share."""

_POSITIONS_AFTER_PADDING = (
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "ibert", "mpnet",
    "xmod", "luke", "esm", "longformer",
)  # fmt: skip
"""Models that count positions from the padding token's number on, and so take fewer than they have."""
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
        kind: one of `skeletons.KINDS`; ``embeddings`` gives ``backbone`` back.
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
    if head not in HEADS:
        raise UsageError(f"head {head!r}", expected=f"one of {', '.join(HEADS)}")
    linear = is_linear(kind, head, architecture)
    model = skeleton(backbone, config, kind, labels, architecture, lacking=lacking, linear=linear, pooling=pooling)
    fill(model, next(backbone.parameters()), initialise=True)
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


def head_names(model: nn.Module, lacking: Collection[str] = ()) -> list[str]:
    """Floating-point names of ``model``'s state dict that the base does not have; ``lacking`` as in `task_model`."""
    return list(_head(model, lacking))


def _head(model: nn.Module, lacking: Collection[str]) -> dict[str, torch.Tensor]:
    prefix = backbone_prefix(model)
    if not prefix:
        return {}
    own = {prefix + name for name in lacking}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and (not name.startswith(prefix) or name in own)
    }


def load_head(model: nn.Module, head: Mapping[str, torch.Tensor], lacking: Collection[str] = ()) -> None:
    """Copies ``head`` into ``model``; nothing is written unless names and shapes fit exactly.

    Raises:
        MismatchError: a tensor that is missing, unknown or of another shape.
    """
    import torch

    wanted = _head(model, lacking)
    what = f"the head of {type(model).__name__}"
    if missing := sorted(set(wanted) - set(head)):
        raise MismatchError(f"{what} lacks {', '.join(missing[:5])}", expected=f"{len(wanted)} tensors", got=len(head))
    if unknown := sorted(set(head) - set(wanted)):
        raise MismatchError(
            f"{what} has no place for {', '.join(unknown[:5])}", expected=", ".join(wanted) or "no head"
        )
    for name in wanted:
        if wanted[name].shape != head[name].shape:
            raise MismatchError(f"{name} of {what}", expected=tuple(wanted[name].shape), got=tuple(head[name].shape))
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(head[name])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]

"""From the hidden states of a text's tokens to one vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltahub.errors import MismatchError

if TYPE_CHECKING:
    import torch

POOLINGS = ("mean", "cls", "last")
"""The mean over a text's tokens, its first token, its last one; padding never counts, whichever side it is on."""


def pool(states: torch.Tensor, attention_mask: torch.Tensor, how: str) -> torch.Tensor:
    """One vector per text, (n, h), of the dtype of ``states``.

    Args:
        states: (n, t, h) hidden states.
        attention_mask: (n, t), 1 for tokens and 0 for padding.
        how: one of POOLINGS.

    Raises:
        MismatchError: a pooling that there is not.
    """
    import torch

    check_pooling(how)
    if how == "mean":
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
    there = attention_mask.to(torch.int64)
    width = there.shape[1]
    at = there.argmax(1) if how == "cls" else width - 1 - there.flip(1).argmax(1)  # argmax gives the first of equals
    return states[torch.arange(len(states), device=states.device), at]


def check_pooling(how: object) -> str:
    """Returns ``how``; raises MismatchError unless it is one of POOLINGS."""
    if not isinstance(how, str) or how not in POOLINGS:
        raise MismatchError("the pooling", expected=f"one of {', '.join(POOLINGS)}", got=str(how)[:20])
    return how


def default_pooling(config: Any) -> str:
    """``"last"`` for causal decoders, whose last token alone has seen the whole text; ``"mean"`` for encoders."""
    from transformers.models.auto import modeling_auto

    kind = config.model_type
    causal = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES  # encoders of old are listed as both
    return "last" if getattr(config, "is_decoder", False) or (causal and not masked) else "mean"

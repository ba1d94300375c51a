"""The hyper-parameters of a training."""

from __future__ import annotations

from dataclasses import dataclass

from deltahub.errors import UsageError
from deltahub.heads import HEADS
from deltahub.pooling import POOLINGS

LENGTH = 128
"""Tokens per text where nothing else is asked for."""
_MOST = 3e38  # of fp32, in which the optimizer computes
CHOICES = {
    "head": HEADS,
    "pooling": (None, *POOLINGS),
    "class_weights": ("none", "balanced"),
    "precision": ("fp32", "bf16"),
    "activation": ("gelu", "relu", "tanh"),
}


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters; the defaults suit some hundred to some thousand rows.

    Attributes:
        epochs: passes over the training rows; the one with the best validation score is kept.
        lr: peak learning rate of what is trained of the backbone; None takes the method's own, see `methods.METHODS`.
        head_lr: peak learning rate of the head.
        batch_size: rows in one forward pass.
        accumulate: forward passes per step.
        max_length: tokens per text, longer ones are cut; None takes 128, or what the base takes if that is less.
        warmup: share of the steps in which the rates rise linearly from 0; then they fall linearly to 0.
        weight_decay: decoupled, of the backbone's; it pulls them to 0, not to the base, so the default is none.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        seed: of the head's first values, the order of the rows, and dropout.
        head: ``native`` (the one of the transformers class), ``linear`` (one layer on the pooled hidden states) or
            ``shared`` (native, its inner layers frozen at first values that all tasks share).
        pooling: how hidden states become one vector, for a linear head and embeddings: ``mean``, ``cls`` or ``last``;
            None takes what suits the base.
        class_weights: ``balanced`` weighs rare classes up, ``none`` counts each row once.
        precision: ``bf16`` runs forward and backward under autocast.
        checkpointing: recomputes activations in the backward pass, to save memory.
        bottleneck: inner size of the adapters of ``hiwi`` and ``hiwi-weight``.
        activation: of these adapters: ``gelu``, ``relu`` or ``tanh``.
        layers: globs of base tensor names: which feed-forward layers get one.
    """

    epochs: int = 3
    lr: float | None = None
    head_lr: float = 5e-3
    batch_size: int = 16
    accumulate: int = 1
    max_length: int | None = None
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    head: str = "native"
    pooling: str | None = None
    class_weights: str = "none"
    precision: str = "fp32"
    checkpointing: bool = False
    bottleneck: int = 16
    activation: str = "gelu"
    layers: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "max_length", "bottleneck"):
            value = getattr(self, name)
            if name == "max_length" and value is None:
                continue
            if type(value) is not int or not 1 <= value < 1 << 31:
                raise UsageError(name, expected="a whole number, 1 or more", got=str(value)[:20])
        for name in ("lr", "head_lr", "weight_decay", "max_grad_norm", "warmup"):
            value = getattr(self, name)
            if name == "lr" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST:
                raise UsageError(name, expected="0 or more", got=str(value)[:20])
        if self.warmup >= 1:
            raise UsageError("warmup", expected="0 up to 1, a share of the steps", got=self.warmup)
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 32:
            raise UsageError("seed", expected="0 to 2^32 - 1", got=self.seed)
        if not isinstance(self.checkpointing, bool):
            raise UsageError("checkpointing", expected="true or false", got=self.checkpointing)
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                shown = ", ".join(str(choice) for choice in choices if choice)
                raise UsageError(name, expected=f"one of {shown}", got=value)
        if isinstance(self.layers, str) or not all(isinstance(glob, str) for glob in self.layers):
            raise UsageError("layers", expected="a list of globs", got=self.layers)
        object.__setattr__(self, "layers", tuple(self.layers))

"""The hyper-parameters of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltahub.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters; the defaults suit pafi on some hundred to some thousand rows.

    Attributes:
        epochs: passes over the training rows; the one with the best validation accuracy is kept.
        lr: peak learning rate of the masked values or biases. Small weights want large ones, 1e-3 to 1e-2.
        head_lr: peak learning rate of the head.
        batch_size: rows per step.
        max_length: tokens per text, longer ones are cut.
        warmup: share of the steps in which the rates rise linearly from 0; then they fall linearly to 0.
        weight_decay: decoupled, on values or biases; it pulls them to 0, not to the base, so the default is none.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        seed: of the head's first values, the order of the rows, and dropout.
    """

    epochs: int = 3
    lr: float = 1e-2
    head_lr: float = 5e-3
    batch_size: int = 16
    max_length: int = 128
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise UsageError(name, expected="1 or more", got=getattr(self, name))
        for name in ("lr", "head_lr", "weight_decay", "max_grad_norm"):
            if not (0 <= getattr(self, name) < math.inf):
                raise UsageError(name, expected="0 or more", got=getattr(self, name))
        if not 0 <= self.warmup < 1:
            raise UsageError("warmup", expected="0 up to 1, a share of the steps", got=self.warmup)
        if not 0 <= self.seed < 1 << 32:
            raise UsageError("seed", expected="0 to 2^32 - 1", got=self.seed)

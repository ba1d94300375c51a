"""What a training minimises, by the kind of the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from deltahub.pooling import pool
from deltahub.tuning.metrics import IGNORED

Outputs = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Objective:
    """Runs a model on a batch and gives its loss.

    Attributes:
        kind: one of `names.TEXT_KINDS`.
        weights: (classes,) fp32, how much each class (multi-label: each positive) counts; None for all the same.
        pooling: for embeddings, see `pooling.POOLINGS`.
        scale: of the cosines in the contrastive loss, the inverse of a temperature.
    """

    kind: str
    weights: torch.Tensor | None = None
    pooling: str = "mean"
    scale: float = 20.0

    def __call__(self, model: nn.Module, inputs: Inputs) -> tuple[torch.Tensor, Outputs]:
        """Loss () and outputs: logits (n, classes), (n, tokens, classes) or (n, 1), or two (n, d) of unit vectors."""
        if self.kind == "embeddings":
            left, right = (self._vectors(model, inputs[side]) for side in ("left", "right"))
            return _contrastive(left, right, self.scale), (left, right)
        logits = model(**{name: tensor for name, tensor in inputs.items() if name != "labels"}).logits.float()
        loss = _LOSSES[self.kind](logits, inputs["labels"], None if self.weights is None else self.weights.to(logits))
        return loss, logits

    def _vectors(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        states = model(**inputs).last_hidden_state.float()
        return functional.normalize(pool(states, inputs["attention_mask"], self.pooling), dim=-1)


def _contrastive(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """Each left vector must find its right one among all of the batch (Henderson et al. 2017, multiple negatives)."""
    return functional.cross_entropy(scale * left @ right.T, torch.arange(len(left), device=left.device))


def _single(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return functional.cross_entropy(logits, labels, weight=weights)


def _multiple(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)


def _number(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return functional.mse_loss(logits.squeeze(-1), labels)


def _tokens(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return functional.cross_entropy(logits.transpose(1, 2), labels, weight=weights, ignore_index=IGNORED)


_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "text-classification": _single,
    "multi-label-classification": _multiple,
    "regression": _number,
    "token-classification": _tokens,
}

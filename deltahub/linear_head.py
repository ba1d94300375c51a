"""One linear layer on the pooled hidden states of a backbone: the smallest head that a classifier can have."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import SequenceClassifierOutput

from deltahub.errors import MismatchError
from deltahub.names import LINEAR_HEAD
from deltahub.pooling import check_pooling, pool

_DROPOUT = (
    "classifier_dropout", "seq_classif_dropout", "classifier_dropout_prob", "cls_dropout", "hidden_dropout_prob",
    "hidden_dropout", "resid_pdrop", "dropout_rate",
)  # fmt: skip


class LinearHead(nn.Module):
    """Dropout and one linear layer on the pooled last hidden state.

    Args:
        backbone: gives ``last_hidden_state``.
        config: with labels and ``problem_type``; its ``architectures`` become this class.
        pooling: one of `pooling.POOLINGS`.

    Raises:
        MismatchError: an encoder-decoder, a config without ``hidden_size``, or a pooling that there is not.
    """

    base_model_prefix = "backbone"
    accepts_loss_kwargs = False  # tells transformers' Trainer that the loss is a mean over the batch

    def __init__(self, backbone: nn.Module, config: Any, pooling: str) -> None:
        super().__init__()
        size = getattr(config, "hidden_size", None)
        if getattr(config, "is_encoder_decoder", False) or not isinstance(size, int):
            raise MismatchError(
                f"a linear head on {type(backbone).__name__}", expected="an encoder or a decoder with a hidden_size",
                hint="use the native head",
            )  # fmt: skip
        config.architectures = [LINEAR_HEAD]
        self.config = config
        self.pooling = check_pooling(pooling)
        self.backbone = backbone
        self.dropout = nn.Dropout(_dropout(config))
        self.classifier = nn.Linear(size, config.num_labels)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **rest: Any,
    ) -> SequenceClassifierOutput:
        """Logits of (n, labels), and with ``labels`` the loss that ``config.problem_type`` asks for.

        Args:
            input_ids: (n, t) int64.
            attention_mask: (n, t), all ones by default.
            labels: (n,) class numbers, (n, labels) of 0.0 and 1.0, or (n,) numbers.
            rest: goes to the backbone as it is (``token_type_ids``, ``inputs_embeds``).
        """
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **rest).last_hidden_state
        if attention_mask is None:
            attention_mask = torch.ones(states.shape[:2], dtype=torch.int64, device=states.device)
        logits = self.classifier(self.dropout(pool(states, attention_mask, self.pooling)))
        loss = None if labels is None else _loss(self.config.problem_type, logits, labels.to(logits.device))
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _init_weights(self, module: nn.Module) -> None:
        self.backbone._init_weights(module)  # type: ignore[operator]


def _loss(problem: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As transformers' ForSequenceClassification classes take it."""
    if problem == "regression":
        return functional.mse_loss(logits.squeeze(-1), labels.squeeze(-1) if labels.ndim > 1 else labels)
    if problem == "multi_label_classification":
        return functional.binary_cross_entropy_with_logits(logits, labels)
    return functional.cross_entropy(logits, labels.view(-1))


def _dropout(config: Any) -> float:
    """The config's dropout before a classifier, else that of its hidden states; models name them differently."""
    found = (getattr(config, name, None) for name in _DROPOUT)
    return next((float(value) for value in found if isinstance(value, int | float)), 0.0)

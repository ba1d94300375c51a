"""A task model with a delta attached, as a script of one's own has it, and some rows for it."""

from __future__ import annotations

import torch
from transformers import AutoModelForSequenceClassification

from deltahub.backbone import quiet
from deltahub.checkpoint import Base
from deltahub.mask import Mask
from deltahub.tuning import attach
from tests.models import bits

STEPS = 4


class Setup:
    """An attached task model and some rows for it."""

    def __init__(self, base: Base, method: str = "pafi", density: float = 0.05, **options: object) -> None:
        torch.manual_seed(0)
        with quiet():
            self.model = AutoModelForSequenceClassification.from_pretrained(
                base.path, dtype="auto", num_labels=3, pad_token_id=0
            ).eval()
        self.before = bits(self.model)
        recipe = "random" if "random" in method else "smallest-magnitude"
        mask = Mask.build(base, density, recipe=recipe) if {"pafi", "random"} & set(method.split("+")) else None
        self.base = base
        self.wrapped = attach(self.model, base, mask, method, **options)  # type: ignore[arg-type]
        self.masters = list(self.wrapped.parameters())

    def loss(self, row: int) -> torch.Tensor:
        inputs = torch.tensor([[4 + row, 7, 9 + 3 * row, 11]])
        loss: torch.Tensor = self.wrapped(input_ids=inputs, labels=torch.tensor([row % 3])).loss
        return loss

    def train(self, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> None:
        for step in range(steps):
            self.loss(step).backward()
            optimizer.step()
            optimizer.zero_grad()
        self.wrapped.write()

    def masked(self) -> dict[str, torch.Tensor]:
        """For each backbone tensor, whether each of its entries is in the mask."""
        segment = self.wrapped.resident.segments[0]
        hit = torch.zeros_like(segment.flat, dtype=torch.bool)
        hit[segment.index] = True
        found = {}
        for place in self.wrapped.resident.binding.placements:
            start = place.tensor.storage_offset()
            found[place.name] = hit[start : start + place.tensor.numel()].view(place.tensor.shape)
        return found

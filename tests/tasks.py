"""Tasks of every kind with random values and heads, for tests of what is done with a trained task."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from deltahub.backbone import load_backbone
from deltahub.checkpoint import Base
from deltahub.convert.extract import extract
from deltahub.delta import Delta
from deltahub.heads import head_names, task_model
from deltahub.manifest import Plain
from deltahub.mask import Mask
from deltahub.resident import Resident
from tests.deltas import random_delta

LABELS = ("red", "green", "blue")


def random_task(
    base: Base,
    mask: Mask | None,
    kind: str,
    *,
    task: str = "task",
    seed: int = 0,
    head: str = "native",
    pooling: str | None = None,
    labels: tuple[str, ...] = LABELS,
    inputs: Mapping[str, Plain] | None = None,
) -> Delta:
    """As a training leaves it: random values in the mask, a random head of a scale at which answers differ."""
    resident = Resident(load_backbone(base), base, mask)
    if mask is not None:
        resident.swap(random_delta(base, mask, seed))
    labels = labels if kind.endswith("classification") else ()
    lacking = resident.binding.own
    torch.manual_seed(seed)
    model = task_model(
        resident.module, resident.module.config, kind, labels, lacking=lacking, head=head, pooling=pooling
    )
    with torch.no_grad():
        for name in head_names(model, lacking):
            model.state_dict()[name].normal_(0, 0.5)
    told = dict(inputs or {}) | ({"pooling": model.pooling} if head == "linear" else {})
    return extract(base, model, mask, task=task, kind=kind, labels=labels, inputs=told)

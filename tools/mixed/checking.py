"""Whether what is timed is right: every answer against the swapped one, and the products against float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from deltahub.answers import Answer, Prediction
from deltahub.encoding import Encoded
from deltahub.mixing import Mixer
from deltahub.mixing.products import Pattern
from deltahub.pooling import pool
from deltahub.resident import Resident
from deltahub.task_model import TaskModel

TOLERANCE = 1e-5
"""Of a probability, and of a sum of products of numbers around 1."""
Scores = torch.Tensor
"""(rows, labels) float64: for every row the probability of each label."""


class WrongError(Exception):
    """What was to be timed gives something else than it should."""


def of_answers(answers: Iterable[Answer]) -> Scores:
    found = []
    for answer in answers:
        assert isinstance(answer, Prediction)
        found.append(list(answer.scores.values()))
    return torch.tensor(found, dtype=torch.float64)


def of_states(models: Sequence[TaskModel], states: torch.Tensor, attention: torch.Tensor) -> Scores:
    """Of a backbone's output, by the head of each row's model."""
    found = []
    for row, task in enumerate(models):
        model: Any = task.model
        mine = slice(row, row + 1)
        logits = model.classifier(pool(states[mine], attention[mine], model.pooling))
        found.append(logits.double().softmax(-1).cpu())
    return torch.cat(found)


def swapped(resident: Resident, models: Sequence[TaskModel], encoded: Sequence[Encoded]) -> Scores:
    """Each row alone, with its own task's values in place; the base's are back afterwards."""
    found = []
    for model, item in zip(models, encoded, strict=True):
        resident.swap(model.prepared)
        found.append(of_answers(model.run([item])))
    resident.restore()
    return torch.cat(found)


def furthest(found: Scores, wanted: Scores) -> torch.Tensor:
    """(rows,) the largest difference of each."""
    assert found.shape == wanted.shape
    return (found - wanted).abs().amax(1)


def check(what: str, found: Scores, wanted: Scores) -> float:
    """The largest difference of all; raises WrongError where that is more than TOLERANCE."""
    worst = float(furthest(found, wanted).max())
    if not worst <= TOLERANCE:
        raise WrongError(f"{what}: a probability is off by {worst:.1e}")
    return worst


def check_telling(kind: str, wanted: Scores, bare: Scores) -> float:
    """The least that a task's own values change an answer.

    Raises:
        WrongError: so little that an answer of the base, ``bare``, would pass for right.
    """
    least = float(furthest(wanted, bare).min())
    if not least >= 10 * TOLERANCE:
        raise WrongError(f"{kind}: the tasks' values change an answer by {least:.1e} only, so no check can tell")
    return least


def check_products(mixer: Mixer, rows: int, tokens: int) -> float:
    """The largest error of the mixer's products against float64, relative to 1 and the sum; raises WrongError.

    One matrix of each shape, a task for each row; all numbers are around 1, so that sums are of several.
    """
    of_shape: Mapping[Any, Pattern] = {pattern.site.tensor.shape: pattern for pattern in mixer.patterns}
    made = torch.Generator().manual_seed(rows * tokens)

    def some(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=made).to(like)

    like = mixer.patterns[0].base
    k = max(pattern.site.part.stop for pattern in mixer.patterns)
    values = [some(k) for _ in range(rows)]
    batch = mixer.products.batch(values, range(rows + 1), set())
    off = []
    for pattern in of_shape.values():
        outputs, inputs = pattern.site.tensor.shape
        states, before, biases = some(rows * tokens, inputs), some(rows * tokens, outputs), some(rows, outputs)
        out = before.clone()
        batch.add(pattern, states, out, biases)
        for row, own in enumerate(values):
            mine = slice(row * tokens, (row + 1) * tokens)
            change = torch.zeros(outputs * inputs, dtype=torch.float64, device=like.device)
            change[pattern.site.local] = own[pattern.site.part].double() - pattern.base.double()
            right = before[mine].double() + biases[row].double()
            right += states[mine].double() @ change.view(outputs, inputs).t()
            off.append(((out[mine] - right).abs() / (1 + right.abs())).max())
    worst = float(torch.stack(off).max())
    if not worst <= TOLERANCE:
        raise WrongError(f"{mixer.products.name}: a sum is off by {worst:.1e}")
    return worst

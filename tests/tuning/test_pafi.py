from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from deltahub.backbone import load_backbone
from deltahub.checkpoint import Base
from deltahub.heads import head_names, task_model
from deltahub.mask import Mask
from deltahub.resident import Resident
from deltahub.tuning.pafi import Masters
from tests.models import bits, same_bits

MakeBase = Callable[..., Base]
ARCHITECTURES = ("bert", "roberta", "gpt2", "mixtral")
STEPS = 4


class Setup:
    """A task model with the masters of its mask and head."""

    def __init__(self, base: Base, density: float = 0.05) -> None:
        torch.manual_seed(0)
        self.resident = Resident(load_backbone(base), base, Mask.build(base, density))
        lacking = self.resident.binding.own
        module = self.resident.module
        self.model = task_model(module, module.config, "text-classification", ("a", "b", "c"), lacking=lacking).eval()
        self.before = bits(module)
        self.model_before = bits(self.model)
        parameters = dict(self.model.named_parameters())
        self.head = {name: parameters[name] for name in head_names(self.model, lacking)}
        self.masters = Masters(self.model, self.resident, self.head)

    def loss(self, row: int) -> torch.Tensor:
        inputs = torch.tensor([[4 + row, 7, 9 + 3 * row, 11]])
        loss: torch.Tensor = self.model(input_ids=inputs, labels=torch.tensor([row % 3])).loss
        return loss

    def masked(self) -> dict[str, torch.Tensor]:
        """For each backbone tensor, whether each of its entries is in the mask."""
        segment = self.resident.segments[0]
        hit = torch.zeros_like(segment.flat, dtype=torch.bool)
        hit[segment.index] = True
        found = {}
        for place in self.resident.binding.placements:
            start = place.tensor.storage_offset()
            found[place.name] = hit[start : start + place.tensor.numel()].view(place.tensor.shape)
        return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_outside_the_mask_moves_by_a_bit(base_of: MakeBase, architecture: str) -> None:
    setup = Setup(base_of(architecture))
    optimizer = torch.optim.AdamW(setup.masters.parameters(), lr=1e-2, weight_decay=0.1)
    setup.masters.follow(optimizer, max_norm=1.0)
    for step in range(STEPS):
        setup.loss(step).backward()
        optimizer.step()
    masked = setup.masked()
    after = bits(setup.resident.module)
    for name, tensor in setup.before.items():
        outside = ~masked[name] if name in masked else torch.ones_like(tensor, dtype=torch.bool)
        assert torch.equal(tensor[outside], after[name][outside]), name
    moved = torch.cat([(setup.before[name] != after[name])[hit] for name, hit in masked.items()])
    assert moved.sum() > 0.5 * len(moved)
    assert all(not torch.equal(setup.model_before[name], tensor) for name, tensor in setup.head.items())


def test_steps_equal_those_of_masked_dense_training(base_of: MakeBase) -> None:
    """w <- w - eta * m * grad, to the bit, with plain gradient descent."""
    setup, dense = Setup(base_of("bert")), Setup(base_of("bert"))
    dense.masters.detach()
    dense.model.requires_grad_(True)
    optimizer = torch.optim.SGD(setup.masters.parameters(), lr=0.1)
    setup.masters.follow(optimizer, max_norm=0)
    masked = dense.masked()
    for step in range(STEPS):
        setup.loss(step).backward()
        optimizer.step()
        dense.loss(step).backward()
        with torch.no_grad():
            for place in dense.resident.binding.placements:
                if place.tensor.grad is not None:
                    place.tensor.add_(place.tensor.grad * masked[place.name], alpha=-0.1)
            for parameter in dense.head.values():
                parameter.add_(parameter.grad, alpha=-0.1)
        dense.model.zero_grad()
    assert same_bits(bits(setup.model), bits(dense.model))


def test_gradients_add_up_over_backward_passes_and_dense_ones_are_freed(base_of: MakeBase) -> None:
    setup = Setup(base_of("bert"))
    single = []
    for row in (0, 1):
        setup.loss(row).backward()
        single.append(setup.masters.values[0].grad.clone())
        for master in setup.masters.parameters():
            master.grad = None
    for row in (0, 1):
        setup.loss(row).backward()
    assert torch.equal(setup.masters.values[0].grad, single[0] + single[1])
    assert all(place.tensor.grad is None for place in setup.resident.binding.placements)


def test_tensors_without_masked_entries_take_no_gradient(base_of: MakeBase) -> None:
    setup = Setup(base_of("bert"))
    masked = setup.masked()
    for place in setup.resident.binding.placements:
        assert place.tensor.requires_grad == bool(masked[place.name].any()), place.name


def test_half_precision_takes_the_rounded_masters(base_of: MakeBase) -> None:
    """Updates far below the spacing of bf16 add up in the masters instead of being lost."""
    setup = Setup(base_of("bert", torch.bfloat16))
    optimizer = torch.optim.SGD(setup.masters.parameters(), lr=1e-5)
    setup.masters.follow(optimizer, max_norm=0)
    start = setup.masters.values[0].detach().clone()
    for step in range(STEPS):
        setup.loss(step).backward()
        optimizer.step()
    master, segment = setup.masters.values[0], setup.resident.segments[0]
    assert master.dtype == torch.float32
    assert not torch.equal(master, start)
    assert torch.equal(segment.flat[segment.index], master.to(torch.bfloat16))
    for name, parameter in setup.head.items():
        assert torch.equal(parameter, setup.masters.whole[name].to(torch.bfloat16))


def test_a_state_puts_masters_and_model_back(base_of: MakeBase) -> None:
    setup = Setup(base_of("bert"))
    state = {name: tensor.clone() for name, tensor in setup.masters.state().items()}
    optimizer = torch.optim.SGD(setup.masters.parameters(), lr=0.1)
    setup.masters.follow(optimizer, max_norm=0)
    setup.loss(0).backward()
    optimizer.step()
    setup.masters.load(state)
    assert same_bits(bits(setup.model), setup.model_before)


def test_clipping_bounds_the_step_over_all_masters(base_of: MakeBase) -> None:
    setup = Setup(base_of("bert"))
    before = {name: tensor.clone() for name, tensor in setup.masters.state().items()}
    optimizer = torch.optim.SGD(setup.masters.parameters(), lr=1.0)
    setup.masters.follow(optimizer, max_norm=1e-3)
    (1000 * setup.loss(0)).backward()
    optimizer.step()
    moves = [(tensor - before[name]).norm() for name, tensor in setup.masters.state().items()]
    assert torch.stack(moves).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_detached_hooks_leave_ordinary_gradients(base_of: MakeBase) -> None:
    setup = Setup(base_of("bert"))
    setup.masters.detach()
    setup.loss(0).backward()
    assert setup.masters.values[0].grad is None
    assert any(isinstance(place.tensor, nn.Parameter) and place.tensor.grad is not None
               for place in setup.resident.binding.placements)  # fmt: skip

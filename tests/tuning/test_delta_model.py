"""What training may move, how gradients reach it, and that an export is the trained model to the bit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel

from deltahub.backbone import load_backbone
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.errors import MismatchError, OutsideMaskError, UsageError
from deltahub.heads import load_head, task_model
from deltahub.resident import Resident
from deltahub.tuning import attach
from deltahub.tuning.delta_model import DeltaModel
from deltahub.tuning.loop import recompute
from tests.conftest import MakeBase
from tests.models import CONFIGS, bits, randomise, same_bits
from tests.tuning.attached import STEPS, Setup

ARCHITECTURES = ("bert", "roberta", "gpt2", "mixtral")
METHODS = ("pafi", "random", "hiwi", "hiwi-weight", "bitfit", "layernorm", "head", "full", "hiwi+pafi", "bitfit+pafi")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_outside_the_mask_moves_by_a_bit(base_of: MakeBase, architecture: str) -> None:
    setup = Setup(base_of(architecture))
    setup.train(torch.optim.AdamW(setup.masters, lr=1e-2, weight_decay=0.1))
    masked = setup.masked()
    after = bits(setup.model)
    head = set(setup.wrapped.head.names)
    for name, tensor in setup.before.items():
        outside = ~masked[name] if name in masked else torch.full_like(tensor, name not in head, dtype=torch.bool)
        assert torch.equal(tensor[outside], after[name][outside]), name
    moved = torch.cat([(setup.before[name] != after[name])[hit] for name, hit in masked.items()])
    assert moved.sum() > 0.5 * len(moved)
    assert all(not torch.equal(setup.before[name], after[name]) for name in head)


def test_steps_equal_those_of_masked_dense_training(base_of: MakeBase) -> None:
    """w <- w - eta * m * grad, to the bit, with plain gradient descent."""
    setup, dense = Setup(base_of("bert")), Setup(base_of("bert"))
    dense.wrapped.detach()
    dense.model.requires_grad_(True)
    setup.train(torch.optim.SGD(setup.masters, lr=0.1))
    masked = dense.masked()
    head = set(dense.wrapped.head.names)
    for step in range(STEPS):
        dense.loss(step).backward()
        with torch.no_grad():
            for name, parameter in dense.model.named_parameters():
                if parameter.grad is not None and (name in masked or name in head):
                    gradient = parameter.grad * masked[name] if name in masked else parameter.grad
                    parameter.add_(gradient, alpha=-0.1)
        dense.model.zero_grad()
    assert same_bits(bits(setup.model), bits(dense.model))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_an_export_swapped_into_a_fresh_base_is_the_trained_model_to_the_bit(
    base_of: MakeBase, architecture: str, method: str
) -> None:
    base = base_of(architecture)
    setup = Setup(base, method)
    setup.train(torch.optim.AdamW(setup.wrapped.groups(lr=1e-2)))
    delta = Delta.loads(b"".join(bytes(part) for part in setup.wrapped.export(task="t").dump()))
    assert bool(delta.adapter) == (method == "hiwi-weight")
    fresh = Resident(load_backbone(base), base, setup.wrapped.resident.mask)
    model = task_model(fresh.module, setup.model.config, "text-classification", ("a", "b", "c")).eval()
    load_head(model, delta.head)
    fresh.swap(delta)
    setup.wrapped.detach()
    rows = torch.tensor([[5, 7, 9, 11], [6, 8, 3, 2]])
    with torch.inference_mode():
        assert torch.equal(model(input_ids=rows).logits, setup.model(input_ids=rows).logits)


def test_gradients_add_up_over_backward_passes_and_dense_ones_are_freed(base_of: MakeBase) -> None:
    setup = Setup(base_of("bert"))
    single = []
    for row in (0, 1):
        setup.loss(row).backward()
        single.append(setup.masters[0].grad.clone())
        setup.wrapped.zero_grad()
    for row in (0, 1):
        setup.loss(row).backward()
    assert torch.equal(setup.masters[0].grad, single[0] + single[1])
    assert all(place.tensor.grad is None for place in setup.wrapped.resident.binding.placements)


def test_two_forward_passes_before_one_backward_pass(base_of: MakeBase) -> None:
    """As a contrastive loss does: writing the masters again must not spoil what autograd has saved."""
    for method in ("pafi", "hiwi", "hiwi-weight", "bitfit"):
        setup = Setup(base_of("bert", torch.bfloat16), method)
        (setup.loss(0) + setup.loss(1)).backward()
        assert all(master.grad is not None for master in setup.masters)


def test_tensors_without_masked_entries_take_no_gradient(base_of: MakeBase) -> None:
    setup = Setup(base_of("bert"))
    masked = setup.masked()
    for place in setup.wrapped.resident.binding.placements:
        assert place.tensor.requires_grad == bool(masked[place.name].any()), place.name


def test_half_precision_takes_the_rounded_masters(base_of: MakeBase) -> None:
    """Updates far below the spacing of bf16 add up in the masters instead of being lost."""
    setup = Setup(base_of("bert", torch.bfloat16))
    start = setup.masters[0].detach().clone()
    setup.train(torch.optim.SGD(setup.masters, lr=1e-5))
    master, segment = setup.masters[0], setup.wrapped.resident.segments[0]
    assert master.dtype == torch.float32
    assert not torch.equal(master, start)
    assert torch.equal(segment.flat[segment.index], master.to(torch.bfloat16))


@pytest.mark.parametrize("method", ["pafi", "hiwi-weight", "full"])
def test_a_state_dict_holds_what_is_trained_and_puts_it_back(base_of: MakeBase, method: str) -> None:
    setup = Setup(base_of("bert", torch.bfloat16), method)
    state = {name: tensor.clone() for name, tensor in setup.wrapped.state_dict().items()}
    assert sum(tensor.numel() for tensor in state.values()) == setup.wrapped.trained_parameters
    setup.train(torch.optim.SGD(setup.masters, lr=0.1))
    assert not same_bits(bits(setup.model), setup.before)
    setup.wrapped.load_state_dict(state)
    setup.wrapped.write()
    assert same_bits(bits(setup.model), setup.before)


def test_any_optimizer_will_do(base_of: MakeBase) -> None:
    for make in (torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.NAdam, torch.optim.Adafactor):
        setup = Setup(base_of("bert"), "hiwi+pafi")
        setup.train(make(setup.masters, lr=1e-2))
        setup.wrapped.export(task="t")  # refuses whatever else had moved
    setup = Setup(base_of("bert"))
    optimizer = torch.optim.LBFGS(setup.masters, max_iter=4)
    start = setup.loss(0).item()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = setup.loss(0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert setup.loss(0).item() < start


def test_autocast_and_checkpointing_train_the_same_numbers(base_of: MakeBase) -> None:
    plain, checked, mixed = (Setup(base_of("bert"), "hiwi+pafi") for _ in range(3))
    checked.model.train()  # transformers recomputes in training mode only; the tiny config's dropout is off here
    for module in checked.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    recompute(checked.wrapped)
    for setup in (plain, checked):
        setup.loss(0).backward()
    with torch.autocast("cpu", torch.bfloat16):
        loss = mixed.loss(0)
    loss.backward()
    for one, two, rough in zip(plain.masters, checked.masters, mixed.masters, strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)
        assert (rough.grad - one.grad).norm() < 0.1 * one.grad.norm() + 1e-6


def test_a_compiled_model_trains_the_same_numbers(tmp_path: Path) -> None:
    """With one layer, since compiling takes its time for each."""
    config = copy.deepcopy(CONFIGS["bert"])
    config.num_hidden_layers = 1
    model = AutoModel.from_config(config)
    randomise(model)
    model.save_pretrained(tmp_path)
    plain, compiled = (Setup(Base.open(tmp_path, cache=tmp_path / "cache")) for _ in range(2))
    compiled.wrapped.model.compile(backend="aot_eager")
    for setup in (plain, compiled):
        setup.train(torch.optim.SGD(setup.masters, lr=0.1), steps=2)
    for one, two in zip(plain.masters, compiled.masters, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_what_else_was_changed_is_refused_at_export(base_of: MakeBase) -> None:
    setup = Setup(base_of("bert"))
    with torch.no_grad():
        setup.model.bert.embeddings.word_embeddings.weight[3, 3] += 1
    with pytest.raises(OutsideMaskError, match="1 parameters outside the mask changed"):
        setup.wrapped.export(task="t")


def test_a_model_that_was_trained_already_is_refused(base_of: MakeBase) -> None:
    base = base_of("bert")
    setup = Setup(base)
    setup.train(torch.optim.SGD(setup.masters, lr=0.1))
    with pytest.raises(MismatchError, match="differs from"):
        attach(setup.model, base, setup.wrapped.resident.mask)


def test_methods_that_cannot_be_meant_are_refused(base_of: MakeBase) -> None:
    for method, message in {
        "lora": "method 'lora': expected one of pafi, random",
        "pafi+random": "expected one mask",
        "hiwi+hiwi": "expected each part once",
        "hiwi+bitfit": "would train encoder.layer.0.intermediate.dense.bias twice",
        "hiwi-weight+pafi": "twice, by mask and by adapter",
    }.items():
        with pytest.raises(UsageError, match=message):
            Setup(base_of("bert"), method)
    with pytest.raises(UsageError, match="method 'gradient' needs its mask"):
        Setup(base_of("bert"), "gradient")
    with pytest.raises(UsageError, match="cannot change its device or dtype"):
        Setup(base_of("bert")).wrapped.half()
    with pytest.raises(UsageError, match="export needs a name"):
        Setup(base_of("bert")).wrapped.export()


def test_each_part_has_its_own_learning_rate(base_of: MakeBase) -> None:
    groups = Setup(base_of("bert"), "hiwi+pafi").wrapped.groups(head_lr=1e-4, weight_decay=0.1)
    assert [group["lr"] for group in groups] == [1e-2, 3e-3, 1e-4]
    assert groups[-1]["weight_decay"] == 0.0


def test_detached_hooks_leave_ordinary_gradients(base_of: MakeBase) -> None:
    setup = Setup(base_of("bert"))
    assert isinstance(setup.wrapped, DeltaModel)
    setup.wrapped.detach()
    setup.loss(0).backward()
    assert setup.masters[0].grad is None
    assert any(place.tensor.grad is not None for place in setup.wrapped.resident.binding.placements)


@pytest.mark.parametrize("part", ["bitfit", "layernorm"])
def test_a_tensor_that_is_trained_whole_is_trained_at_masked_positions_too(base_of: MakeBase, part: str) -> None:
    both, alone = Setup(base_of("bert"), f"{part}+pafi", density=0.3), Setup(base_of("bert"), part)
    for setup in (both, alone):
        setup.loss(0).backward()
        torch.optim.SGD(setup.masters, lr=0.1).step()
        setup.wrapped.write()
    dense = both.wrapped.export(task="t").dense
    assert dense.keys() == alone.wrapped.export(task="t").dense.keys()
    assert all(torch.equal(dense[name], tensor) for name, tensor in alone.wrapped.export(task="t").dense.items())

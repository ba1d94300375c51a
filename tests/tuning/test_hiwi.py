"""HiWi: an adapter on weights or biases has autograd's gradients, starts at the base and is chosen by glob."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from deltahub.backbone import quiet
from deltahub.checkpoint import Base
from deltahub.errors import UsageError
from deltahub.tuning.choice import Adapters
from deltahub.tuning.hiwi import ACTIVATIONS
from tests.conftest import MakeBase
from tests.models import CONFIGS, bits, same_bits
from tests.tuning.attached import Setup


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("method", ["hiwi", "hiwi-weight"])
def test_an_adapter_gets_the_gradients_that_autograd_would_give(
    base_of: MakeBase, method: str, activation: str
) -> None:
    """W' = W + f(W W_down) W_up, differentiated by autograd through `functional_call`, against our own chain rule."""
    setup = Setup(base_of("bert"), method, adapters=Adapters(bottleneck=3, activation=activation))
    adapter = setup.wrapped.hiwi
    assert adapter is not None
    with torch.no_grad():
        for up in adapter.up.values():
            up.normal_(0, 0.1)  # at the start it is zero, and so is the gradient of what is before it
    setup.loss(1).backward()
    twin = {name: parameter.detach().clone().requires_grad_() for name, parameter in adapter.named_parameters()}
    replaced = {}
    for name, target in adapter.targets():
        key = name.replace(".", "/")
        base = setup.base.read(name).torch()
        rows = base if base.ndim == 2 else base.unsqueeze(0)
        made = rows + ACTIVATIONS[activation][0](rows @ twin[f"down.{key}"]) @ twin[f"up.{key}"]
        replaced["bert." + name] = made.view_as(target)
    inputs = {"input_ids": torch.tensor([[5, 7, 12, 11]]), "labels": torch.tensor([1])}
    torch.func.functional_call(setup.model, replaced, kwargs=inputs).loss.backward()
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, twin[name].grad, rtol=1e-4, atol=1e-7)


def test_hiwi_starts_at_the_base_and_stores_no_more_for_a_larger_bottleneck(base_of: MakeBase) -> None:
    sizes = set()
    for bottleneck in (1, 64):
        setup = Setup(base_of("bert"), "hiwi", adapters=Adapters(bottleneck=bottleneck))
        setup.wrapped.write()
        assert same_bits(bits(setup.model), setup.before)
        setup.train(torch.optim.AdamW(setup.masters, lr=1e-2))
        delta = setup.wrapped.export(task="t")
        sizes.add(sum(tensor.numel() for tensor in delta.dense.values()))
        assert all("attention" not in name and name.endswith("dense.bias") for name in delta.dense)
    assert sizes == {2 * (64 + 32)}


def test_layers_are_chosen_by_glob(base_of: MakeBase) -> None:
    setup = Setup(base_of("bert"), "hiwi-weight", adapters=Adapters(layers=("encoder.layer.1.*",)))
    assert {name for name, _ in setup.wrapped.hiwi.targets()} == {
        "encoder.layer.1.intermediate.dense.weight", "encoder.layer.1.output.dense.weight",
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"layers 'encoder.layer.7.\*' match no feed-forward weight"):
        Setup(base_of("bert"), "hiwi-weight", adapters=Adapters(layers=("encoder.layer.7.*",)))


def test_hiwi_without_biases_falls_back_to_the_weights_and_says_so(base_of: MakeBase) -> None:
    setup = Setup(base_of("llama"), "hiwi")
    assert "has no feed-forward biases: the adapter works on the weights" in setup.wrapped.notes[0]
    assert all(tensor.ndim == 2 for _, tensor in setup.wrapped.hiwi.targets())


def test_zero_biases_are_trained_directly_and_said(tmp_path: Path) -> None:
    config = copy.deepcopy(CONFIGS["bert"])
    torch.manual_seed(0)
    with quiet():
        AutoModelForSequenceClassification.from_config(config).bert.save_pretrained(tmp_path)  # biases start at zero
    setup = Setup(Base.open(tmp_path, cache=tmp_path), "hiwi")
    assert setup.wrapped.notes[0].startswith("4 feed-forward biases are zero in the base")
    assert setup.wrapped.hiwi is None
    setup.train(torch.optim.AdamW(setup.masters, lr=1e-2))
    assert len(setup.wrapped.export(task="t").dense) == 4

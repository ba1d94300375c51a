from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from deltahub.backbone import quiet
from deltahub.mask import Mask
from deltahub.resident import Resident, Stamp
from tests.deltas import random_delta
from tests.models import CONFIGS, a_bias, bits, load, load_classifier, same_bits

FLOATS = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_thousand_random_swaps_leave_the_base_bit_identical(base_of, folder_of, architecture, dtype):
    """Values replace values: after any walk over tasks, restore gives every bit back."""
    base = base_of(architecture, dtype)
    mask = Mask.build(base, 0.02)
    module = load(folder_of(architecture, dtype))
    before = bits(module)
    resident = Resident(module, base, mask)
    own = resident.values()
    tasks = [random_delta(base, mask, seed, task=f"task{seed}") for seed in range(8)]
    tasks[7] = random_delta(base, mask, 7, task="task7", dense=(a_bias(base),))
    rng = np.random.default_rng(1)
    for step in range(1000):
        task = tasks[rng.integers(len(tasks))]
        resident.swap(task)
        if step % 100 == 0:
            covered = np.isin(mask.indices, _dense_positions(base, task))
            assert np.array_equal(resident.values().bits[~covered], task.tensors["values"].bits[~covered])
    resident.restore()
    assert resident.values() == own
    assert resident.stamp is None
    assert same_bits(before, bits(module))


def _dense_positions(base, task):
    parts = [base.space.by_name[name] for name in task.raw("dense")]
    return np.concatenate([np.arange(t.offset, t.offset + t.size) for t in parts]) if parts else np.array([], int)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_swap_changes_exactly_what_the_delta_says(base_of, folder_of, architecture):
    """Looked at from outside: the swapped module equals the base's file with the values written into it."""
    base = base_of(architecture)
    mask = Mask.build(base, 0.03)
    task = random_delta(base, mask, 5)
    resident = Resident(load(folder_of(architecture)), base, mask)
    resident.swap(task)
    from deltahub.convert.finetuned import open_finetuned

    swapped = open_finetuned(base, resident.module)
    for tensor in base.space.tensors:
        expected = base.read(tensor.name)
        inside = (mask.indices >= tensor.offset) & (mask.indices < tensor.offset + tensor.size)
        expected.bits[mask.indices[inside] - tensor.offset] = task.tensors["values"].bits[inside]
        assert swapped.read(tensor.name) == expected


def test_a_backbone_inside_a_task_model_is_found_and_its_head_swapped(base_of, folder_of):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    with quiet():
        module = load_classifier(folder_of("bert"), labels=3)
    before = bits(module)
    resident = Resident(module, base, mask)
    assert resident.binding.prefix == "bert."
    task = random_delta(base, mask, 1, classes=3)
    resident.swap(task)
    assert torch.equal(module.classifier.weight, task.head["classifier.weight"])
    resident.swap(random_delta(base, mask, 2, task="headless"))
    assert torch.equal(module.classifier.weight, before["classifier.weight"])
    resident.restore()
    assert same_bits(before, bits(module))


def test_a_backbone_inside_any_wrapper_is_found(base_of, folder_of):
    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = load(folder_of("llama"))
            self.out = torch.nn.Linear(32, 2)

    resident = Resident(Wrapper(), base_of("llama"), Mask.build(base_of("llama"), 0.01))
    assert resident.binding.prefix == "encoder."
    assert resident.binding.own == ("out.weight", "out.bias")


def test_tied_weights_stay_tied(base_of, folder_of):
    with quiet():
        module = AutoModelForSeq2SeqLM.from_pretrained(folder_of("t5"), dtype="auto")
    base = base_of("t5")
    mask = Mask.build(base, 0.05, "all")
    resident = Resident(module, base, mask)
    resident.swap(random_delta(base, mask, 3))
    assert module.shared.weight.data_ptr() == module.encoder.embed_tokens.weight.data_ptr()
    assert torch.equal(module.shared.weight, module.encoder.embed_tokens.weight)


def test_outputs_follow_the_task_and_come_back(base_of, folder_of):
    base = base_of("gpt2")
    mask = Mask.build(base, 0.05)
    module = load(folder_of("gpt2"))
    resident = Resident(module, base, mask)
    tokens = torch.arange(12).reshape(1, 12)

    def run():
        with torch.no_grad():
            return module(tokens).last_hidden_state

    plain = run()
    assert resident.swap(random_delta(base, mask, 1), version=4) == Stamp("sst2", 4, random_delta(base, mask, 1).digest)
    assert not torch.equal(run(), plain)
    resident.restore()
    assert torch.equal(run(), plain)


def test_load_gives_the_bare_backbone(base_of):
    base = base_of("roberta")
    resident = Resident.load(base, Mask.build(base, 0.01))
    assert type(resident.module).__name__ == "RobertaModel"
    assert sum(flat.numel() for flat in resident.flats.values()) < base.space.size * 1.05
    assert all(
        p.untyped_storage().data_ptr() == resident.segments[0].flat.data_ptr() for p in resident.module.parameters()
    )


def test_parameters_keep_their_identity(base_of, folder_of):
    module = load(folder_of("bert"))
    parameters = dict(module.named_parameters())
    Resident(module, base_of("bert"), None)
    gc.collect()
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())


def test_low_rank_factors_become_the_matrix_that_they_stand_for(base_of, folder_of):
    base = base_of("llama")
    name = "layers.0.mlp.down_proj.weight"
    rows, columns = base.space.by_name[name].shape
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator)
    from deltahub.rawtensor import RawTensor

    delta = random_delta(base, None, 1, dense=())
    factors = {f"adapter.{name}.up": RawTensor.of_torch(up), f"adapter.{name}.down": RawTensor.of_torch(down)}
    module = load(folder_of("llama"))
    before = bits(module)
    resident = Resident(module, base, None)
    resident.swap(dataclasses.replace(delta, tensors=factors))
    assert torch.equal(module.layers[0].mlp.down_proj.weight, before[name] + up @ down)
    resident.restore()
    assert same_bits(before, bits(module))

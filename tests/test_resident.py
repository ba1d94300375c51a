from __future__ import annotations

import dataclasses
import gc
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from deltahub.backbone import quiet
from deltahub.checkpoint import Base
from deltahub.errors import CheckpointError, MismatchError, PoisonedError, ResidentError
from deltahub.mask import Mask
from deltahub.resident import Resident, Stamp
from tests.deltas import random_delta
from tests.models import CONFIGS, bits, load, load_classifier, same_bits

FLOATS = [torch.float32, torch.bfloat16]


def a_bias(base: Base) -> str:
    return next(t.name for t in base.space.tensors if t.name.endswith(("bias", "norm.weight")) and t.role == "block")


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


class Fails:
    """A tensor-like target that fails when written, as a device does that is lost."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, write):
        def run(*arguments):
            if self.times:
                self.times -= 1
                raise RuntimeError("device lost")
            return write(*arguments)

        return run


def test_a_failed_swap_puts_the_base_back(base_of, folder_of, monkeypatch):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    module = load(folder_of("bert"))
    before = bits(module)
    resident = Resident(module, base, mask)
    resident.swap(random_delta(base, mask, 1))
    from deltahub.dense import Write

    monkeypatch.setattr(Write, "run", Fails(1)(Write.run))
    with pytest.raises(ResidentError, match=r"device lost.*back in place"):
        resident.swap(random_delta(base, mask, 2, dense=(a_bias(base),)))
    assert resident.stamp is None
    assert same_bits(before, bits(module))
    resident.swap(random_delta(base, mask, 2, dense=(a_bias(base),)))


def test_a_swap_that_cannot_be_undone_poisons_the_resident(base_of, folder_of, monkeypatch):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    resident = Resident(load(folder_of("bert")), base, mask)
    monkeypatch.setattr(Resident, "_write_values", Fails(1)(Resident._write_values))
    monkeypatch.setattr(Resident, "_write_base_values", Fails(1)(Resident._write_base_values))
    with pytest.raises(PoisonedError, match="way back"):
        resident.swap(random_delta(base, mask, 2))
    monkeypatch.undo()
    for use in (lambda: resident.stamp, resident.restore, lambda: resident.swap(random_delta(base, mask, 1))):
        with pytest.raises(PoisonedError, match="load the base anew"):
            use()


def test_an_interrupt_during_a_swap_restores_and_goes_on(base_of, folder_of, monkeypatch):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    module = load(folder_of("bert"))
    before = bits(module)
    resident = Resident(module, base, mask)

    def interrupt(self, values):
        self.segments[0].flat[self.segments[0].index[:3]] = 9.0
        raise KeyboardInterrupt

    monkeypatch.setattr(Resident, "_write_values", interrupt)
    with pytest.raises(KeyboardInterrupt):
        resident.swap(random_delta(base, mask, 1))
    assert same_bits(before, bits(module))
    assert resident.stamp is None


def test_what_does_not_belong_together_is_refused_before_anything_is_written(base_of, folder_of):
    base, other = base_of("bert"), base_of("roberta")
    mask = Mask.build(base, 0.02)
    module = load(folder_of("bert"))
    resident = Resident(module, base, mask)
    before = bits(module)
    good = random_delta(base, mask, 1)
    wrong = [
        random_delta(other, Mask.build(other, 0.02), 1),
        random_delta(base, Mask.build(base, 0.01), 1),
        _with_dense(good, "no.such.tensor"),
    ]
    for delta in wrong:
        with pytest.raises(MismatchError):
            resident.swap(delta)
        assert same_bits(before, bits(module))
    with pytest.raises(MismatchError, match="made on base"):
        Resident(load(folder_of("bert")), base, Mask.build(other, 0.01))
    changed = load(folder_of("bert"))
    changed.encoder.layer[1].output.dense.weight.data[3, 4] += 1
    with pytest.raises(MismatchError, match="the same bits"):
        Resident(changed, base, mask)
    with pytest.raises(MismatchError, match="dtype"):
        Resident(load(folder_of("bert")).to(torch.bfloat16), base, mask)
    with pytest.raises(MismatchError):
        Resident(torch.nn.Linear(3, 3), base, mask)


def _with_dense(delta, name):
    return dataclasses.replace(delta, tensors={**delta.tensors, f"dense.{name}": delta.tensors["values"]})


def test_a_head_of_another_size_is_refused(base_of, folder_of):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    with quiet():
        resident = Resident(load_classifier(folder_of("bert"), labels=3), base, mask)
    with pytest.raises(MismatchError, match="as many labels"):
        resident.swap(random_delta(base, mask, 1, classes=4))
    assert resident.stamp is None


def test_a_mask_on_what_the_module_lacks_is_refused(base_of, folder_of):
    """RoBERTa's task models drop the pooler."""
    base = base_of("roberta")
    with quiet():
        module = AutoModelForSequenceClassification.from_pretrained(folder_of("roberta"), dtype="auto")
    with pytest.raises(MismatchError, match="pooler"):
        Resident(module, base, Mask.build(base, 0.02, "all"))


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


def test_a_base_overwritten_after_binding_cannot_spoil_a_restore(folder_of, tmp_path):
    """A dense tensor's own bits are read when it is first replaced: not from a file that is another by then."""
    shutil.copytree(folder_of("bert"), tmp_path / "b")
    base = Base.open(tmp_path / "b", cache=tmp_path)
    resident = Resident.load(base, None)
    before = bits(resident.module)
    with (tmp_path / "b" / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    with pytest.raises(CheckpointError, match="changed while"):
        resident.swap(random_delta(base, None, 1, dense=(a_bias(base),)))
    assert same_bits(before, bits(resident.module))


def prepared_tasks(base, mask, resident):
    """Tasks that write values, dense tensors, factors, and several of these over each other's places."""
    from deltahub.rawtensor import RawTensor

    names = [t.name for t in base.space.tensors if t.role == "block"][:6]
    matrix = next(t for t in base.space.tensors if t.role == "block" and len(t.shape) == 2 and t.name not in names[:3])
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(s, generator=generator) * 0.1 for s in ((matrix.shape[0], 2), (2, matrix.shape[1])))
    factors = {
        f"adapter.{matrix.name}.{part}": RawTensor.of_torch(tensor) for part, tensor in (("up", up), ("down", down))
    }
    tasks = [
        random_delta(base, mask, 0, task="t0"),
        random_delta(base, mask, 1, task="t1", dense=tuple(names[:3])),
        random_delta(base, mask, 2, task="t2", dense=tuple(names[2:])),
        random_delta(base, None, 3, task="t3", dense=tuple(names)),
        random_delta(base, mask, 4, task="t4", dense=tuple(names[:2])),
    ]
    tasks[4] = dataclasses.replace(tasks[4], tensors={**tasks[4].tensors, **factors})
    tasks.append(dataclasses.replace(random_delta(base, None, 5, task="t5", dense=()), tensors=factors))
    return [resident.prepare(task) for task in tasks]


@pytest.mark.parametrize("architecture", ["bert", "llama", "mixtral", "t5"])
def test_a_prepared_swap_gives_the_same_bits_whatever_was_there(base_of, folder_of, architecture):
    """After any walk the module is what the task alone makes of a fresh base: what is not undone is written over."""
    base = base_of(architecture)
    mask = Mask.build(base, 0.05, "all")
    module = load(folder_of(architecture))
    before = bits(module)
    resident = Resident(module, base, mask)
    tasks = prepared_tasks(base, mask, resident)
    alone = []
    for task in tasks:
        resident.restore()
        resident.swap(task.delta)
        alone.append(bits(module))
    rng = np.random.default_rng(2)
    for _ in range(120):
        number = rng.integers(len(tasks))
        stamp = resident.swap(tasks[number], 3)
        assert stamp == Stamp(f"t{number}", 3, tasks[number].delta.digest)
        assert same_bits(alone[number], bits(module))
    resident.restore()
    assert same_bits(before, bits(module))


@pytest.mark.parametrize("last", range(1, 16))
def test_a_swap_that_fails_at_any_write_puts_the_base_back(base_of, folder_of, monkeypatch, last):
    from deltahub.dense import Write

    base = base_of("bert")
    mask = Mask.build(base, 0.05, "all")
    module = load(folder_of("bert"))
    before = bits(module)
    resident = Resident(module, base, mask)
    tasks = prepared_tasks(base, mask, resident)
    run, done = Write.run, []

    def fails(write):
        done.append(write)
        if len(done) == last:
            raise RuntimeError("device lost")
        run(write)

    def swap_on():
        while True:
            for task in (tasks[2], tasks[4], tasks[3], tasks[0]):
                resident.swap(task)

    resident.swap(tasks[1])
    monkeypatch.setattr(Write, "run", fails)
    with pytest.raises(ResidentError, match=r"device lost.*back in place"):
        swap_on()
    assert same_bits(before, bits(module))
    assert resident.stamp is None
    resident.swap(tasks[1])
    resident.restore()
    assert same_bits(before, bits(module))


def test_only_the_resident_that_prepared_a_task_takes_it(base_of, folder_of):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    one, other = (Resident(load(folder_of("bert")), base, mask) for _ in range(2))
    before = bits(other.module)
    with pytest.raises(MismatchError, match="sst2 was prepared by another resident; prepare it with this one"):
        other.swap(one.prepare(random_delta(base, mask, 1)))
    assert other.stamp is None
    assert same_bits(before, bits(other.module))


def test_a_prepared_swap_checks_and_converts_nothing_again(base_of, folder_of, monkeypatch):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    resident = Resident(load(folder_of("bert")), base, mask)
    prepared = resident.prepare(random_delta(base, mask, 1, dense=(a_bias(base),)))
    assert prepared.parts[0].data_ptr() == prepared.delta.values.data_ptr()  # nothing is kept twice
    monkeypatch.setattr("deltahub.resident.check_fit", None)
    monkeypatch.setattr("deltahub.dense.DenseSlots.writes", None)
    resident.swap(prepared)
    assert resident.values() == prepared.delta.tensors["values"]

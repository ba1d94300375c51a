"""Swaps that fail or are refused: nothing is left half-written."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from deltahub.backbone import quiet
from deltahub.checkpoint import Base
from deltahub.errors import CheckpointError, MismatchError, PoisonedError, ResidentError
from deltahub.mask import Mask
from deltahub.resident import Resident
from tests.deltas import random_delta
from tests.models import a_bias, bits, load, load_classifier, same_bits


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

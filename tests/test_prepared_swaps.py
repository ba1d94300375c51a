"""Swaps of tasks that have been prepared for a resident."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from deltahub.errors import MismatchError, ResidentError
from deltahub.mask import Mask
from deltahub.resident import Resident, Stamp
from tests.deltas import random_delta
from tests.models import a_bias, bits, load, same_bits


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

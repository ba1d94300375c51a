"""What a mixer leaves behind, keeps in memory, and survives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.errors import MismatchError, ResidentError
from deltahub.heads import load_tokenizer
from deltahub.mask import Mask
from deltahub.mixing import Mixer
from deltahub.mixing.sites import weighted
from deltahub.rawtensor import RawTensor
from deltahub.resident import Resident
from deltahub.task_model import TaskModel
from tests.mixing.conftest import model, untouched
from tests.mixing.test_mixer import KINDS, MATRICES, VECTORS, _encoded, check, numbers, rows_of, with_tensors
from tests.models import bits, same_bits
from tests.tasks import random_task


def test_making_a_mixer_leaves_the_module_as_it_was(resident: Resident) -> None:
    before = bits(resident.module)
    Mixer(resident, load_tokenizer(resident.base))
    assert untouched(resident)
    assert same_bits(before, bits(resident.module))


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, MemoryError])
def test_a_pass_that_ends_anywhere_leaves_nothing_behind(
    resident: Resident, mixer: Mixer, error: type[BaseException]
) -> None:
    rows = rows_of(mixer, [model(resident, seed, kind) for seed, kind in enumerate(KINDS)])
    before, right = bits(resident.module), [numbers(mixed.answer) for mixed in mixer.run(rows)]

    def fail(*_: object) -> None:
        raise error

    parts = [part for part in resident.module.modules() if not isinstance(part, nn.ModuleList)]
    parts += [part for (task, _) in rows for part in task.model.model.modules() if part not in set(parts)]
    stopped = 0
    for part in parts:
        for register in (part.register_forward_pre_hook, part.register_forward_hook):
            handle = register(fail)
            try:
                mixer.run(rows)
            except error:
                stopped += 1
            finally:
                handle.remove()
            assert untouched(resident)
    assert stopped > 60, "few of the parts were run"
    assert same_bits(before, bits(resident.module))
    assert all(map(torch.equal, right, [numbers(mixed.answer) for mixed in mixer.run(rows)]))


@pytest.mark.parametrize("where", ["values", f"dense.{VECTORS[0]}"])
def test_a_task_that_overflows_takes_nobody_with_it_the_next_time(
    base: Base, mask: Mask, resident: Resident, mixer: Mixer, where: str
) -> None:
    good = model(resident)
    delta = with_tensors(base, random_task(base, mask, "text-classification", task="bad"), 1, VECTORS[0])
    tensors = dict(delta.tensors)
    tensors[where] = RawTensor.of_torch(torch.full(tensors[where].shape, 3e38))
    bad = TaskModel(resident, load_tokenizer(base), Delta(delta.manifest, tensors))
    rows = rows_of(mixer, [good, bad])
    with pytest.raises(MismatchError, match="bad"):
        mixer.run(rows)
    assert untouched(resident)
    check(resident, mixer, rows[::2])


def test_a_task_keeps_no_copy_of_its_values(base: Base, mask: Mask, resident: Resident, mixer: Mixer) -> None:
    before = mixer.nbytes
    for seed in range(3):
        delta = random_task(base, mask, "text-classification", task=f"t{seed}", seed=seed)
        task = mixer.admit(TaskModel(resident, load_tokenizer(base), delta))
        own = delta.tensors["values"].data
        assert task.changes.values is not None
        assert task.changes.values.data_ptr() == own.ctypes.data
        assert task.changes.nbytes < own.nbytes / 4
    assert mixer.nbytes == before


def test_a_mixer_keeps_the_pattern_once(mask: Mask, mixer: Mixer) -> None:
    """Of each masked value its place in the matrix, its column and what the base has there."""
    vectors = sum(vector.tensor.numel() for vector in mixer.sites.vectors)
    outputs = sum(len(pattern.indptr) for pattern in mixer.patterns)
    in_matrices = sum(len(pattern.base) for pattern in mixer.patterns)
    assert mixer.nbytes == 8 * mask.k + 8 * in_matrices + 4 * outputs + 4 * vectors


def test_factors_keep_no_copy(base: Base, resident: Resident, mixer: Mixer) -> None:
    delta = with_tensors(base, random_task(base, None, "embeddings"), 1, *MATRICES, group="adapter")
    task = mixer.admit(TaskModel(resident, load_tokenizer(base), delta))
    assert task.changes.nbytes == 0
    assert _encoded(task.model, "w1").tokens["input_ids"]


def test_another_thread_sees_a_norms_own_weight_during_a_pass() -> None:
    """Loaders copy task models around the shared backbone while a pass runs."""
    seen = []

    class SpiedRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            seen.append(norm._parameters["weight"])
            return states * self.weight

    norm = SpiedRMSNorm()
    own = norm.weight
    found = weighted(norm, torch.full((2, 1, 4), 3.0), torch.ones(2, 5, 4))
    assert torch.equal(found, torch.full((2, 5, 4), 3.0))
    assert len(seen) == 1
    assert seen[0] is own


def test_a_pass_in_another_dtype_is_refused_before_memory_is_written(resident: Resident, mixer: Mixer) -> None:
    rows = rows_of(mixer, [model(resident)])
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(MismatchError, match="without autocast"):
        mixer.run(rows)
    assert len(mixer.run(rows)) == len(rows)


def test_two_passes_at_the_same_time_are_refused(resident: Resident, mixer: Mixer) -> None:
    rows = rows_of(mixer, [model(resident)])
    refused = []

    def again(*_: object) -> None:
        with pytest.raises(ResidentError, match="at the same time"):
            mixer.run(rows)
        refused.append(1)

    handle = resident.module.register_forward_pre_hook(again)
    mixer.run(rows)
    handle.remove()
    assert refused
    assert len(mixer.run(rows)) == len(rows)


@pytest.mark.parametrize("failure", [OSError("libllvmlite.so"), RuntimeError("unknown host"), ImportError("llvmlite")])
def test_without_a_compiler_torch_takes_the_products(
    resident: Resident, base: Base, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise failure

    monkeypatch.setattr("deltahub.mixing.cpu.Kernel", fails)
    assert Mixer(resident, load_tokenizer(base)).products.name == f"torch ({type(failure).__name__}: {failure})"

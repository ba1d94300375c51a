from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from deltahub import selection
from deltahub.checkpoint import Base
from deltahub.compare import budget
from deltahub.errors import FormatError, MismatchError, UsageError
from deltahub.mask import Mask
from tests.test_checkpoint import sharded


def by_full_sort(base: Base, k: int, names: set[str]) -> np.ndarray:
    """The definition: sort all (|w| widened to fp32, position), take k."""
    keys, positions = [], []
    for tensor in base.space.tensors:
        if tensor.name in names:
            keys.append(base.read(tensor.name).float32().view(np.uint32) & 0x7FFFFFFF)
            positions.append(np.arange(tensor.offset, tensor.offset + tensor.size))
    key, position = np.concatenate(keys), np.concatenate(positions)
    return np.sort(position[np.lexsort((position, key))[:k]])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    levels=st.integers(1, 9),
    density=st.floats(0.001, 1.0),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), min_size=1, max_size=5),
)
def test_selection_equals_a_full_sort_also_where_thousands_tie(tmp_path_factory, seed, levels, density, dtypes):
    generator = torch.Generator().manual_seed(seed)
    folder = tmp_path_factory.mktemp("ties")
    tensors = {}
    for number, dtype in enumerate(dtypes):
        picked = torch.randint(-levels, levels + 1, (37 + 1000 * number,), generator=generator)
        tensors[f"layer.{number}.weight"] = (picked * 2.0**-20).to(dtype)
    save_file(tensors, folder / "model.safetensors")
    base = Base.open(folder, cache=folder)
    k = round(density * base.space.size)
    if k:
        mask = Mask.build(base, density, "all")
        assert np.array_equal(mask.indices, by_full_sort(base, k, set(base.space.by_name)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scope", ["blocks", "matrices", "all"])
def test_k_counts_the_whole_space_and_scope_limits_the_choice(base_of, dtype, scope):
    base = base_of("bert", dtype)
    mask = Mask.build(base, 0.01, scope)
    names = {tensor.name for tensor in base.space.scope(scope)}
    assert mask.k == round(0.01 * base.space.size)
    assert np.array_equal(mask.indices, by_full_sort(base, mask.k, names))


def test_neither_shards_nor_chunks_nor_threads_change_a_mask(folder_of, base_of, tmp_path, monkeypatch):
    expected = Mask.build(base_of("llama"), 0.02)
    monkeypatch.setattr("deltahub.checkpoint.CHUNK", 128)
    monkeypatch.setattr(selection, "_POOL", 16)
    monkeypatch.setattr("deltahub.checkpoint.os.cpu_count", lambda: 8)
    again = Mask.build(Base.open(sharded(folder_of("llama"), tmp_path / "s", 3), cache=tmp_path), 0.02)
    assert again.digest == expected.digest


def test_a_guess_that_is_too_low_costs_a_second_read_not_the_result(base_of, monkeypatch):
    expected = Mask.build(base_of("bert"), 0.05)
    monkeypatch.setattr(selection, "_guess", lambda *_: 0)
    assert Mask.build(base_of("bert"), 0.05).digest == expected.digest


def test_the_random_recipe_never_changes(base_of):
    """Golden: the first outputs of SplitMix64 as published, and a mask made with it."""
    assert selection.splitmix64(np.arange(2, dtype=np.uint64), 0).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    mask = Mask.build(base_of("bert"), 0.0005, recipe="random", seed=7)
    tensors = base_of("bert").space.scope("blocks")
    positions = np.concatenate([np.arange(t.offset, t.offset + t.size) for t in tensors])
    keys = selection.splitmix64(positions.astype(np.uint64), 7)
    assert np.array_equal(mask.indices, np.sort(positions[np.argsort(keys)[: mask.k]]))
    assert mask.digest != Mask.build(base_of("bert"), 0.0005, recipe="random", seed=8).digest


def test_globs_add_and_exclude(base_of):
    base = base_of("bert")
    mask = Mask.build(base, 0.01, include=["embeddings.*"], exclude=["*.bias", "encoder.layer.0.*"])
    names = {tensor.name for tensor, _ in base.space.split(mask.indices)}
    assert any(name.startswith("embeddings.") for name in names)
    assert not any(name.endswith(".bias") or name.startswith("encoder.layer.0.") for name in names)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"density": 0}, "density"),
        ({"density": 7}, "density"),
        ({"density": float("nan")}, "density"),
        ({"density": 0.9, "scope": "matrices"}, "expected 1 to"),
        ({"density": 1e-9}, "0 values"),
        ({"scope": "everything"}, "blocks, matrices, all"),
        ({"include": ["nothing*"]}, "matches no tensor"),
        ({"exclude": ["*"]}, "leaves no tensor"),
        ({"recipe": "largest"}, "smallest-magnitude or random"),
        ({"recipe": "random", "seed": -1}, "seed"),
    ],
)
def test_impossible_masks_are_refused(base_of, options, said):
    with pytest.raises(UsageError, match=said):
        Mask.build(base_of("bert"), **options)


@pytest.mark.parametrize("recipe", ["smallest-magnitude", "random"])
def test_a_mask_comes_back_from_its_file_and_from_its_recipe(base_of, tmp_path, recipe):
    mask = Mask.build(base_of("bert"), 0.01, recipe=recipe, seed=3)
    loaded = Mask.load(mask.save(tmp_path / "m.mask"))
    assert (loaded.digest, loaded.recipe, loaded.n) == (mask.digest, mask.recipe, mask.n)
    assert np.array_equal(Mask.rebuild(base_of("bert"), mask.ref).indices, mask.indices)


def test_another_base_or_recipe_cannot_pass_for_it(base_of):
    mask = Mask.build(base_of("bert"), 0.01)
    with pytest.raises(MismatchError, match="another mask"):
        Mask.rebuild(base_of("bert", torch.bfloat16), mask.ref)
    with pytest.raises(MismatchError, match="cannot be rebuilt"):
        Mask.rebuild(base_of("bert"), Mask.of_indices(base_of("bert"), np.array([1, 5])).ref)
    forged = dataclasses.replace(mask.ref, recipe={**mask.recipe, "colour": "red"})
    with pytest.raises(MismatchError, match="cannot be followed"):
        Mask.rebuild(base_of("bert"), forged)


@pytest.mark.parametrize("bad", [[], [3, 3], [5, 2], [-1], [10**9]])
def test_positions_must_ascend_inside_the_space(base_of, bad):
    with pytest.raises(FormatError, match="mask positions"):
        Mask.of_indices(base_of("bert"), np.array(bad, np.int64))


def test_any_flipped_byte_of_a_mask_file_is_noticed(base_of, tmp_path):
    from deltahub.errors import DeltahubError

    data = Mask.build(base_of("bert"), 0.002).save(tmp_path / "m.mask").read_bytes()
    for at in range(0, len(data), 5):
        (tmp_path / "bad.mask").write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            found = Mask.load(tmp_path / "bad.mask")
        except DeltahubError:
            continue
        assert found.digest == Mask.load(tmp_path / "m.mask").digest  # a letter of the recipe or of the base's id


def test_budget_sums_to_k_and_counts_zeros(base_of, tmp_path):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    shares = budget(base, mask)
    assert sum(share.masked for share in shares) == mask.k
    assert sum(share.parameters for share in shares) == base.space.size
    assert {share.group for share in shares} >= {"encoder.layer.*.output.dense.weight"}
    save_file({"layer.0.weight": torch.zeros(10), "layer.1.weight": torch.ones(10)}, tmp_path / "model.safetensors")
    zeros = Base.open(tmp_path, cache=tmp_path)
    assert budget(zeros, Mask.build(zeros, 0.25))[0].zeros == 5

"""Checkpoint tensors that transformers changes on loading are traced, or refused by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import conversion_mapping
from transformers.core_model_loading import Concatenate, ConversionOps, Transpose, WeightConverter

from deltahub.binding import bind
from deltahub.checkpoint import Base
from deltahub.errors import MismatchError
from deltahub.mask import Mask
from deltahub.resident import Resident
from tests.deltas import random_delta
from tests.models import bits, load, same_bits


class AddOne(ConversionOps):
    """A conversion that computes: no position can be traced through it."""

    def convert(self, input_dict, source_patterns, target_patterns, **_):
        [tensors] = input_dict.values()
        return {target_patterns[0]: tensors[0] * 2 + 1}


def converted(tmp_path, folder, monkeypatch, change, rules) -> Base:
    """``folder``'s checkpoint as if its file held ``change(tensors)`` and transformers had ``rules`` to undo that."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    shutil.copy(folder / "config.json", tmp_path)
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda *_: rules)
    return Base.open(tmp_path, cache=tmp_path / "cache")


def swap_and_restore(base: Base, module: torch.nn.Module) -> None:
    mask = Mask.build(base, 0.05)
    before = bits(module)
    resident = Resident(module, base, mask)
    delta = random_delta(base, mask, 3)
    resident.swap(delta)
    assert resident.values() == delta.tensors["values"]
    assert not same_bits(before, bits(module))
    resident.restore()
    assert same_bits(before, bits(module))


def test_a_transposed_tensor_is_traced(folder_of, tmp_path, monkeypatch):
    name = "intermediate.dense.weight"

    def change(tensors):
        for layer in range(2):
            full = f"encoder.layer.{layer}.{name}"
            tensors[full] = tensors[full].T.contiguous()

    base = converted(tmp_path, folder_of("bert"), monkeypatch, change, [WeightConverter(name, name, [Transpose(0, 1)])])
    swap_and_restore(base, load(folder_of("bert")))


def test_a_trace_that_leads_to_other_values_is_refused(folder_of, tmp_path, monkeypatch):
    """A rule that transposes square matrices which the file has as they are: shapes fit, values tell."""
    name = "attention.output.dense.weight"
    rules = [WeightConverter(name, name, [Transpose(0, 1)])]
    base = converted(tmp_path, folder_of("bert"), monkeypatch, lambda tensors: None, rules)
    with pytest.raises(MismatchError, match="the same bits"):
        Resident(load(folder_of("bert")), base, None)


def test_split_tensors_that_are_fused_on_loading_are_traced(folder_of, tmp_path, monkeypatch):
    def change(tensors):
        for layer in range(2):
            whole = tensors.pop(f"encoder.layer.{layer}.intermediate.dense.weight")
            tensors[f"encoder.layer.{layer}.first.weight"], tensors[f"encoder.layer.{layer}.second.weight"] = (
                part.contiguous() for part in whole.split(32)
            )

    rules = [WeightConverter(["first.weight", "second.weight"], "intermediate.dense.weight", [Concatenate(0)])]
    base = converted(tmp_path, folder_of("bert"), monkeypatch, change, rules)
    module = load(folder_of("bert"))
    fused = [place for place in bind(module, base).placements if place.trace is not None]
    assert [len(place.sources) for place in fused] == [2, 2]
    swap_and_restore(base, module)


def test_a_conversion_that_computes_is_refused_by_name(folder_of, tmp_path, monkeypatch):
    rules = [WeightConverter("intermediate.dense.bias", "intermediate.dense.bias", [AddOne()])]
    base = converted(tmp_path, folder_of("bert"), monkeypatch, lambda tensors: None, rules)
    with pytest.raises(MismatchError, match=r"encoder\.layer\.0\.intermediate\.dense\.bias"):
        bind(load(folder_of("bert")), base)


def test_vit_is_renamed_on_loading_and_still_found(base_of, folder_of):
    placements = bind(load(folder_of("vit")), base_of("vit")).placements
    moved = {place.sources[0]: place.name for place in placements if place.sources[0] != place.name}
    assert moved["encoder.layer.0.attention.attention.query.weight"] == "layers.0.attention.q_proj.weight"


def test_a_model_id_opens_from_the_local_cache_without_a_network(folder_of, tmp_path):
    """The real huggingface_hub client in offline mode over the cache folder that a download leaves."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(folder_of("bert"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    code = (
        "from deltahub.checkpoint import Base\n"
        "base = Base.open({!r}, cache='{}')\nprint(base.id, base.revision, base.digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code.format("acme/tiny", tmp_path)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["acme/tiny", commit, Base.open(folder_of("bert"), cache=tmp_path).digest]
    missing = subprocess.run(
        [sys.executable, "-m", "deltahub.cli", "mask", "build", "acme/other", "-o", str(tmp_path / "m")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert missing.returncode == 1
    assert missing.stderr.count("\n") == 1
    assert "acme/other" in missing.stderr

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deltahub.checkpoint import Base
from deltahub.errors import CheckpointError
from deltahub.space import role


def sharded(source: Path, out: Path, shards: int, *, reverse: bool = False) -> Path:
    """The same checkpoint in several files, tensors dealt out in turn."""
    tensors = load_file(source / "model.safetensors")
    out.mkdir()
    names = sorted(tensors, reverse=reverse)
    where = {name: f"model-{number % shards + 1:05d}-of-{shards:05d}.safetensors" for number, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, out / file, {"format": "pt"})
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    shutil.copy(source / "config.json", out)
    return out


def test_digest_ignores_shards_and_tensor_order(folder_of, tmp_path):
    whole = Base.open(folder_of("bert"), cache=tmp_path)
    digests = {
        Base.open(sharded(folder_of("bert"), tmp_path / f"{n}{r}", n, reverse=r), cache=tmp_path).digest
        for n in (2, 3)
        for r in (False, True)
    }
    assert digests == {whole.digest}


def test_digest_is_the_documented_one(folder_of, tmp_path):
    import hashlib

    tensors = load_file(folder_of("bert") / "model.safetensors")
    expected = hashlib.sha256(b"deltahub base 1\n")
    for name in sorted(tensors):
        content = hashlib.sha256(tensors[name].numpy().tobytes()).hexdigest()
        expected.update(json.dumps([name, "F32", list(tensors[name].shape), content], separators=(",", ":")).encode())
        expected.update(b"\n")
    assert Base.open(folder_of("bert"), cache=tmp_path).digest == expected.hexdigest()


def test_one_flipped_bit_or_another_dtype_changes_the_digest(folder_of, base_of, tmp_path):
    other = shutil.copytree(folder_of("bert"), tmp_path / "flipped")
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(-5, 2)
        byte = file.read(1)[0]
        file.seek(-5, 2)
        file.write(bytes([byte ^ 1]))
    flipped = Base.open(other, cache=tmp_path).digest
    assert len({base_of("bert").digest, flipped, base_of("bert", torch.bfloat16).digest}) == 3


def test_second_open_reads_no_weights(folder_of, tmp_path, monkeypatch):
    old = shutil.copytree(folder_of("bert"), tmp_path / "old")
    import os

    os.utime(old / "model.safetensors", (1e9, 1e9))
    monkeypatch.setattr("deltahub.checkpoint_files.time.time_ns", lambda: 2_000_000_000 * 10**9)
    digest = Base.open(old, cache=tmp_path / "cache").digest
    monkeypatch.setattr(Base, "_hash", lambda *_: pytest.fail("hashed again"))
    assert Base.open(old, cache=tmp_path / "cache").digest == digest


def test_a_tied_embedding_counts_once_unless_the_config_unties_it(base_of, tmp_path):
    tensors = {
        "shared.weight": torch.randn(8, 4),
        "encoder.block.0.layer.0.SelfAttention.q.weight": torch.randn(4, 4),
    }
    tensors["lm_head.weight"] = tensors["shared.weight"].clone()
    for tied, size in ((True, 48), (False, 80)):
        folder = tmp_path / str(tied)
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
        base = Base.open(folder, cache=tmp_path)
        assert base.space.size == size
        assert base.space.aliases == ({"shared.weight": "lm_head.weight"} if tied else {})


def write(folder: Path, tensors: dict[str, torch.Tensor], config: object = None) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


GOOD = {"layer.0.weight": torch.ones(4, 4)}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p / "nowhere/at/all", "no checkpoint at"),
        (lambda p: write(p / "a", {"layer.0.weight": torch.tensor([1.0, float("nan")])}), "1 NaN or infinite"),
        (lambda p: write(p / "a", {"layer.0.weight": torch.full((3,), float("inf")).bfloat16()}), "3 NaN or infinite"),
        (lambda p: write(p / "a", {"layer.0.weight": torch.ones(2, dtype=torch.float64)}), "convert it"),
        (lambda p: write(p / "a", GOOD, {"quantization_config": {"bits": 4}}), "quantised"),
        (lambda p: write(p / "a", {**GOOD, "layer.0.qweight": torch.ones(2, dtype=torch.int32)}), "quantised"),
        (lambda p: write(p / "a", {"layer.0.weight": torch.ones(2, dtype=torch.float8_e4m3fn)}), "quantised"),
        (lambda p: write(p / "a", {"ids": torch.ones(2, dtype=torch.int64)}), "no floating-point tensor"),
    ],
)
def test_unusable_checkpoints_are_refused_in_one_line(tmp_path, make, said):
    with pytest.raises(CheckpointError, match=said) as error:
        _ = Base.open(make(tmp_path), cache=tmp_path / "cache").digest
    assert "\n" not in str(error.value)


def test_pickles_are_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(CheckpointError, match="save_pretrained"):
            Base.open(source)


def test_a_missing_shard_is_named(folder_of, tmp_path):
    folder = sharded(folder_of("bert"), tmp_path / "s", 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 3 shards are missing.*00002"):
        Base.open(folder)


def test_an_index_cannot_point_outside_its_folder(folder_of, tmp_path):
    folder = sharded(folder_of("bert"), tmp_path / "s", 2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../s/model.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        Base.open(folder)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_cut_file_is_refused(folder_of, tmp_path, cut):
    data = (folder_of("bert") / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:cut])
    with pytest.raises(CheckpointError):
        Base.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("embeddings.word_embeddings.weight", (9, 4), "embedding"),
        ("roberta.encoder.layer.11.output.LayerNorm.bias", (4,), "block"),
        ("bert.pooler.dense.weight", (4, 4), "pooler"),
        ("cls.predictions.transform.dense.weight", (4, 4), "head"),
        ("lm_head.dense.weight", (4, 4), "head"),
        ("transformer.wpe.weight", (9, 4), "embedding"),
        ("h.0.attn.c_attn.weight", (4, 12), "block"),
        ("h.0.attn.bias", (1, 1, 9, 9), "buffer"),
        ("h.0.attn.masked_bias", (), "buffer"),
        ("ln_f.weight", (4,), "block"),
        ("model.embed_tokens.weight", (9, 4), "embedding"),
        ("model.layers.3.mlp.gate_proj.weight", (8, 4), "block"),
        ("model.norm.weight", (4,), "block"),
        ("shared.weight", (9, 4), "embedding"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 2), "embedding"),
        ("decoder.final_layer_norm.weight", (4,), "block"),
        ("vit.embeddings.patch_embeddings.projection.weight", (4, 3, 8, 8), "embedding"),
        ("vit.encoder.layer.0.attention.attention.query.weight", (4, 4), "block"),
        ("vit.layernorm.weight", (4,), "block"),
        ("classifier.weight", (2, 4), "head"),
        ("score.weight", (2, 4), "head"),
    ],
)
def test_roles_hold_across_architectures(name, shape, expected):
    assert role(name, shape) == expected


def test_gather_reads_the_bases_own_values(base_of):
    base = base_of("bert", torch.bfloat16)
    flat = np.concatenate([base.read(tensor.name).bits for tensor in base.space.tensors])
    positions = np.arange(3, base.space.size, 7)
    assert np.array_equal(base.gather(positions).bits, flat[positions])

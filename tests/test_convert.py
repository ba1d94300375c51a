from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from deltahub.backbone import quiet
from deltahub.checkpoint import Base
from deltahub.compare import diff
from deltahub.convert.extract import extract
from deltahub.convert.materialize import materialize
from deltahub.errors import CheckpointError, MismatchError, OutsideMaskError, UsageError
from deltahub.mask import Mask
from deltahub.merging import merge
from deltahub.rawtensor import RawTensor
from deltahub.resident import Resident
from tests.deltas import random_delta
from tests.models import CONFIGS, bits, load, load_classifier, same_bits
from tests.test_checkpoint import sharded

CLASSIFIERS = [name for name in CONFIGS if name != "vit"]
CREATED = "2026-01-01T00:00:00Z"


def finetune(base: Base, folder, mask: Mask, *, seed: int = 0):
    """A task model whose masked values and head were changed, as training does."""
    with quiet():
        torch.manual_seed(seed)
        model = load_classifier(folder)
    resident = Resident(model, base, mask)
    resident.swap(random_delta(base, mask, seed))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in resident.binding.own:
                parameter.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_checkpoint_to_delta_to_checkpoint_is_the_identity(base_of, folder_of, tmp_path, architecture):
    base = base_of(architecture, torch.bfloat16)
    mask = Mask.build(base, 0.02, exclude=["pooler*"] if architecture == "roberta" else [])
    model = finetune(base, folder_of(architecture, torch.bfloat16), mask)
    model.save_pretrained(tmp_path / "finetuned")
    from_disk = extract(base, tmp_path / "finetuned", mask, task="sst2", created=CREATED)
    from_memory = extract(base, model, mask, task="sst2", created=CREATED)
    assert from_disk.tensors.keys() == from_memory.tensors.keys()
    assert all(from_disk.tensors[name] == from_memory.tensors[name] for name in from_disk.tensors)
    out = materialize(base, from_disk, tmp_path / "full")
    with quiet():
        again = type(model).from_pretrained(out, dtype="auto")
    assert same_bits(bits(again), bits(model))
    assert from_disk.manifest.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_materialize_keeps_shards_and_ties_heads_to_names(folder_of, tmp_path):
    base = Base.open(sharded(folder_of("bert"), tmp_path / "s", 3), cache=tmp_path)
    mask = Mask.build(base, 0.02)
    model = finetune(base, folder_of("bert"), mask)
    delta = extract(base, model, mask, task="sst2")
    out = materialize(base, delta, tmp_path / "full")
    assert len(list(out.glob("*.safetensors"))) == 4
    with quiet():
        again = AutoModelForSequenceClassification.from_pretrained(out)
    assert same_bits(bits(again), bits(model))
    assert json.loads((out / "config.json").read_text())["id2label"]["2"] == "LABEL_2"


def test_materialize_never_writes_into_a_folder_with_files(base_of, tmp_path):
    base = base_of("bert")
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(UsageError, match="not empty"):
        materialize(base, random_delta(base, Mask.build(base, 0.01)), tmp_path)
    assert (tmp_path / "mine").read_text() == "keep"


def test_a_materialize_that_dies_leaves_nothing(base_of, tmp_path, monkeypatch):
    base = base_of("bert")
    delta = random_delta(base, Mask.build(base, 0.01))
    monkeypatch.setattr(Base, "read", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        materialize(base, delta, tmp_path / "out", mask=Mask.build(base, 0.01))
    assert list(tmp_path.iterdir()) == []


def test_changes_outside_the_mask_are_refused_and_counted(base_of, folder_of):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    model = finetune(base, folder_of("bert"), mask)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias[:5] += 1
    with pytest.raises(OutsideMaskError, match=r"most in encoder\.layer\.0\.output\.dense\.bias") as error:
        extract(base, model, mask, task="sst2")
    [(name, count, size)] = error.value.changes
    covered = np.isin(np.arange(5) + base.space.by_name[name].offset, mask.indices).sum()
    assert (count, size) == (5 - covered, 32)
    stored = extract(base, model, mask, task="sst2", dense=["*.output.dense.bias"])
    assert torch.equal(stored.dense[name], model.bert.encoder.layer[0].output.dense.bias)
    lossy = extract(base, model, mask, task="sst2", lossy=True)
    assert lossy.manifest.method["lossy"] is True
    changes = sum(
        float((bits(model)[f"bert.{n}"].double() - base.read(n).torch().double()).square().sum())
        for n in base.space.by_name
    )
    assert lossy.manifest.method["lost_share"] == pytest.approx((5 - covered) / changes)


def test_another_dtype_vocabulary_or_architecture_is_refused(base_of, folder_of):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    with pytest.raises(MismatchError, match="BF16"):
        extract(base, folder_of("bert", torch.bfloat16), mask, task="sst2")
    with pytest.raises(MismatchError):
        extract(base, folder_of("llama"), mask, task="sst2")
    bigger = load(folder_of("bert"))
    bigger.resize_token_embeddings(128)
    with pytest.raises(MismatchError, match=r"\(96, 32\)"):
        extract(base, bigger, mask, task="sst2")
    with pytest.raises(UsageError, match="matches no tensor"):
        extract(base, folder_of("bert"), mask, task="sst2", dense=["nothing"])


def test_an_unchanged_checkpoint_gives_the_bases_own_values(base_of, folder_of):
    base = base_of("vit")
    mask = Mask.build(base, 0.02)
    delta = extract(base, folder_of("vit"), mask, task="same")
    assert delta.tensors["values"] == base.gather(mask.indices)
    assert delta.manifest.kind == "embeddings"


def test_diff_sees_direction_and_distance(base_of):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    a, b = random_delta(base, mask, 1), random_delta(base, mask, 2)
    same = diff(base, a, a)
    assert (same.equal, same.cosine, same.sign_agreement, same.distance) == (mask.k, pytest.approx(1), 1, 0)
    other = diff(base, a, b)
    assert abs(other.cosine) < 0.3
    assert other.distance == pytest.approx(float((a.values.double() - b.values.double()).norm()))
    assert sum(layer.values for layer in other.layers) == mask.k
    with pytest.raises(MismatchError, match="aligned"):
        diff(base, a, random_delta(base, Mask.build(base, 0.01), 1))


def test_merge_is_the_weighted_mean_of_parameters(base_of):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    a, b = random_delta(base, mask, 1, task="a", classes=2), random_delta(base, mask, 2, task="b", classes=2)
    merged = merge([a, b], weights=[0.25, 0.75])
    expected = 0.25 * a.values.double() + 0.75 * b.values.double()
    assert torch.equal(merged.values, expected.float())
    assert torch.equal(merge([a, a]).values, a.values)
    assert merge([a, b], head="b").tensors["head.classifier.bias"] == b.tensors["head.classifier.bias"]
    assert merged.task == "a-b"
    for bad, said in [({"weights": [1.0]}, "sum 1"), ({"method": "ties"}, "average"), ({"head": "c"}, "one of a, b")]:
        with pytest.raises(UsageError, match=said):
            merge([a, b], **bad)
    with pytest.raises(MismatchError, match="aligned"):
        merge([a, random_delta(base, Mask.build(base, 0.01), 1)])
    with pytest.raises(MismatchError, match="--head"):
        merge([a, random_delta(base, mask, 3, classes=4)])


def test_an_extracted_delta_has_memory_of_its_own(base_of, folder_of):
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    model = finetune(base, folder_of("bert"), mask)
    delta = extract(base, model, mask, task="sst2", dense=["*.bias"], created=CREATED)
    before = b"".join(delta.dump())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert b"".join(delta.dump()) == before


def test_what_does_not_fit_is_never_materialized(base_of, tmp_path):
    """The same checks as a swap: a wrong tensor must not make a checkpoint that loads."""
    base = base_of("bert")
    mask = Mask.build(base, 0.02)
    good = random_delta(base, mask, dense=("encoder.layer.0.output.dense.bias",), classes=2)
    bias = good.tensors["dense.encoder.layer.0.output.dense.bias"]
    short = dataclasses.replace(bias, shape=(16,), data=bias.data[:64])
    wrong = [
        {"dense.encoder.layer.0.output.dense.bias": short},
        {"dense.no.such.tensor": bias},
        {"head.encoder.layer.0.output.LayerNorm.bias": bias},
        {"adapter.encoder.layer.0.output.dense.weight.up": bias},
        {"values": RawTensor.of_bits("BF16", (mask.k,), np.zeros(mask.k, np.uint16))},
    ]
    for number, change in enumerate(wrong):
        delta = dataclasses.replace(good, tensors={**good.tensors, **change})
        with pytest.raises(MismatchError):
            materialize(base, delta, tmp_path / str(number))
        with pytest.raises(MismatchError):
            Resident.load(base, mask).swap(delta)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_overflows_is_refused(base_of):
    base = base_of("bert")
    name = "encoder.layer.0.output.dense.weight"
    rows, columns = base.space.by_name[name].shape
    huge = {"up": torch.full((rows, 1), 3e38), "down": torch.full((1, columns), 3e38)}
    factors = {f"adapter.{name}.{part}": RawTensor.of_torch(tensor) for part, tensor in huge.items()}
    delta = dataclasses.replace(random_delta(base, None), tensors=factors)
    with pytest.raises(MismatchError, match="overflows"):
        Resident.load(base, None).swap(delta)


def test_only_what_belongs_to_a_model_goes_along(folder_of, tmp_path):
    import shutil

    shutil.copytree(folder_of("bert"), tmp_path / "b")
    for name in (".netrc", "id_rsa", "train.jsonl", "modeling.py", "tokenizer.json", "vocab.txt"):
        (tmp_path / "b" / name).write_text("{}")
    base = Base.open(tmp_path / "b", cache=tmp_path)
    out = materialize(base, random_delta(base, Mask.build(base, 0.01)), tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}


def test_a_config_that_counts_ties_otherwise_cannot_shift_a_mask(tmp_path):
    """tie_word_embeddings changes the space but not the base digest: the mask's n tells."""
    shared = torch.randn(8, 4)
    tensors = {"shared.weight": shared, "lm_head.weight": shared.clone(), "zz.block.0.weight": torch.randn(64, 4)}
    from safetensors.torch import save_file

    bases = []
    for tied in (True, False):
        folder = tmp_path / str(tied)
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
        bases.append(Base.open(folder, cache=tmp_path))
    assert bases[0].digest == bases[1].digest
    mask = Mask.build(bases[0], 0.1)
    with pytest.raises(MismatchError, match="tie_word_embeddings"):
        materialize(bases[1], random_delta(bases[0], mask), tmp_path / "out", mask=mask)


def test_a_base_that_is_overwritten_while_in_use_is_noticed(folder_of, tmp_path):
    import shutil

    shutil.copytree(folder_of("bert"), tmp_path / "b")
    base = Base.open(tmp_path / "b", cache=tmp_path)
    with (tmp_path / "b" / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    for use in (lambda: Mask.build(base, 0.01), lambda: Resident.load(base, None)):
        with pytest.raises(CheckpointError, match="changed while"):
            use()


def test_values_that_their_own_tensor_cannot_hold_are_refused(tmp_path):
    """A base of mixed dtypes: values travel in fp32, and those of a bf16 tensor must be bf16 numbers."""
    from safetensors.torch import save_file

    tensors = {"layer.0.weight": torch.randn(16, 4), "layer.1.weight": torch.randn(16, 4).bfloat16()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    base = Base.open(tmp_path, cache=tmp_path / "cache")
    mask = Mask.build(base, 0.5)
    exact = random_delta(base, mask)
    materialize(base, exact, tmp_path / "exact")
    values = exact.tensors["values"].copy()
    values.bits[-1] |= 1
    with pytest.raises(MismatchError, match="BF16 holds exactly"):
        materialize(base, dataclasses.replace(exact, tensors={**exact.tensors, "values": values}), tmp_path / "rounded")

"""The report's figures are the bytes that are there, and what the peers really take."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model

from deltahub.backbone import quiet
from deltahub.delta import Delta
from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.report import PROJECTIONS, html, index_floor, lora_parameters
from deltahub.tensorfile import ITEMSIZE
from tests.deltas import random_delta
from tests.models import load
from tests.test_hub import f32, tiny

BIAS = "encoder.layer.0.output.dense.bias"


@pytest.fixture
def base(base_of):
    return base_of("bert")


@pytest.fixture
def hub(base, tmp_path) -> Hub:
    """Four versions: one plain, one with equal values under another head, one rounded, one with a mask of its own."""
    hub = Hub.open(tmp_path / "hub")
    mask = Mask.build(base, 0.02)
    first = random_delta(base, mask, 1, classes=3, dense=(BIAS,))
    hub.push(first)
    head = {"head.classifier.weight": f32(3, 32, seed=9), "head.classifier.bias": f32(3, seed=9)}
    hub.push(Delta(first.manifest, {**first.tensors, **head}).with_manifest(task="twin"))
    hub.push(first.with_manifest(task="rounded"), values="int4")
    own = Mask.of_indices(base, mask.indices[::2].copy())
    hub.push(random_delta(base, own, 2, task="own", classes=2), mask=own)
    return hub


def test_the_total_is_what_lies_in_the_store(hub):
    found = hub.report()
    sizes = {entry.key: entry.size for entry in hub.store.list()}
    stored = sum(size for key, size in sizes.items() if key.startswith("blobs/"))
    versions = sum(size for key, size in sizes.items() if key.startswith("tasks/"))
    masks = sum(size for key, size in sizes.items() if key.startswith("masks/"))
    assert found.total == stored + versions + masks
    by_name = {row.version: row for row in found.tasks}
    assert set(by_name) == {"sst2@1", "twin@1", "rounded@1", "own@1"}
    for row in found.tasks:
        record = hub.version(row.version)
        assert row.stored == record.stored + sizes[f"tasks/{record.task}/v00000001.json"]
        for group in ("values", "dense", "adapter", "head"):
            parts = [section.data.stored for section in record.sections if section.group == group]
            assert getattr(row, group) == sum(parts)
    twice = sum(row.stored for row in found.tasks) - versions - (stored - sum(row.stored for row in found.masks))
    assert twice == by_name["twin@1"].values + by_name["twin@1"].dense + by_name["rounded@1"].head
    assert found.names == 4
    assert sum(found.parts.values()) == found.total
    assert found.parts["index"] == masks + sum(row.stored for row in found.masks)


def test_the_peers_are_counted_as_they_would_be_stored(hub, base):
    found = hub.report(base)
    row = next(row for row in found.tasks if row.version == "sst2@1")
    delta = hub.pull("sst2")
    head = sum(tensor.data.nbytes for name, tensor in delta.tensors.items() if name.startswith("head."))
    assert row.full_checkpoint == sum(t.size * ITEMSIZE[t.dtype] for t in base.space.tensors) + head
    assert row.plain_sparse == 6 * delta.manifest.mask.k + head + 32 * 4
    assert row.lora == 4 * lora_parameters(base) + head
    for peer, column in zip(found.peers, ("full_checkpoint", "plain_sparse", "lora"), strict=True):
        assert peer.total == sum(getattr(row, column) for row in found.tasks)
        assert peer.mean_task == peer.total / 4
    without = hub.report()
    assert all(row.lora is None for row in without.tasks)
    assert len(without.peers) == 2
    assert [row.full_checkpoint for row in without.tasks] == [row.full_checkpoint for row in found.tasks]


def test_projections_are_the_index_plus_tasks_of_one_coding(hub, base):
    found = hub.report(base)
    exact, rounded = found.codings
    assert ((exact.name, exact.versions), (rounded.name, rounded.versions)) == (("exact", 3), ("int4", 1))
    assert exact.mean_task == sum(row.stored for row in found.tasks if not row.lossy) / 3
    assert tuple(row.tasks for row in found.projections) == PROJECTIONS
    for row in found.projections:
        assert row.hub == {
            coding.name: found.parts["index"] + row.tasks * coding.mean_task for coding in (exact, rounded)
        }
        assert row.peers == {peer.name: peer.mean_task * row.tasks for peer in found.peers}


def test_rounded_versions_are_marked(hub):
    marks = {row.version: row.lossy for row in hub.report().tasks}
    assert {name for name, mark in marks.items() if mark} == {"rounded@1"}
    told = {group: f"{lossy.relative_rms:.2%}" for group, lossy in hub.pull("rounded").manifest.quantization.items()}
    assert marks["rounded@1"] == f"int4, {told['values']} rms; dense int4, {told['dense']} rms"


def test_codings_are_what_push_was_told(tmp_path):
    hub = Hub.open(tmp_path / "hub")
    hub.push(tiny("a", 1), values="int8", head="int4")
    hub.push(tiny("b", 1, mask=False), head="bf16")
    hub.push(tiny("c", 1), values="bf16")
    assert [row.coding for row in hub.report().tasks] == ["int8, head int4", "head bf16", "bf16"]


def test_a_layer_that_tasks_share_counts_once(tmp_path):
    hub = Hub.open(tmp_path / "hub")
    layer = f32(64, 64)  # 16 KiB: a blob of its own
    for seed, task in enumerate("abc"):
        own = {"head.out.weight": f32(2, 64, seed=seed + 1), "head.inner.weight": layer}
        one = Delta(tiny(task, seed, mask=False).manifest, own)
        hub.push(one.with_manifest(method={"head_frozen": ["inner.weight"]}))
    found = hub.report()
    [shared] = {row.shared_layers for row in found.tasks}
    assert shared > 10_000
    assert all(row.alone == row.stored - shared < 2500 for row in found.tasks)
    assert found.parts["head"] == shared + sum(row.head - shared for row in found.tasks)
    assert found.total == sum(entry.size for entry in hub.store.list() if entry.key[:5] in ("blobs", "tasks"))
    [coding] = found.codings
    assert (coding.shared, coding.mean_task) == (shared, sum(row.alone for row in found.tasks) / 3)
    assert [row.hub["exact"] for row in found.projections] == [
        shared + count * coding.mean_task for count in PROJECTIONS
    ]


def test_an_empty_hub_has_an_empty_report(tmp_path):
    found = Hub.open(tmp_path / "hub").report()
    assert (found.tasks, found.masks, found.total, found.codings, found.projections) == ((), (), 0, (), ())
    assert "0 versions of 0 tasks, 0 bytes" in html(found)


def test_removed_versions_do_not_count(hub):
    before = hub.report()
    row = next(row for row in before.tasks if row.version == "rounded@1")
    hub.remove("rounded")
    assert before.total - hub.report().total == row.alone == row.values + row.dense + row.record


def test_the_page_names_every_version(hub, base):
    page = html(hub.report(base))
    assert all(f"<td>{row.version}<td>" in page for row in hub.report().tasks)
    assert f"{hub.report().total:,} bytes" in page
    assert "<script" not in page
    assert "http" not in page


@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama", "qwen2", "gpt2", "t5", "vit"])
def test_lora_parameters_are_those_that_peft_makes(base_of, folder_of, architecture):
    with quiet():
        model = load(folder_of(architecture))
    config = LoraConfig(r=8, target_modules="all-linear", fan_in_fan_out=architecture == "gpt2")
    model = inject_adapter_in_model(config, model)
    expected = sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" in name)
    assert lora_parameters(base_of(architecture)) == expected


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_the_floor_is_log2_of_the_number_of_masks(sizes):
    """The least whole number of bytes that has as many patterns."""
    n, k = sizes
    assert index_floor(n, k) == ((math.comb(n, k) - 1).bit_length() + 7) // 8


def test_the_floor_of_large_masks():
    bits = 22_713_216 * -(0.005 * math.log2(0.005) + 0.995 * math.log2(0.995))
    assert index_floor(22_713_216, 113_566) * 8 == pytest.approx(bits, rel=1e-4)
    assert index_floor(10, 10) == index_floor(1, 1) == 0
    assert index_floor(256, 1) == 1
    assert index_floor(1 << 16, 1) == 2

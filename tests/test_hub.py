"""Versions, tags, masks and rounded values of a hub that nothing bad happens to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from deltahub.delta import Delta
from deltahub.digest import of_bytes
from deltahub.errors import HubError, MismatchError, NotFoundError, UsageError
from deltahub.hub import Hub, TaskVersion
from deltahub.manifest import BaseRef, Manifest, MaskRef
from deltahub.mask import Mask
from deltahub.rawtensor import RawTensor
from deltahub.stores import MemoryStore
from tests.deltas import random_delta

_names = itertools.count()


@pytest.fixture(params=["memory", "local"])
def hub(request, tmp_path) -> Hub:
    return Hub.open(f"memory://test-hub-{next(_names)}" if request.param == "memory" else tmp_path / "hub")


@pytest.fixture(scope="module")
def base(base_of):
    return base_of("bert")


@pytest.fixture(scope="module")
def mask(base) -> Mask:
    return Mask.build(base, 0.02)


@pytest.fixture(scope="module")
def file_mask(base) -> Mask:
    rng = np.random.default_rng(0)
    return Mask.of_indices(base, np.sort(rng.choice(base.space.size, 500, replace=False)))


def dump(delta: Delta) -> bytes:
    return b"".join(delta.dump())


def f32(*shape: int, seed: int = 0) -> RawTensor:
    numbers = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return RawTensor.of_bits("F32", shape, numbers.reshape(-1).view(np.uint32))


def blobs(hub: Hub) -> dict[str, int]:
    return {entry.key: entry.size for entry in hub.store.list("blobs")}


BIAS = "encoder.layer.0.output.dense.bias"


@pytest.mark.parametrize("kind", ["fp32", "bf16", "dense", "adapter", "head", "empty", "nothing", "text", "mixed"])
def test_pull_gives_the_bytes_that_were_pushed(hub, base, mask, base_of, kind):
    delta = random_delta(base, mask, classes=2)
    if kind == "bf16":
        small = base_of("llama", torch.bfloat16)
        delta = random_delta(small, Mask.build(small, 0.05))
        assert delta.tensors["values"].dtype == "BF16"
    elif kind == "dense":
        delta = random_delta(base, None, dense=(BIAS, "encoder.layer.1.output.LayerNorm.weight"))
    elif kind == "adapter":
        names = ("encoder.layer.0.output.dense.weight.up", "encoder.layer.0.output.dense.weight.down")
        factors = {f"adapter.{name}": f32(32, 4, seed=seed) for seed, name in enumerate(names)}
        delta = Delta(delta.manifest, {**delta.tensors, **factors})
    elif kind == "head":
        delta = random_delta(base, None, classes=7)
    elif kind == "empty":
        empty = {"head.a": f32(0), "head.b": f32(4, 0, 2), "head.c": f32(1), "dense.x": f32(0, 3)}
        delta = Delta(delta.manifest, {**delta.tensors, **empty})
    elif kind == "nothing":
        delta = Delta(Manifest("sst2", "other", base.ref), {"head.only": f32(0)})
    elif kind == "text":
        method = {"name": "Größe", "seed": 1 << 60, "rate": 1e-4, "note": 'a "quoted"\n\t\\ \U0001f600 \u2028'}
        delta = delta.with_manifest(labels=("gut", "schlecht ✗"), method=method, metrics={"f1": 0.1 + 0.2})
    elif kind == "mixed":
        half = RawTensor.of_bits("F16", (3,), np.array([1, 0x8000, 0x7BFF], np.uint16))
        brain = RawTensor.of_bits("BF16", (2, 1), np.array([0x8000, 0x0001], np.uint16))
        delta = Delta(
            delta.manifest, {**delta.tensors, "head.half": half, "head.brain": brain, f"dense.{BIAS}": f32(32)}
        )
    seen = []
    found = hub.push(delta, progress=lambda done, total: seen.append((done, total)))
    assert found == TaskVersion("sst2", 1, delta.digest)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(blobs(hub).values())
    pulled = hub.pull("sst2")
    assert dump(pulled) == dump(delta)
    assert pulled.tensors == delta.tensors
    assert hub.verify().problems == ()
    assert hub.version("sst2").size == len(dump(delta))


def test_numbers_count_up_and_are_never_used_again(hub, base, mask):
    deltas = [random_delta(base, mask, seed) for seed in range(5)]
    assert [hub.push(delta).number for delta in deltas[:3]] == [1, 2, 3]
    assert hub.remove("sst2@3") == ["sst2@3"]
    assert hub.push(deltas[2]).number == 4
    assert hub.remove("sst2") == ["sst2@1", "sst2@2", "sst2@4"]
    assert hub.tasks() == []
    hub.gc(grace_seconds=0)
    assert hub.push(deltas[0]).number == 5
    assert dump(hub.pull("sst2@5")) == dump(deltas[0])
    for gone in (1, 2, 3, 4, 6):
        with pytest.raises(NotFoundError, match=f"no version {gone}: found 5"):
            hub.pull(f"sst2@{gone}")


def test_numbers_that_run_out_are_refused_before_anything_is_written(hub, base, mask):
    hub.push(random_delta(base, mask, 0))
    hub.store.put("tasks/sst2/v99999999.removed", b"")  # past the last number: a stranger
    assert hub.push(random_delta(base, mask, 1)).number == 2
    assert [problem.key for problem in hub.verify().problems] == ["tasks/sst2/v99999999.removed"]
    hub.store.delete("tasks/sst2/v99999999.removed")
    hub.store.put("tasks/sst2/v99999998.removed", b"")
    before = sorted(entry.key for entry in hub.store.list())
    with pytest.raises(HubError, match="sst2 has no version numbers left"):
        hub.push(random_delta(base, mask, 2))
    assert sorted(entry.key for entry in hub.store.list()) == before
    [problem] = hub.verify().problems
    assert "lost version 3 to 99999997" in problem.problem


def test_a_delta_equal_to_the_newest_version_is_that_version(hub, base, mask):
    first, second = random_delta(base, mask, 1), random_delta(base, mask, 2)
    hub.push(first)
    before = {entry.key: hub.store.get(entry.key) for entry in hub.store.list()}
    assert hub.push(first) == TaskVersion("sst2", 1, first.digest)
    assert {entry.key: hub.store.get(entry.key) for entry in hub.store.list()} == before
    assert hub.push(first, ["prod"]).number == 1
    assert hub.tags("sst2") == {"prod": 1}
    hub.push(second)
    size = sum(blobs(hub).values())
    assert hub.push(first).number == 3
    assert sum(blobs(hub).values()) == size


def test_equal_content_of_two_tasks_is_stored_once(hub, base, mask):
    delta = random_delta(base, mask, classes=2)
    hub.push(delta)
    before = blobs(hub)
    assert hub.push(delta.with_manifest(task="other")).number == 1
    assert blobs(hub) == before
    hub.remove("sst2")
    assert hub.gc(grace_seconds=0).deleted == ()
    assert hub.pull("other").tensors == delta.tensors


def test_tags_name_versions_and_move(hub, base, mask):
    deltas = [random_delta(base, mask, seed) for seed in range(2)]
    hub.push(deltas[0], ["prod", "best"])
    hub.push(deltas[1], ["best"])
    assert hub.tags("sst2") == {"best": 2, "prod": 1}
    assert [dump(hub.pull(f"sst2:{tag}")) for tag in ("prod", "best")] == [dump(delta) for delta in deltas]
    hub.tag("sst2", 2, "prod")
    assert hub.tags("sst2") == {"best": 2, "prod": 2}
    hub.untag("sst2", "best")
    with pytest.raises(NotFoundError, match="no tag best: found prod"):
        hub.pull("sst2:best")
    with pytest.raises(NotFoundError, match="no tag best"):
        hub.untag("sst2", "best")
    with pytest.raises(NotFoundError, match="no version 3"):
        hub.tag("sst2", 3, "prod")
    assert hub.tags("sst2") == {"prod": 2}
    assert hub.tasks()[0].tags == ("prod",)


def test_tagged_versions_stay_unless_forced(hub, base, mask):
    for seed in range(3):
        hub.push(random_delta(base, mask, seed))
    hub.tag("sst2", 2, "prod")
    for reference in ("sst2@2", "sst2"):
        with pytest.raises(HubError, match="named by prod"):
            hub.remove(reference)
    assert len(hub.versions("sst2")) == 3
    assert hub.remove("sst2@1") == ["sst2@1"]
    assert hub.remove("sst2@2", force=True) == ["sst2@2"]
    assert hub.tags("sst2") == {}
    assert [record.number for record in hub.versions("sst2")] == [3]
    hub.tag("sst2", 3, "prod")
    assert hub.remove("sst2", force=True) == ["sst2@3"]
    assert hub.tags("sst2") == {}
    with pytest.raises(UsageError, match="TASK@N"):
        hub.remove("sst2:prod")


def test_unknown_names_are_refused_with_what_there_is(hub, base, mask):
    hub.push(random_delta(base, mask), ["prod"])
    for call in (hub.pull, hub.version, hub.versions, hub.remove):
        with pytest.raises(NotFoundError, match=r"no task sst3 .*did you mean sst2"):
            call("sst3")
        with pytest.raises(UsageError):
            call("../sst2")
    with pytest.raises(NotFoundError, match="`deltahub list`"):
        hub.pull("completely-different")
    with pytest.raises(NotFoundError, match=r"no version 7: found 1"):
        hub.pull("sst2@7")
    with pytest.raises(NotFoundError, match="no tag prud: found prod"):
        hub.pull("sst2:prud")
    with pytest.raises(NotFoundError, match=f"no mask {'0' * 16}.*found [0-9a-f]{{16}}"):
        hub.mask("0" * 64)
    with pytest.raises(UsageError):
        hub.push(random_delta(base, mask, 1), ["Prod"])
    assert len(hub.versions("sst2")) == 1


def test_a_mask_that_a_recipe_rebuilds_takes_no_blob(hub, base, mask):
    hub.push(random_delta(base, mask))
    [record] = hub.masks()
    assert (record.digest, record.n, record.k, record.data) == (mask.digest, mask.n, mask.k, None)
    found = hub.mask(mask.digest)
    assert isinstance(found, MaskRef)
    assert np.array_equal(Mask.rebuild(base, found).indices, mask.indices)
    before = blobs(hub)
    hub.push_mask(mask)
    assert blobs(hub) == before
    assert len(before) == 1


def test_a_mask_without_a_recipe_is_given_once(hub, base, file_mask, mask):
    deltas = [random_delta(base, file_mask, seed) for seed in range(2)]
    with pytest.raises(NotFoundError, match="--mask"):
        hub.push(deltas[0])
    assert hub.tasks() == []
    with pytest.raises(MismatchError, match="not aligned"):
        hub.push(deltas[0], mask=mask)
    hub.push(deltas[0], mask=file_mask)
    hub.push(deltas[1])
    assert dump(hub.pull("sst2@2")) == dump(deltas[1])
    found = hub.mask(file_mask.digest)
    assert isinstance(found, Mask)
    assert found.digest == file_mask.digest
    assert np.array_equal(found.indices, file_mask.indices)
    hub.remove("sst2")
    hub.gc(grace_seconds=0)
    assert list(blobs(hub).values()) == [hub.masks()[0].data.stored]
    assert hub.push(deltas[0]).number == 3
    assert hub.verify().problems == ()


def test_a_mask_of_another_delta_is_refused_also_where_the_version_is_there(hub, base, mask, file_mask):
    hub.push(random_delta(base, mask))
    with pytest.raises(MismatchError, match="not aligned"):
        hub.push(random_delta(base, mask), mask=file_mask)
    with pytest.raises(MismatchError, match="not aligned"):
        hub.push(random_delta(base, None, classes=2), mask=mask)


def test_thousands_of_tasks_are_listed_without_reading_one(base, mask):
    class Counting(MemoryStore):
        gets = 0

        def get(self, *arguments: object) -> bytes:
            self.gets += 1
            return super().get(*arguments)

    store = Counting()
    hub = Hub(store)
    record = hub.push(random_delta(base, mask), ["prod"])
    content = store.get(f"tasks/{record.task}/v00000001.json")
    for number in range(2000):
        store.put(f"tasks/task{number}/v00000003.json", content)
    store.gets = 0
    tasks = hub.tasks()
    assert (len(tasks), store.gets) == (2001, 0)
    assert [info.task for info in tasks] == sorted(info.task for info in tasks)
    assert (tasks[0].task, tasks[0].newest, tasks[0].tags) == ("sst2", 1, ("prod",))


def tiny(task: str, seed: int, mask: bool = True) -> Delta:
    """A delta of a base that is nowhere; the same seed gives the same tensors for every task."""
    base = BaseRef(of_bytes(b"base"), "tiny")
    ref = MaskRef(of_bytes(b"mask"), 64, 1000, {"name": "smallest-magnitude", "density": 0.064}) if mask else None
    tensors = {"head.bias": f32(4, seed=seed % 2)} | ({"values": f32(64, seed=seed)} if mask else {})
    return Delta(Manifest(task, "other", base, ref), tensors)

"""What a push rounds is the task from then on, and every other bit stays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltahub.cli import parser
from deltahub.codecs import quantized
from deltahub.delta import GROUPS, Delta
from deltahub.digest import of_bytes
from deltahub.errors import UsageError
from deltahub.hub import Hub
from deltahub.manifest import ROUNDINGS, BaseRef, Manifest
from deltahub.mask import Mask
from deltahub.rawtensor import RawTensor, narrow
from deltahub.rounding import round_delta
from tests.codecs.test_quantized import finite_tensors
from tests.deltas import random_delta
from tests.test_hub import blobs, dump, f32, tiny

_names = itertools.count()
LOSSY = ROUNDINGS[1:]
NORM = "dense.encoder.layer.0.output.LayerNorm.weight"


@pytest.fixture
def hub() -> Hub:
    return Hub.open(f"memory://rounding-{next(_names)}")


def constant(size: int, number: float = 1.0) -> RawTensor:
    return RawTensor.of_bits("F32", (size,), np.full(size, number, np.float32))


def whole(task: str = "all", seed: int = 0, **method: object) -> Delta:
    """Every group, with tensors of many sizes, one constant one and one of another dtype."""
    half = RawTensor.of_bits("F16", (3, 5), narrow(f32(3, 5, seed=seed).float32(), "F16"))
    tensors = {
        "dense.a.bias": f32(300, seed=seed + 1), "dense.b.bias": f32(7, seed=seed + 2), NORM: constant(32),
        "dense.c.weight": f32(80, 64, seed=seed + 3), "dense.half": half,
        "adapter.m.up": f32(32, 4, seed=seed + 4), "adapter.m.down": f32(4, 32, seed=seed + 5),
        "head.inner.weight": f32(64, 64), "head.out.weight": f32(3, 64, seed=seed + 6),
        "head.out.bias": f32(3, seed=seed), "head.empty": f32(0, 4),
    }  # fmt: skip
    own = tiny(task, seed)
    return Delta(own.with_manifest(method=method).manifest, {**own.tensors, **tensors})


def group_of(name: str) -> str:
    return name.partition(".")[0]


def expected(tensor: RawTensor, rounding: str) -> RawTensor:
    """By torch and by the codec: two other ways to the same bits."""
    if rounding == "bf16":
        return RawTensor.of_torch(tensor.torch().to(torch.bfloat16).to(tensor.torch().dtype))
    found = quantized.dequantize(quantized.quantize(tensor, int(rounding[3:]), 256))
    return RawTensor(tensor.dtype, tensor.shape, found.data)


@pytest.mark.parametrize("head", ROUNDINGS)
@pytest.mark.parametrize("values", ROUNDINGS)
def test_every_group_comes_back_as_it_was_told_to_be_rounded(hub, values, head):
    delta = whole()
    found = hub.push(delta, values=values, head=head)
    pulled = hub.pull("all")
    assert found.digest == pulled.digest
    assert set(pulled.tensors) == set(delta.tensors)
    for name, tensor in delta.tensors.items():
        rounding = head if name.startswith("head.") else values
        kept = rounding == "exact" or name == NORM or not tensor.size
        assert pulled.tensors[name] == (tensor if kept else expected(tensor, rounding)), name
    told = {group: head if group == "head" else values for group in GROUPS}
    assert {group: lossy.rounding for group, lossy in pulled.manifest.quantization.items()} == {
        group: rounding for group, rounding in told.items() if rounding != "exact"
    }
    assert hub.verify().problems == ()


@pytest.mark.parametrize("rounding", LOSSY)
def test_the_manifest_says_how_far_numbers_moved(rounding):
    delta = whole()
    rounded = round_delta(delta, rounding, rounding)
    for group in GROUPS:
        told = rounded.manifest.quantization[group]
        names = [name for name in delta.tensors if group_of(name) == group and name != NORM]
        before = np.concatenate([delta.tensors[name].float32() for name in names]).astype(np.float64)
        after = np.concatenate([rounded.tensors[name].float32() for name in names]).astype(np.float64)
        assert told.group == (None if rounding == "bf16" else 256)
        assert told.max_error == np.abs(after - before).max() > 0
        assert told.relative_rms == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before))
        assert told.relative_rms < {"bf16": 0.003, "int8": 0.02, "int4": 0.3}[rounding]


@pytest.mark.parametrize(("values", "head"), list(itertools.product(LOSSY, repeat=2)))
def test_rounding_is_deterministic_and_of_a_rounded_task_it_is_itself(hub, values, head):
    delta = whole()
    found = hub.push(delta, values=values, head=head)
    before = {entry.key: hub.store.get(entry.key) for entry in hub.store.list()}
    assert hub.push(delta, values=values, head=head) == found
    pulled = hub.pull("all")
    for finer in itertools.product(*(ROUNDINGS[: ROUNDINGS.index(rounding) + 1] for rounding in (values, head))):
        assert hub.push(pulled, values=finer[0], head=finer[1]) == found
    assert {entry.key: hub.store.get(entry.key) for entry in hub.store.list()} == before
    again = hub.push(pulled.with_manifest(task="again"))  # no option: the manifest says what the tensors are
    assert again.number == 1
    assert blobs(hub) == {key: len(data) for key, data in before.items() if key.startswith("blobs/")}
    bare = round_delta(Delta(delta.manifest, pulled.tensors), values, head)  # a manifest that does not say it
    assert bare.tensors == pulled.tensors


def test_a_coarser_rounding_makes_another_version(hub):
    numbers = [hub.push(whole(), values=rounding).number for rounding in ROUNDINGS]
    assert numbers == [1, 2, 3, 4]
    finer = hub.pull("all@3")
    assert hub.push(finer, values="int4").number == 5
    assert hub.pull("all@5").manifest.quantization["values"].rounding == "int4"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rounding", LOSSY)
def test_values_keep_the_dtype_of_their_base(hub, base_of, dtype, rounding):
    base = base_of("llama", getattr(torch, dtype))
    delta = random_delta(base, Mask.build(base, 0.1), classes=2)
    plain = hub.version(hub.push(delta.with_manifest(task="plain")).task)
    hub.push(delta, values=rounding)
    pulled = hub.pull("sst2")
    assert pulled.tensors["values"] == expected(delta.tensors["values"], rounding)
    assert pulled.raw("head") == delta.raw("head")
    if (rounding, dtype) == ("bf16", "bfloat16"):
        assert pulled.tensors == delta.tensors
        assert not pulled.manifest.quantization
    else:
        assert hub.version("sst2").stored < plain.stored


@given(finite_tensors())
def test_bf16_is_the_nearest_number_that_the_dtype_has_and_a_fixed_point(values):
    delta = Delta(Manifest("t", "other", BaseRef(of_bytes(b""), "b")), {"head.x": values})
    rounded = round_delta(delta, head="bf16").tensors["head.x"]
    assert (rounded.dtype, rounded.shape) == (values.dtype, values.shape)
    if values.size and values.bits.min() == values.bits.max():
        assert rounded == values  # constant
        return
    before, after = values.float32(), rounded.float32()
    assert np.isfinite(after).all()
    assert np.array_equal(np.signbit(before), np.signbit(after))
    assert not (after.view(np.uint32) & 0xFFFF).any()  # bf16 numbers
    inside = np.abs(before) < {"F32": 3.38e38, "F16": 65280, "BF16": np.inf}[values.dtype]
    assert (np.abs(after - before) <= np.maximum(np.abs(before) * 2.0**-8, 2.0**-134))[inside].all()
    assert round_delta(Delta(delta.manifest, {"head.x": rounded}), head="bf16").tensors["head.x"] is rounded


def test_bf16_values_stay_numbers_of_a_16_bit_tensor_beside_fp32_ones():
    """So that bf16 is safe for the values of a base of mixed dtypes; int8 and int4 are not."""
    every = np.arange(1 << 16, dtype=np.uint16)
    for dtype, last in (("F16", np.float32(65280)), ("BF16", np.float32(np.inf))):
        numbers = RawTensor.of_bits(dtype, (1 << 16,), every).float32()
        numbers = numbers[np.isfinite(numbers) & (np.abs(numbers) <= last)]
        wide = RawTensor.of_bits("F32", numbers.shape, numbers)
        delta = Delta(Manifest("t", "other", BaseRef(of_bytes(b""), "b")), {"dense.x": wide})
        rounded = round_delta(delta, "bf16").tensors["dense.x"].float32()
        again = RawTensor.of_bits(dtype, rounded.shape, narrow(rounded, dtype)).float32()
        assert np.array_equal(again.view(np.uint32), rounded.view(np.uint32))


def test_bf16_numbers_take_less_than_two_bytes_in_fp32(hub):
    values = f32(50_000)
    delta = Delta(Manifest("t", "other", BaseRef(of_bytes(b""), "b")), {"dense.x": values})
    hub.push(delta, values="bf16")
    [section] = hub.version("t").sections
    assert section.data.config["codec"] == "planes"
    assert section.data.stored < 1.6 * values.size


@given(st.sampled_from(LOSSY), st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 600))
def test_a_constant_tensor_stays_exact(rounding, number, size):
    delta = Delta(Manifest("t", "other", BaseRef(of_bytes(b""), "b")), {NORM: constant(size, number)})
    assert round_delta(delta, rounding) is delta


@pytest.mark.parametrize("rounding", ["int8", "int4"])
def test_a_tiny_tensor_shares_no_scale_with_a_large_one(hub, rounding):
    small = RawTensor.of_bits("F32", (3,), f32(3).float32() * np.float32(1e-6))
    delta = Delta(whole().manifest, {**whole().tensors, "dense.a.tiny": small})
    hub.push(delta, values=rounding)
    pulled = hub.pull("all").tensors["dense.a.tiny"]
    assert pulled == expected(small, rounding)
    assert pulled.float32().any()
    [joined] = [s for s in hub.version("all").sections if "dense.a.tiny" in dict(s.tensors)]
    assert joined.data.config["parts"] == [300, 3, 7]
    assert joined.data.stored < 500 + 40


def test_tensors_that_are_not_what_their_manifest_says_are_kept_exactly(hub):
    rounded = round_delta(whole(), "int4", "int8")
    other = Delta(rounded.manifest, whole(seed=40).tensors)
    hub.push(other)
    assert dump(hub.pull("all")) == dump(other)


def test_one_of_the_roundings_is_needed(hub):
    for rounding in ("", "int2", "INT8", 8, None):
        for option in ("values", "head"):
            with pytest.raises(UsageError, match=f"{option}: expected exact, bf16, int8 or int4"):
                hub.push(whole(), **{option: rounding})
    assert hub.tasks() == []
    for option in ("--values", "--head"):
        with pytest.raises(SystemExit):
            parser().parse_args(["push", "x.delta", option, "int2"])
        for rounding in ROUNDINGS:
            parser().parse_args(["push", "x.delta", option, rounding])

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub import codecs
from deltahub.codecs.quantized import Quantized, dequantize, encode_quantized, join, measure, quantize, requantize
from deltahub.errors import CodecError, UsageError
from deltahub.rawtensor import FLOATS, ITEMSIZE, RawTensor, narrow

GOLDEN_CONFIG = {"codec": "int4", "dtype": "F32", "group": 2, "planes": [2, 2, 3]}
GOLDEN_STORED = "0000 3f40 07f901"  # scales 0.5 and 2; codes 7 and -7, then 1
GOLDEN_VALUES = [3.5, -3.5, 2.0]
INFINITY = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}


def tensor(values, dtype: str = "F32") -> RawTensor:
    bits = narrow(np.asarray(values, np.float32), dtype)
    return RawTensor.of_bits(dtype, bits.shape, bits)


@st.composite
def finite_tensors(draw, most: int = 60) -> RawTensor:
    """Any finite bits, or numbers near one another at any scale."""
    dtype = draw(st.sampled_from(FLOATS))
    magnitudes = st.integers(0, INFINITY[dtype] - 1)
    if draw(st.booleans()):
        near = draw(magnitudes)
        magnitudes = st.integers(max(0, near - INFINITY[dtype] // 50), near)
    sign = 1 << (8 * ITEMSIZE[dtype] - 1)
    numbers = draw(st.lists(st.tuples(magnitudes, st.sampled_from([0, sign])), max_size=most))
    bits = np.array([magnitude | sign for magnitude, sign in numbers], np.uint64)
    return RawTensor.of_bits(dtype, bits.shape, bits.astype(f"u{ITEMSIZE[dtype]}"))


def trained(count: int) -> RawTensor:
    random = np.random.default_rng(0)
    return tensor(random.standard_normal(count) * np.exp(0.3 * random.standard_normal(count)) * 3e-3)


@given(finite_tensors(), st.sampled_from([8, 4]), st.integers(1, 70))
def test_values_move_by_at_most_half_a_step_and_stay_finite(values, bits, group):
    restored = dequantize(quantize(values, bits, group))
    assert (restored.dtype, restored.shape) == (values.dtype, values.shape)
    assert np.isfinite(restored.float32()).all()
    before, after = values.float32().astype(np.float64), restored.float32().astype(np.float64)
    for start in range(0, before.size, group):
        largest = np.abs(before[start : start + group]).max()
        least = 2.0**-24 if values.dtype == "F16" else 2.0**-126
        step = max(1.008 * largest / (2 ** (bits - 1) - 1), least)
        rounding = {"F32": 0, "BF16": 2.0**-8, "F16": 2.0**-11}[values.dtype] * largest * 1.01
        rounding += 2.0**-25 if values.dtype == "F16" else 0  # half of the least F16 number
        inside = largest < 0.99 * {"F32": 2.0**128, "BF16": 2.0**128, "F16": 65504}[values.dtype]
        limit = (0.5001 if inside else 1) * step + rounding
        assert np.abs(after - before)[start : start + group].max() <= limit


@given(finite_tensors(), st.sampled_from([8, 4]), st.integers(1, 70))
def test_decoding_gives_what_dequantising_gives(values, bits, group):
    quantized = quantize(values, bits, group)
    encoded = encode_quantized(quantized)
    assert encoded.config["codec"] == f"int{bits}"
    decoded = codecs.decode(encoded.config, encoded.stored, values.data.size)
    assert decoded.tobytes() == dequantize(quantized).data.tobytes()


@given(finite_tensors(), st.sampled_from([8, 4]), st.integers(1, 70))
def test_dequantised_values_are_found_again(values, bits, group):
    restored = dequantize(quantize(values, bits, group))
    again = requantize(restored, bits, group)
    assert again is not None
    assert dequantize(again) == restored


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bits", [8, 4])
def test_many_groups_are_found_again_and_one_changed_bit_is_not(dtype, bits):
    restored = dequantize(quantize(tensor(trained(20_000).float32(), dtype), bits))
    again = requantize(restored, bits)
    assert again is not None
    assert dequantize(again) == restored
    data = restored.data.copy()
    data[-2 * ITEMSIZE[dtype]] ^= 1
    assert requantize(RawTensor(dtype, restored.shape, data), bits) is None


@given(st.lists(finite_tensors(most=20), min_size=1, max_size=6), st.sampled_from([8, 4]), st.integers(1, 30))
def test_joined_tensors_are_decoded_as_if_they_were_alone(tensors, bits, group):
    found = [quantize(values, bits, group) for values in tensors if values.dtype == tensors[0].dtype and values.size]
    if not found:
        return
    encoded = encode_quantized(join(found))
    assert encoded.config.get("parts") == ([one.size for one in found] if len(found) > 1 else None)
    alone = b"".join(dequantize(one).data.tobytes() for one in found)
    assert codecs.decode(encoded.config, encoded.stored, len(alone)).tobytes() == alone


def test_values_that_were_never_quantised_are_not_found():
    assert requantize(trained(20_000), 8) is None
    assert requantize(tensor([1.0, -0.0]), 8) is None  # no code is -0


@pytest.mark.parametrize(("bits", "most"), [(8, 8.0), (4, 3.6)])
def test_trained_values_take_few_bits(bits, most):
    values = trained(100_000)
    quantized = quantize(values, bits)
    assert 8 * len(encode_quantized(quantized).stored) / values.size < most
    assert measure((values, dequantize(quantized)))[1] < {8: 0.012, 4: 0.2}[bits]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([], "F32", []),
        ([0.0, -0.0], "F32", [0.0, 0.0]),
        ([7.0], "BF16", [7.0]),
        ([1e-45], "F32", [0.0]),
        ([2.0**-126], "F32", [2.0**-126]),
        ([2.0**-24], "F16", [2.0**-24]),
        ([65504.0, -65504.0], "F16", [65408.0, -65408.0]),
    ],
)
def test_extremes(values, dtype, expected):
    assert dequantize(quantize(tensor(values, dtype), 4)).float32().tolist() == expected


def test_measure_gives_the_largest_move_and_the_relative_root_mean_square():
    assert measure((tensor([3.0, 4.0]), tensor([3.0, 4.5]))) == (0.5, 0.1)
    assert measure((tensor([0.0]), tensor([0.0]))) == (0.0, 0.0)
    assert measure((tensor([0.0]), tensor([1.0]))) == (1.0, math.inf)
    assert measure() == measure((tensor([]), tensor([]))) == (0.0, 0.0)
    with pytest.raises(UsageError, match="1 values, found 2"):
        measure((tensor([1.0]), tensor([1.0, 2.0])))


def test_golden_bytes():
    quantized = Quantized(4, 2, "F32", np.array([0x3F00, 0x4000], np.uint16), np.array([7, -7, 1], np.int8))
    encoded = encode_quantized(quantized)
    assert (encoded.config, encoded.stored) == (GOLDEN_CONFIG, bytes.fromhex(GOLDEN_STORED))
    decoded = codecs.decode(GOLDEN_CONFIG, bytes.fromhex(GOLDEN_STORED), 12)
    assert decoded.view(np.float32).tolist() == GOLDEN_VALUES


@pytest.mark.parametrize(("bits", "group"), [(2, 256), (16, 256), (8, 0), (4, (1 << 20) + 1)])
def test_bits_and_groups_that_do_not_exist_are_refused(bits, group):
    for function in (quantize, requantize):
        with pytest.raises(UsageError, match="8 or 4 bits"):
            function(tensor([1.0]), bits, group)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    with pytest.raises(CodecError, match="NaN or infinite"):
        quantize(tensor([1.0, bad]), 8)


def test_whole_numbers_are_refused():
    with pytest.raises(CodecError, match="expected one of F32, F16, BF16, found I32"):
        quantize(RawTensor.of_bits("I32", (1,), np.ones(1, np.int32)), 8)


@pytest.mark.parametrize(
    ("change", "stored", "words"),
    [
        ({"dtype": "F64"}, GOLDEN_STORED, "expected one of F32, F16, BF16"),
        ({"dtype": 4}, GOLDEN_STORED, "expected one of F32, F16, BF16"),
        ({"group": 0}, GOLDEN_STORED, "group of an encoded blob"),
        ({"group": 1 << 21}, GOLDEN_STORED, "group of an encoded blob"),
        ({"more": 1}, GOLDEN_STORED, "fields of codec 'int4'"),
        ({"group": 3}, GOLDEN_STORED, "longer than what it holds"),
        ({}, "0080 3f7f 07f901", "scales of quantised values"),  # infinite
        ({}, "0000 3fc0 07f901", "scales of quantised values"),  # negative
        ({}, "0001 3f00 07f901", "scales of quantised values"),  # subnormal
        ({}, "0000 3f40 08f901", "codes of quantised values"),
        ({}, "0000 3f40 07f801", "codes of quantised values"),
        ({"codec": "int8"}, "0000 3f40 078001", "codes of quantised values"),
        ({}, "0000 3f7f 07f904", "overflow"),
        ({}, GOLDEN_STORED + "00", "wrong length"),
        ({"parts": [3]}, GOLDEN_STORED, "parts of quantised values"),
        ({"parts": [2, 2]}, GOLDEN_STORED, "parts of quantised values"),
        ({"parts": [3, 0]}, GOLDEN_STORED, "parts of quantised values"),
        ({"parts": [4, -1]}, GOLDEN_STORED, "parts of quantised values"),
        ({"parts": [2, True]}, GOLDEN_STORED, "parts of quantised values"),
        ({"parts": [1 << 80, 3 - (1 << 80)]}, GOLDEN_STORED, "parts of quantised values"),
        ({"parts": "21"}, GOLDEN_STORED, "parts of quantised values"),
        ({"parts": None}, GOLDEN_STORED, "parts of quantised values"),
        ({"parts": [1, 1, 1]}, GOLDEN_STORED, "no zstd frame"),  # too few scales
        ({"parts": [2, 1], "group": 1}, GOLDEN_STORED, "no zstd frame"),
    ],
)
def test_what_does_not_fit_is_refused(change, stored, words):
    with pytest.raises(CodecError, match=words):
        codecs.decode({**GOLDEN_CONFIG, **change}, bytes.fromhex(stored), 12)

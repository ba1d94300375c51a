import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub import codecs
from deltahub.codecs import planes
from deltahub.errors import CodecError
from deltahub.rawtensor import FLOATS, ITEMSIZE

GOLDEN = [
    # name, config, stored, what comes out
    (
        "F32 1.0 and -2.0, every plane as it is",
        {"codec": "planes", "itemsize": 4, "planes": [2, 2, 2, 2]},
        "0001 0000 0000 7f80",
        "0000803f 000000c0",
    ),
    (
        "BF16 1.0, 64 times, every plane a zstd frame",
        {"codec": "planes", "itemsize": 2, "planes": [17, 17]},
        "28b52ffd2040450000100000010093001628b52ffd2040450000107f7f0100930016",
        "803f" * 64,
    ),
    (
        "I32 0 and 1, 16 times each",
        {"codec": "zstd"},
        "28b52ffd2080650000180000010200dc496212c002",
        "00000000" * 16 + "01000000" * 16,
    ),
    ("three bytes", {"codec": "raw"}, "010203", "010203"),
]


def trained(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal(count) * 3e-3).astype(np.float32)


def halves(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@given(st.sampled_from(sorted(ITEMSIZE)), st.binary(max_size=600), st.integers(1, 300))
def test_any_bits_of_any_dtype_come_back(dtype, data, times):
    data = data[: len(data) // ITEMSIZE[dtype] * ITEMSIZE[dtype]] * times
    encoded = codecs.encode(data, dtype)
    decoded = codecs.decode(encoded.config, encoded.stored, len(data))
    assert decoded.dtype == np.uint8
    assert decoded.tobytes() == data
    assert len(encoded.stored) <= len(data)


@given(st.sampled_from(FLOATS), st.integers(0, 70_000), st.integers(0, 9))
def test_trained_values_come_back(dtype, count, seed):
    values = trained(count, seed)
    data = {"F32": values, "BF16": halves(values), "F16": values.astype(np.float16)}[dtype].tobytes()
    encoded = codecs.encode(data, dtype)
    assert codecs.decode(encoded.config, encoded.stored, len(data)).tobytes() == data


@given(st.binary(max_size=400), st.binary(min_size=1, max_size=400), st.integers(1, 60))
def test_a_reference_changes_nothing_but_the_size(data, other, times):
    data = data[: len(data) // 4 * 4] * times
    reference = (other * (len(data) // len(other) + 1))[: len(data)]
    encoded = codecs.encode(data, "F32", reference)
    assert codecs.decode(encoded.config, encoded.stored, len(data), reference).tobytes() == data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.float32)])
def test_every_kind_of_buffer_is_the_same_bytes(kind):
    data = trained(1000).tobytes()
    encoded = codecs.encode(kind(data), "F32")
    assert encoded == codecs.encode(data, "F32")
    assert codecs.decode(encoded.config, memoryview(encoded.stored), 4000).tobytes() == data


@pytest.mark.parametrize(("dtype", "mantissa"), [("F32", 23), ("BF16", 7), ("F16", 10)])
def test_trained_values_take_at_most_5_percent_more_than_their_entropy(dtype, mantissa):
    values = trained(200_000)
    bits = {"F32": values.view(np.uint32), "BF16": halves(values), "F16": values.astype(np.float16).view(np.uint16)}[
        dtype
    ]
    width = 8 * bits.itemsize
    counts = np.bincount((bits >> mantissa) & ((1 << (width - 1 - mantissa)) - 1))
    share = counts[counts > 0] / bits.size
    floor = bits.size * (1 + mantissa - share @ np.log2(share)) / 8
    encoded = codecs.encode(bits.tobytes(), dtype)
    assert encoded.config["codec"] == "planes"
    assert len(encoded.stored) <= 1.05 * floor


def test_a_reference_is_used_where_many_values_equal_theirs_and_only_there():
    reference, values = trained(20_000, 1), trained(20_000, 2)
    assert codecs.encode(values, "F32", reference).config["codec"] == "planes"
    values[::2] = reference[::2]
    alone, against = codecs.encode(values, "F32"), codecs.encode(values, "F32", reference)
    assert against.config["codec"] == "planes-xor"
    assert len(against.stored) < 0.98 * len(alone.stored)


@pytest.mark.parametrize(("config", "stored", "data"), [row[1:] for row in GOLDEN], ids=[row[0] for row in GOLDEN])
def test_golden_bytes_decode(config, stored, data):
    assert codecs.decode(config, bytes.fromhex(stored), len(bytes.fromhex(data))).tobytes() == bytes.fromhex(data)


def test_golden_bytes_against_a_reference_decode():
    config = {"codec": "planes-xor", "itemsize": 4, "planes": [2, 2, 2, 2]}
    reference = np.array([1.5, -2.0], np.float32)
    stored = bytes.fromhex("0000 0000 8000 0000")
    decoded = codecs.decode(config, stored, 8, reference)
    assert decoded.tobytes() == bytes.fromhex("0000803f 000000c0")


def test_golden_planes_are_encoded():
    _, config, stored, data = GOLDEN[0]
    encoded = planes.encode(np.frombuffer(bytes.fromhex(data), np.uint8), 4)
    assert (encoded.config, encoded.stored) == (config, bytes.fromhex(stored))


@pytest.mark.parametrize(
    ("data", "dtype", "words"),
    [
        (b"\0" * 7, "F32", "multiple of 4, found 7"),
        (b"\0" * 3, "BF16", "multiple of 2, found 3"),
        (b"\0" * 9, "I64", "multiple of 8, found 9"),
        (b"", "F12", "dtype 'F12'"),
    ],
)
def test_what_cannot_be_encoded_is_refused(data, dtype, words):
    with pytest.raises(CodecError, match=words):
        codecs.encode(data, dtype)


def test_a_reference_of_another_size_is_refused_at_encode():
    with pytest.raises(CodecError, match="8 bytes, found 4"):
        codecs.encode(bytes(8), "F32", bytes(4))


PLANES = {"codec": "planes", "itemsize": 2, "planes": [2, 2]}


@pytest.mark.parametrize(
    ("config", "stored", "size", "words"),
    [
        ({}, b"", 0, "unknown codec None"),
        ({"codec": "lzma"}, b"", 0, "unknown codec 'lzma'.*upgrade"),
        ({"codec": ["raw"]}, b"", 0, "unknown codec"),
        ({"codec": "raw"}, b"abc", -1, "size of an encoded blob"),
        ({"codec": "raw"}, b"abc", True, "size of an encoded blob"),
        ({"codec": "raw"}, b"abc", 2, "expected 2, found 3"),
        ({"codec": "raw", "level": 3}, b"abc", 3, "fields of codec 'raw'"),
        ({"codec": "zstd"}, b"", 0, "no zstd frame"),
        ({"codec": "planes", "itemsize": 2}, b"abcd", 4, "expected itemsize, planes, found \\['itemsize'\\]"),
        ({**PLANES, "more": None}, b"abcd", 4, "fields of codec 'planes'"),
        ({**PLANES, "itemsize": 3}, b"abcd", 4, "expected 2 or 4, found 3"),
        ({**PLANES, "itemsize": 2.0}, b"abcd", 4, "itemsize of an encoded blob"),
        ({**PLANES, "itemsize": 1 << 80}, b"abcd", 4, "itemsize of an encoded blob"),
        ({**PLANES, "planes": [4]}, b"abcd", 4, "expected 2 lengths"),
        ({**PLANES, "planes": "22"}, b"abcd", 4, "expected 2 lengths"),
        ({**PLANES, "planes": [5, -1]}, b"abcd", 4, "lengths in bytes"),
        ({**PLANES, "planes": [2, True]}, b"abc", 4, "lengths in bytes"),
        ({**PLANES, "planes": [1 << 61, 1 << 61]}, b"abcd", 4, "wrong length"),
        ({**PLANES, "planes": [2, 1]}, b"abcd", 4, "expected 3, found 4"),
        ({**PLANES, "planes": [3, 1]}, b"abcd", 4, "longer than what it holds"),
        (PLANES, b"abcd", 5, "multiple of 2, found 5"),
        (PLANES, b"abcd", 6, "no zstd frame"),
        ({**PLANES, "codec": "planes-xor"}, b"abcd", 4, "4 bytes of reference, found none"),
    ],
)
def test_what_cannot_be_decoded_is_refused(config, stored, size, words):
    with pytest.raises(CodecError, match=words):
        codecs.decode(config, stored, size)


def test_a_reference_of_another_size_is_refused_at_decode():
    with pytest.raises(CodecError, match="4 bytes of reference, found 3"):
        codecs.decode({**PLANES, "codec": "planes-xor"}, b"abcd", 4, b"abc")

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub.codecs import index
from deltahub.codecs.index import decode_index, encode_index
from deltahub.errors import CodecError

GOLDEN_INDICES = [0, 1, 5, 300]
GOLDEN_CONFIG = {"codec": "gaps", "shift": 1, "bytes": 1, "planes": [1, 4]}
GOLDEN_STORED = "04 00000193"


def indices_of(gaps):
    return np.cumsum(np.array(gaps, np.int64) + 1) - 1


def information(n: int, k: int) -> float:
    """log2 C(n, k), in bytes."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2) / 8


gap_sizes = st.one_of(st.integers(0, 3), st.integers(0, 5000), st.integers(0, (1 << 48) - 1))


@given(st.lists(gap_sizes, max_size=300), st.integers(0, 1000))
def test_any_positions_come_back(gaps, room):
    indices = indices_of(gaps)
    n = (int(indices[-1]) + 1 if len(gaps) else 0) + room
    encoded = encode_index(indices)
    decoded = decode_index(encoded.config, encoded.stored, len(gaps), n)
    assert decoded.dtype == np.int64
    assert np.array_equal(decoded, indices)


def test_positions_of_several_chunks_come_back():
    gaps = np.random.default_rng(0).integers(0, 1 << 20, 3 * index._CHUNK + 5)
    indices = indices_of(gaps)
    encoded = encode_index(indices)
    n = int(indices[-1]) + 1
    assert np.array_equal(decode_index(encoded.config, encoded.stored, len(gaps), n), indices)
    with pytest.raises(CodecError, match="all below"):
        decode_index(encoded.config, encoded.stored, len(gaps), n - 1)


@pytest.mark.parametrize("density", [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05])
@pytest.mark.parametrize("kind", ["uniform", "clustered"])
def test_masks_take_at_most_3_percent_more_than_a_random_mask_must(density, kind):
    n = 4_000_000
    random = np.random.default_rng(7)
    chance = density if kind == "uniform" else np.repeat(random.gamma(0.3, density / 0.3, n // 1000), 1000)
    indices = np.flatnonzero(random.random(n) < chance).astype(np.int64)
    encoded = encode_index(indices)
    assert len(encoded.stored) <= 1.03 * information(n, len(indices))
    assert np.array_equal(decode_index(encoded.config, encoded.stored, len(indices), n), indices)


def test_golden_bytes():
    encoded = encode_index(np.array(GOLDEN_INDICES, np.int64))
    assert (encoded.config, encoded.stored) == (GOLDEN_CONFIG, bytes.fromhex(GOLDEN_STORED))
    assert decode_index(GOLDEN_CONFIG, bytes.fromhex(GOLDEN_STORED), 4, 301).tolist() == GOLDEN_INDICES


@pytest.mark.parametrize(
    "indices",
    [
        np.array([3, 3], np.int64),
        np.array([4, 3], np.int64),
        np.array([-1, 3], np.int64),
        np.array([np.iinfo(np.int64).max, np.iinfo(np.int64).min], np.int64),
        np.array([1 << 48], np.int64),
        np.array([0, (1 << 48) + 1], np.int64),
        np.array([1, 2], np.int32),
        np.array([[1, 2]], np.int64),
    ],
    ids=str,
)
def test_other_indices_are_refused(indices):
    with pytest.raises(CodecError, match="indices"):
        encode_index(indices)


@pytest.mark.parametrize(
    ("config", "stored", "k", "n", "words"),
    [
        (GOLDEN_CONFIG, GOLDEN_STORED, 4, 300, "all below 300, found 300"),
        (GOLDEN_CONFIG, GOLDEN_STORED, 5, 301, "no zstd frame"),
        (GOLDEN_CONFIG, GOLDEN_STORED, 3, 301, "longer than what it holds"),
        (GOLDEN_CONFIG, GOLDEN_STORED, 4, 3, "0 <= k <= n"),
        (GOLDEN_CONFIG, GOLDEN_STORED, -4, 3, "0 <= k <= n"),
        (GOLDEN_CONFIG, GOLDEN_STORED, 4, 1 << 63, "0 <= k <= n"),
        (GOLDEN_CONFIG, GOLDEN_STORED, 4.0, 301, "0 <= k <= n"),
        ({**GOLDEN_CONFIG, "codec": "planes"}, GOLDEN_STORED, 4, 301, "expected gaps"),
        ({**GOLDEN_CONFIG, "shift": 9}, GOLDEN_STORED, 4, 301, "shift of an encoded blob"),
        ({**GOLDEN_CONFIG, "bytes": 0, "planes": [1]}, "04", 4, 301, "bytes of an encoded blob"),
        ({**GOLDEN_CONFIG, "bytes": 7}, GOLDEN_STORED, 4, 301, "bytes of an encoded blob"),
        ({**GOLDEN_CONFIG, "planes": [5]}, GOLDEN_STORED, 4, 301, "expected 2 lengths"),
        ({"codec": "gaps", "shift": 1, "planes": [1, 4]}, GOLDEN_STORED, 4, 301, "fields of codec 'gaps'"),
    ],
)
def test_what_does_not_fit_is_refused(config, stored, k, n, words):
    with pytest.raises(CodecError, match=words):
        decode_index(config, bytes.fromhex(stored), k, n)


def test_gaps_whose_sum_overflows_are_refused():
    k = 1 << 10
    config = {"codec": "gaps", "shift": 8, "bytes": 6, "planes": [k // 8] * 8 + [k] * 6}
    with pytest.raises(CodecError, match="all below"):
        decode_index(config, b"\xff" * (k + 6 * k), k, (1 << 62) - 1)

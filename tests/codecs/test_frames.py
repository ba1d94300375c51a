"""Blobs that someone damaged or built to hurt."""

import tracemalloc

import numpy as np
import pytest
import zstandard

from deltahub import codecs
from deltahub.codecs.index import decode_index, encode_index
from deltahub.codecs.quantized import encode_quantized, quantize
from deltahub.errors import CodecError
from deltahub.rawtensor import RawTensor

GIB = 1 << 30
ZSTD = {"codec": "zstd"}


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A true frame of 1 GiB of zeros in about 32 KiB."""
    chunk = bytes(1 << 24)
    packer = zstandard.ZstdCompressor(level=1).compressobj(size=GIB)
    return b"".join([packer.compress(chunk) for _ in range(GIB // len(chunk))] + [packer.flush()])


def header_that_claims(size: int) -> bytes:
    """A single-segment frame header with an 8-byte content size, and one empty last block."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\0\0"


def small_frame(size: int = 1000) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(range(100)) * (size // 100))


def peak_of_refusal(config, stored, size) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            codecs.decode(config, stored, size)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1000, GIB - 1, GIB + 1])
def test_a_bomb_of_another_size_is_refused_without_memory(bomb, size):
    assert len(bomb) < 50_000
    assert peak_of_refusal(ZSTD, bomb, size) < 1 << 20


@pytest.mark.parametrize("size", [GIB, 1 << 50])
def test_a_size_that_the_bytes_cannot_hold_is_refused_without_memory(size):
    frame = header_that_claims(size)
    assert peak_of_refusal(ZSTD, frame, size) < 1 << 20
    values = {"codec": "planes", "itemsize": 4, "planes": [16] * 4}
    assert peak_of_refusal(values, header_that_claims(size // 4) * 4, size) < 1 << 20
    numbers = {"codec": "int4", "dtype": "F16", "group": 1 << 20, "planes": [16, 16, 16]}
    assert peak_of_refusal(numbers, header_that_claims(size // 2) * 3, size) < 1 << 20


def test_a_plane_that_is_a_bomb_is_refused_before_its_neighbours_take_memory(bomb):
    raw = bytes(1000)
    config = {"codec": "planes", "itemsize": 2, "planes": [1000, len(bomb)]}
    with pytest.raises(CodecError, match="longer than what it holds"):
        codecs.decode(config, raw + bomb, 2000)
    assert peak_of_refusal({**config, "planes": [1000, 16]}, raw + header_that_claims(GIB), 2000) < 1 << 20


def test_an_index_of_more_positions_than_its_bytes_can_hold_is_refused_without_memory():
    config = {"codec": "gaps", "shift": 0, "bytes": 1, "planes": [16]}
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="claim to hold"):
            decode_index(config, header_that_claims(1 << 40), 1 << 40, 1 << 41)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_many_positions_in_few_bytes_take_little_more_memory_than_the_positions():
    k = 2_000_000
    encoded = encode_index(np.arange(k))
    assert len(encoded.stored) < 1000
    tracemalloc.start()
    try:
        assert decode_index(encoded.config, encoded.stored, k, k)[-1] == k - 1
        assert tracemalloc.get_traced_memory()[1] < 1.5 * 8 * k
    finally:
        tracemalloc.stop()


def test_a_frame_that_holds_more_than_its_header_says_is_refused():
    frame = small_frame(10_000)
    assert frame[4] & 0xE0 == 0x60  # single segment, 2-byte content size less 256
    lying = frame[:5] + (1000 - 256).to_bytes(2, "little") + frame[7:]
    with pytest.raises(CodecError, match="one whole zstd frame"):
        codecs.decode(ZSTD, lying, 1000)


SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (small_frame() + b"\0", "one whole zstd frame"),
        (small_frame() + small_frame(), "one whole zstd frame"),
        (small_frame() + SKIPPABLE, "one whole zstd frame"),
        (SKIPPABLE + small_frame(), "no zstd frame"),
        (small_frame()[:-1], "one whole zstd frame"),
        (small_frame()[:5], "one whole zstd frame"),
        (small_frame(2000), "expected 1000, found 2000"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000)), "content size"),
        (b"\x28\xb5\x2f\xfd\x40\x88" + (1000 - 256).to_bytes(2, "little") + b"\x01\0\0", "a window of"),
        (b"\x28\xb5\x2f\xfd\x61\x07" + (1000 - 256).to_bytes(2, "little") + b"\x01\0\0", "dictionary 7"),
    ],
)
def test_anything_but_one_plain_frame_is_refused(frame, words):
    with pytest.raises(CodecError, match=words):
        codecs.decode(ZSTD, frame, 1000)


def blobs():
    """(what reads it, stored) of every codec."""
    random = np.random.default_rng(0)
    values = (random.standard_normal(150) * 3e-3).astype(np.float32)
    tensor = RawTensor.of_bits("F32", (150,), values)
    indices = np.flatnonzero(random.random(9000) < 0.02).astype(np.int64)
    encoded = {
        "planes": codecs.encode(np.repeat(values, 3), "F32"),
        "zstd": codecs.encode(np.arange(200) // 9, "I64"),
        "int8": encode_quantized(quantize(tensor, 8, 16)),
        "int4": encode_quantized(quantize(tensor, 4, 16)),
    }
    sizes = {"planes": 1800, "zstd": 1600, "int8": 600, "int4": 600}
    for name, blob in encoded.items():
        assert blob.config["codec"] == name
        yield name, lambda stored, b=blob, s=sizes[name]: codecs.decode(b.config, stored, s), blob.stored, sizes[name]
    index = encode_index(indices)
    k = len(indices)
    yield "gaps", lambda stored: decode_index(index.config, stored, k, 9000), index.stored, k


@pytest.mark.parametrize(("read", "stored", "size"), [row[1:] for row in blobs()], ids=[row[0] for row in blobs()])
def test_a_flipped_byte_is_refused_or_gives_as_many_other_bytes(read, stored, size):
    refused = 0
    for place in range(len(stored)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(stored)
            damaged[place] ^= flip
            try:
                assert read(bytes(damaged)).size == size
            except CodecError:
                refused += 1
    assert refused


@pytest.mark.parametrize(("read", "stored"), [row[1:3] for row in blobs()], ids=[row[0] for row in blobs()])
def test_every_cut_is_refused(read, stored):
    for end in range(len(stored)):
        with pytest.raises(CodecError):
            read(stored[:end])
    with pytest.raises(CodecError):
        read(stored + b"\0")

"""The golden bytes that FORMAT.md shows are the ones that the code reads and writes."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import numpy as np
import pytest

from deltahub import codecs
from deltahub.codecs import index

TEXT = (files("deltahub") / "FORMAT.md").read_text()
EXAMPLES = [
    (json.loads(config), bytes.fromhex(stored.replace(" ", "")))
    for config, stored in re.findall(r" config +(\{.*\})\n(?: +reference.*\n)? +stored +([0-9a-f ]+)\n", TEXT)
]


def example(codec: str, number: int = 0) -> tuple[dict, bytes]:
    return [found for found in EXAMPLES if found[0]["codec"] == codec][number]


def test_every_codec_has_an_example():
    assert {config["codec"] for config, _ in EXAMPLES} == {"zstd", "planes", "planes-xor", "int4", "gaps"}


@pytest.mark.parametrize(
    ("codec", "number", "expected"),
    [
        ("zstd", 0, np.repeat(np.array([0, 1], "<i4"), 16)),
        ("planes", 0, np.array([1.0, -2.0], "<f4")),
        ("planes", 1, np.full(64, 0x3F80, "<u2")),
        ("int4", 0, np.array([3.5, -3.5, 2.0], "<f4")),
        ("int4", 1, np.array([3.5, -3.5, 2.0, -2.0], "<f4")),
    ],
)
def test_blobs_decode_as_the_text_says(codec, number, expected):
    config, stored = example(codec, number)
    assert codecs.decode(config, stored, expected.nbytes).tobytes() == expected.tobytes()


def test_planes_xor_decodes_against_its_reference():
    config, stored = example("planes-xor")
    reference = np.array([1.0, -2.0], "<f4").view("<u4") ^ _unplaned(stored)
    assert codecs.decode(config, stored, 8, reference).tobytes() == np.array([1.0, -2.0], "<f4").tobytes()


def _unplaned(stored: bytes) -> np.ndarray:
    """Four raw planes of two items back to words, the sign turned right again."""
    turned = np.frombuffer(stored, np.uint8).reshape(4, 2).T.copy().view("<u4").reshape(-1)
    return (turned >> np.uint32(1)) | (turned << np.uint32(31))


def test_positions_are_as_the_text_says():
    config, stored = example("gaps")
    assert index.decode_index(config, stored, 4, 301).tolist() == [0, 1, 5, 300]
    encoded = index.encode_index(np.array([0, 1, 5, 300]))
    assert index.decode_index(encoded.config, encoded.stored, 4, 301).tolist() == [0, 1, 5, 300]

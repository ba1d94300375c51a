"""Codecs ``raw`` and ``zstd``: bytes as they are, and as one zstd frame."""

from __future__ import annotations

from collections.abc import Mapping

import zstandard

from deltahub.codecs.frames import Encoded, check_fields, inflate
from deltahub.errors import CodecError
from deltahub.manifest import Plain
from deltahub.rawtensor import Bytes

_LEVEL = 3


def encode(data: Bytes) -> Encoded:
    """``zstd`` where that is smaller, else ``raw``."""
    frame = zstandard.ZstdCompressor(level=_LEVEL).compress(data.data) if data.size else b""
    return Encoded({"codec": "zstd"}, frame) if len(frame) < data.size else encode_raw(data)


def encode_raw(data: Bytes) -> Encoded:
    return Encoded({"codec": "raw"}, data.tobytes())


def decode_raw(config: Mapping[str, Plain], stored: Bytes, size: int) -> Bytes:
    check_fields(config)
    if stored.size != size:
        raise CodecError("raw bytes of the wrong length", expected=size, got=stored.size)
    return stored


def decode_zstd(config: Mapping[str, Plain], stored: Bytes, size: int) -> Bytes:
    check_fields(config)
    return inflate(stored, size)

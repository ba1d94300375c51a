"""Every reader of foreign bytes: good input to begin with, and the law that its answer must keep.

A reader gives what it read as canonical bytes, or raises a DeltahubError; nothing else may happen. What it gave is read
again, and must give the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from deltahub import codecs, keys, records, sealed, signatures, signing, tensorfile
from deltahub.codecs import quantized
from deltahub.codecs.frames import Encoded
from deltahub.codecs.index import decode_index, encode_index
from deltahub.delta import Delta
from deltahub.errors import DeltahubError, FormatError
from deltahub.hub import Hub
from deltahub.manifest import BaseRef, Manifest, MaskRef, Quantization
from deltahub.mask import Mask
from deltahub.rawtensor import RawTensor
from deltahub.records import MaskRecord, VersionRecord

_MOST = 1 << 22  # bytes that a blob may decode to here: larger ones are allowed, and only slow
_KEY = bytes(range(32))


@dataclass(frozen=True)
class Reader:
    """``read`` gives canonical bytes of what it read; ``seeds`` are good input, and ``text`` says that it is JSON."""

    name: str
    read: Callable[[bytes], bytes]
    seeds: tuple[bytes, ...]
    text: bool = False

    def check(self, data: bytes) -> bool:
        """Whether ``data`` was read; AssertionError where reading again what was read gives something else."""
        try:
            found = self.read(data)
        except DeltahubError as error:
            if len(str(error)) > 2100:
                raise AssertionError("an endless message") from error
            return False
        assert self.read(found) == found, "reading again gives something else"
        return True


@cache
def readers() -> dict[str, Reader]:
    """All of them, by name."""
    store = _hub().store
    version = store.get(keys.version("task", 1))
    masks = [store.get(entry.key) for entry in store.list("masks")]
    bases = [store.get(entry.key) for entry in store.list("bases")]
    found = [
        Reader("json", _json, (b'{"a":[1,-2.5e3,null,true,"\\u00e9"]}',), text=True),
        Reader("safetensors", _tensors, tuple(b"".join(delta.dump()) for delta in _deltas())),
        Reader("delta", lambda data: b"".join(Delta.loads(data).dump()), tuple(b"".join(d.dump()) for d in _deltas())),
        Reader("manifest", _manifest, tuple(delta.manifest.to_json().encode() for delta in _deltas()), text=True),
        Reader("mask", _mask, (_mask_file(),)),
        Reader("version", _sealed(lambda data: VersionRecord.from_bytes(data, "it").to_bytes()), (version,), text=True),
        Reader("mask-record", _sealed(lambda d: MaskRecord.from_bytes(d, "it").to_bytes()), tuple(masks), text=True),
        Reader("base-record", _sealed(lambda d: records.base_bytes(records.read_base(d, "it"))), tuple(bases), True),
        Reader("tag", _sealed(lambda d: records.tag_bytes(records.read_tag(d, "it"))), (records.tag_bytes(3),), True),
        Reader("lease", _sealed(lambda d: records.lease_bytes(records.read_lease(d, "it")), exact=False),
               (records.lease_bytes({"0" * 64, "1" * 64}),), text=True),
        Reader("signature", _sealed(_signature), (_signature_object(_KEY, bytes(64)),), text=True),
        Reader("blob", _blob, tuple(_described(encoded, size) for encoded, size in _blobs())),
        Reader("index", _index, tuple(_described(encode_index(indices), len(indices)) for indices in _indices())),
    ]  # fmt: skip
    return {reader.name: reader for reader in found}


def _deltas() -> list[Delta]:
    values = RawTensor.of_bits("F32", (3,), np.array([1, -2.5, 0], np.float32).view(np.uint32))
    bias = RawTensor.of_bits("BF16", (2,), np.array([0x3F80, 0xC000], np.uint16))
    mask = MaskRef(_own_mask().digest, 3, 9, {"name": "file"})
    base = _own_mask().base
    lossy = {"head": Quantization("bf16", None, 0.5, 0.25), "values": Quantization("int4", 256, 0.5, 0.25)}
    first = Manifest("task", "regression", base, mask, labels=("a", "\u00e9"), metrics={"x": 0.5}, inputs={"a": [1]})
    second = Manifest("task", "other", base, None, quantization=lossy)
    return [Delta(first, {"values": values, "head.bias": bias}), Delta(second, {"dense.w": bias})]


def _own_mask() -> Mask:
    return Mask(BaseRef("1" * 64, "base"), 9, {"name": "file"}, np.array([0, 4, 8]))


def _mask_file() -> bytes:
    mask = _own_mask()
    encoded = encode_index(mask.indices)
    document = {
        "format_version": 1, "base": vars(mask.base), "n": mask.n, "k": mask.k, "recipe": dict(mask.recipe),
        "digest": mask.digest, "codec": encoded.config,
    }  # fmt: skip
    stored = RawTensor("U8", (len(encoded.stored),), np.frombuffer(encoded.stored, np.uint8))
    return tensorfile.dumps({"index": stored}, {"deltahub-mask": json.dumps(document)})


@cache
def _hub() -> Hub:
    hub = Hub.open("memory://fuzz")
    hub.push(_deltas()[0], mask=_own_mask())
    return hub


def _signature_object(key: bytes, signature: bytes) -> bytes:
    fields = {"key": f"ed25519:{signing.to_base64(key)}", "signature": signing.to_base64(signature)}
    return sealed.seal({"format_version": 1, **fields})


def _signature(data: bytes) -> bytes:
    return _signature_object(*signatures.read_object(data, keys.signature("task", 1, signing.key_id(_KEY))))


def _blobs() -> list[tuple[Encoded, int]]:
    values = np.random.default_rng(0).normal(0, 1, 400).astype(np.float32)
    tensor = RawTensor.of_bits("F32", (400,), values.view(np.uint32))
    rounded = [quantized.quantize(tensor, bits, 64) for bits in (8, 4)]
    made = [codecs.encode(values.repeat(4), "F32"), codecs.encode(np.arange(900) // 9, "I64")]
    sizes = [6400, 7200, 1600, 1600, 3200]
    made += [quantized.encode_quantized(one) for one in [*rounded, quantized.join([rounded[0], rounded[0]])]]
    return list(zip(made, sizes, strict=True))


def _indices() -> list[Any]:
    return [np.array([0, 5, 300]), np.arange(0, 4000, 3), np.flatnonzero(np.arange(9000) % 97 < 2)]


def _described(encoded: Encoded, size: int) -> bytes:
    """A line of JSON, and the stored bytes."""
    return json.dumps([encoded.config, size]).encode() + b"\n" + encoded.stored


def _parted(data: bytes) -> tuple[dict[str, Any], int, bytes]:
    line, _, stored = data.partition(b"\n")
    match tensorfile.strict_json(line, "the line"):
        case [dict(config), int(size)] if type(size) is int:
            return config, size, stored
    raise FormatError("the line", expected="a config and a size")


def _blob(data: bytes) -> bytes:
    config, size, stored = _parted(data)
    if 0 <= size <= _MOST:
        found = codecs.decode(config, stored, size)
        assert found.nbytes == size, "another size than it says"
        assert codecs.decode(config, stored, size).tobytes() == found.tobytes(), "two answers"
    return data


def _index(data: bytes) -> bytes:
    config, k, stored = _parted(data)
    if 0 <= k <= _MOST:
        found = decode_index(config, stored, k, 1 << 40)
        assert found.shape == (k,), "another number of positions"
        assert k == 0 or (found[0] >= 0 and found[-1] < 1 << 40), "positions outside"
        assert bool((np.diff(found) > 0).all()), "positions that do not ascend"
    return data


def _json(data: bytes) -> bytes:
    return json.dumps(tensorfile.strict_json(data, "it"), sort_keys=True, allow_nan=False).encode()


def _tensors(data: bytes) -> bytes:
    tensors, metadata = tensorfile.loads(data, "it")
    return tensorfile.dumps(tensors, metadata)


def _manifest(data: bytes) -> bytes:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError("the manifest is not UTF-8") from error
    return Manifest.from_json(text).to_json().encode()


def _mask(data: bytes) -> bytes:
    """The positions' digest stands for what was read; the file itself has no canonical form."""
    assert Mask.loads(data).digest == Mask.loads(data).digest
    return data


def _sealed(read: Callable[[bytes], bytes], *, exact: bool = True) -> Callable[[bytes], bytes]:
    """A reader of documents whose checksum is set right, since no chance change of one would be.

    Args:
        exact: what is read would be written in the same bytes; a lease may name a blob twice.
    """

    def resealed(data: bytes) -> bytes:
        document = tensorfile.strict_json(data, "it")
        if not isinstance(document, dict):
            return read(data)
        document.pop("check", None)
        try:
            written = sealed.seal(document)
        except RecursionError as error:
            raise FormatError("it is nested too deep") from error
        found = read(written)
        assert not exact or found == written, "it would be written otherwise"
        return found

    return resealed

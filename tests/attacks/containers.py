"""A201 to A299: safetensors files, deltas and mask files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from deltahub.codecs.index import encode_index
from deltahub.delta import Delta
from deltahub.errors import FormatError, IntegrityError
from deltahub.mask import Mask
from tests.attacks.attack import Attack, Place, container, manifest, material, with_header

Run = Callable[[Place], object]


def _file(data: bytes) -> Run:
    """As the header of a delta: the attack is met before its manifest is looked at."""
    return lambda place: Delta.load(place.write("x.delta", data))


def _tensor(**changes: Any) -> Run:
    return _lazy(lambda: with_header(material().delta, lambda header: header["values"].update(changes)))


def _lazy(data: Callable[[], bytes]) -> Run:
    return lambda place: Delta.load(place.write("x.delta", data()))


def _header(change: Callable[[dict[str, Any]], object]) -> Run:
    return _lazy(lambda: with_header(material().delta, change))


def _plain(entry: object) -> bytes:
    return container({"values": entry}, bytes(8))


def _values(bits: int) -> Run:
    """The delta with one value of these bits."""

    def run(place: Place) -> None:
        data = bytearray(material().delta)
        end = 8 + int.from_bytes(data[:8], "little")
        start = end + json.loads(data[8:end])["values"]["data_offsets"][0]
        data[start : start + 4] = bits.to_bytes(4, "little")
        Delta.load(place.write("x.delta", bytes(data)))

    return run


def _sparse(place: Place) -> None:
    """A terabyte of holes that takes no room on the disk: a header that fits it must not make us read it."""
    size = 1 << 40
    entry = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    path = place.write("x.delta", container({"__metadata__": {"deltahub": json.dumps(manifest())}, "values": entry}))
    os.truncate(path, path.stat().st_size + size)
    Delta.load(path)


def _pipe(name: str) -> Run:
    def run(place: Place) -> None:
        os.mkfifo(place.target / name)
        (Mask if name.endswith("mask") else Delta).load(place.target / name)

    return run


def _overwritten(place: Place) -> None:
    """An output name that is a link: what it leads to stays, and the link becomes the file."""
    link = place.target / "x.delta"
    link.symlink_to(place.outside / "secret")
    Delta.loads(material().delta).save(link)
    assert not link.is_symlink()
    assert Delta.load(link).task == "sst2"


def _mask(**changes: Any) -> Run:
    def change(header: dict[str, Any]) -> None:
        document = json.loads(header["__metadata__"]["deltahub-mask"])
        header["__metadata__"]["deltahub-mask"] = json.dumps(document | changes)

    return lambda place: Mask.load(place.write("x.mask", with_header(material().mask, change)))


def _mask_of(stored: bytes, **changes: Any) -> Run:
    """A mask file of other encoded positions."""

    def run(place: Place) -> None:
        head = int.from_bytes(material().mask[:8], "little")
        document = json.loads(json.loads(material().mask[8 : 8 + head])["__metadata__"]["deltahub-mask"])
        entry = {"dtype": "U8", "shape": [len(stored)], "data_offsets": [0, len(stored)]}
        text = json.dumps(document | changes)
        Mask.load(place.write("x.mask", container({"__metadata__": {"deltahub-mask": text}, "index": entry}, stored)))

    return run


def _run_of(count: int) -> tuple[bytes, dict[str, Any]]:
    encoded = encode_index(np.arange(count, dtype=np.int64))
    return encoded.stored, encoded.config


def _claim(place: Place) -> None:
    """A true frame of many zeros, said to be a terabyte of positions: 32 MiB of them would be 8 TiB of memory."""
    stored, config = _run_of(1 << 17)
    _mask_of(stored, codec=config, k=1 << 40, n=1 << 41)(place)


_TWO = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

ATTACKS = [
    Attack(201, "a header of 2^63 bytes", _file((1 << 63).to_bytes(8, "little") + b"{}"), FormatError),
    Attack(202, "a header of 2^64 - 1 bytes", _file(b"\xff" * 8 + b"{}"), FormatError),
    Attack(203, "a header longer than the file", _file((1 << 20).to_bytes(8, "little") + b"{}"), FormatError),
    Attack(204, "an empty file", _file(b""), FormatError),
    Attack(205, "a file of 7 bytes", _file(b"\2" + bytes(6)), FormatError),
    Attack(206, "a byte behind an empty header", _file(container("{}") + b"\xff"), FormatError),
    Attack(207, "a header that is not UTF-8", _file((4).to_bytes(8, "little") + b'"\xff" '), FormatError),
    Attack(208, "a header that is no object", _file(container([1])), FormatError),
    Attack(209, "a header of 100,000 nested objects", _file(container('{"a":' * 100_000)), FormatError),
    Attack(210, "a header with a tensor twice", _file(container('{"a":{},"a":{}}')), FormatError),
    Attack(211, "a name of ten megabytes", _lazy(lambda: container({"a" * 10_000_000: 1})), FormatError,
           memory=128 << 20),
    Attack(212, "metadata that is no text", _file(container({"__metadata__": {"deltahub": 1}})), FormatError),
    Attack(213, "a second entry of metadata", _header(lambda header: header["__metadata__"].update(more="x")),
           FormatError),
    Attack(214, "an entry of metadata with a name of a megabyte",
           _header(lambda header: header["__metadata__"].update({"x" * (1 << 20): ""})), FormatError),
    Attack(215, "a shape of 2^63", _file(_plain({"dtype": "F32", "shape": [1 << 63], "data_offsets": [0, 8]})),
           FormatError),
    Attack(216, "a shape whose product overflows 64 bits",
           _file(_plain({"dtype": "F32", "shape": [1 << 61, 16], "data_offsets": [0, 8]})), FormatError),
    Attack(217, "a negative shape", _file(_plain({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]})),
           FormatError),
    Attack(218, "a shape of fractions", _file(_plain({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]})),
           FormatError),
    Attack(219, "a shape of true", _file(_plain({"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]})),
           FormatError),
    Attack(220, "a million dimensions", _file(_plain({"dtype": "F32", "shape": [1] * 10**6, "data_offsets": [0, 4]})),
           FormatError),
    Attack(221, "negative offsets", _file(_plain({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]})),
           FormatError),
    Attack(222, "offsets that run backwards", _file(_plain({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]})),
           FormatError),
    Attack(223, "offsets past the end of the file",
           _file(_plain({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]})), FormatError),
    Attack(224, "offsets into the header", _file(_plain({"dtype": "F32", "shape": [4], "data_offsets": [-8, 8]})),
           FormatError),
    Attack(225, "two tensors of the same bytes", _file(container({"a": _TWO, "b": _TWO}, bytes(4))), FormatError),
    Attack(226, "a gap between two tensors",
           _file(container({"a": _TWO, "b": {**_TWO, "data_offsets": [8, 12]}}, bytes(12))), FormatError),
    Attack(227, "bytes behind the last tensor", _lazy(lambda: material().delta + b"more"), FormatError),
    Attack(228, "a dtype that there is not", _tensor(dtype="PICKLE"), FormatError),
    Attack(229, "a dtype that is a list", _tensor(dtype=["F32"]), FormatError),
    Attack(230, "a tensor with a field more", _tensor(code="import os"), FormatError),
    Attack(231, "a tensor outside the four groups",
           _header(lambda header: header.update(code=header.pop("head.classifier.bias"))),
           FormatError),
    Attack(232, "values of whole numbers", _tensor(dtype="I32"), FormatError),
    Attack(233, "a value NaN", _values(0x7FC00000), FormatError),
    Attack(234, "a value infinite", _values(0xFF800000), FormatError),
    Attack(235, "a terabyte of holes", _sparse, FormatError),
    Attack(236, "a pipe in place of a delta", _pipe("x.delta"), FormatError),
    Attack(237, "a pipe in place of a mask", _pipe("x.mask"), FormatError),
    Attack(238, "a device in place of a delta", lambda _: Delta.load("/dev/zero"), FormatError),
    Attack(239, "a delta's name of 10,000 characters", lambda place: Delta.load(place.target / ("x" * 10_000)),
           FormatError),
    Attack(240, "a mask's name with a NUL", lambda _: Mask.load("a\0b"), FormatError),
    Attack(241, "a delta that is written through a link", _overwritten,
           harmless="the link becomes the file; what it led to stays"),
    Attack(251, "a mask file with a field more", _mask(more=1), FormatError),
    Attack(252, "a mask file of format version 99", _mask(format_version=99), FormatError),
    Attack(253, "a mask file whose base is no object", _mask(base=["digest", "id", "revision"]), FormatError),
    Attack(254, "a mask file whose base has no text", _mask(base={"digest": 1, "id": [], "revision": {}}), FormatError),
    Attack(255, "a mask file with a codec that is text", _mask(codec="gaps"), FormatError),
    Attack(256, "a mask file of k = true", _mask(k=True), FormatError),
    Attack(257, "a mask file of more positions than it has", _mask(k=800), FormatError),
    Attack(258, "a mask file of fewer positions than it has", _mask(k=3), FormatError),
    Attack(259, "a mask file of a smaller space than its positions", _mask(n=800), FormatError),
    Attack(260, "a mask file of 2^63 parameters", _mask(n=1 << 63), FormatError),
    Attack(261, "a mask file of another recipe", _mask(recipe={"name": "random"}),
           harmless="a recipe is a claim: the digest is that of the positions"),
    Attack(262, "a mask file of another base", _mask(base={"digest": "1" * 64, "id": "b", "revision": None}),
           IntegrityError),
    Attack(263, "a mask file that claims a terabyte of positions", _claim, FormatError),
    Attack(264, "a delta given as a mask", lambda place: Mask.load(place.write("x", material().delta)), FormatError),
    Attack(265, "a mask given as a delta", lambda place: Delta.load(place.write("x", material().mask)), FormatError),
]  # fmt: skip

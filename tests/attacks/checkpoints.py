"""A501 to A599: checkpoints given as a base."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from deltahub.checkpoint import Base
from deltahub.convert.materialize import materialize
from deltahub.delta import Delta
from deltahub.errors import CheckpointError, FormatError
from deltahub.mask import Mask
from tests.attacks.attack import Attack, Place, container, material, with_header

Run = Callable[[Place], object]
_INDEX = "model.safetensors.index.json"


def _opened(place: Place) -> str:
    return Base.open(place.target / "base", cache=place.target / "cache").digest


def _with(name: str, data: bytes | str, *, without: str = "") -> Run:
    """The folder of the base with one more file, and one less."""

    def run(place: Place) -> None:
        place.base()
        if without:
            (place.target / "base" / without).unlink()
        place.write(f"base/{name}", data)
        _opened(place)

    return run


def _instead(name: str, make: Callable[[Path], object]) -> Run:
    def run(place: Place) -> None:
        path = place.base() / name
        path.unlink()
        make(path)
        _opened(place)

    return run


def _index(*names: object) -> Run:
    weights = {f"w{number}": name for number, name in enumerate(names)}
    return _with(_INDEX, json.dumps({"weight_map": weights}), without="model.safetensors")


def _weights(data: Callable[[], bytes]) -> Run:
    def run(place: Place) -> None:
        _with("model.safetensors", data())(place)

    return run


def _one(dtype: str, shape: list[int], data: bytes) -> bytes:
    return container({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}, data)


def _named(text: str) -> Run:
    return lambda place: Base.open(text, cache=place.target / "cache")


def _linked(place: Place) -> None:
    """As in the cache of Hugging Face, where every file of a snapshot is a link."""
    weights = place.base() / "model.safetensors"
    weights.rename(place.target / "content")
    weights.symlink_to(place.target / "content")
    assert len(_opened(place)) == 64


def _sparse(place: Place) -> None:
    size = 1 << 40
    path = place.base() / "model.safetensors"
    path.write_bytes(container({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}))
    os.truncate(path, path.stat().st_size + size)
    Base.open(place.target / "base", cache=place.target / "cache").read("w")


def _large_config(place: Place) -> None:
    os.truncate(place.base() / "config.json", 1 << 30)
    _opened(place)


def _linked_secret(place: Place) -> None:
    """A file that goes along into the checkpoint that is written, and may be published."""
    (place.base() / "tokenizer.json").symlink_to(place.outside / "secret")
    base = Base.open(place.target / "base", cache=place.target / "cache")
    out = place.target / "out"
    try:
        materialize(base, Delta.loads(material().delta), out, mask=Mask.loads(material().mask))
    finally:
        assert not any(path.name == "tokenizer.json" for path in place.target.rglob("out*/*"))


def _linked_blob(place: Place) -> None:
    snapshot = place.target / "models--a--b" / "snapshots" / "main"
    snapshot.parent.mkdir(parents=True)
    place.base().rename(snapshot)
    place.write("models--a--b/blobs/0", b"{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/0")
    base = Base.open(snapshot, cache=place.target / "cache")
    materialize(base, Delta.loads(material().delta), place.target / "out", mask=Mask.loads(material().mask))
    assert (place.target / "out" / "tokenizer.json").read_bytes() == b"{}"


_PICKLE = b"\x80\x04cposix\nsystem\n(S'touch ../outside/pwned'\ntR."


def _pickled_shard(place: Place) -> None:
    place.write("base/pytorch_model.bin", _PICKLE)
    _index("pytorch_model.bin")(place)


ATTACKS = [
    Attack(501, "a pickle named pytorch_model.bin", _with("pytorch_model.bin", _PICKLE, without="model.safetensors"),
           CheckpointError),
    Attack(502, "a pickle named model.safetensors", _with("model.safetensors", _PICKLE), CheckpointError),
    Attack(503, "code beside the weights", _with("modeling_x.py", "raise SystemExit"), harmless="never read"),
    Attack(504, "a config with code to load (`auto_map`)",
           _with("config.json", '{"auto_map": {"AutoModel": "modeling_x.X"}}'), harmless="never followed"),
    Attack(505, "an index of shards in `../outside`", _index("../outside/secret"), CheckpointError),
    Attack(506, "an index of absolute paths", _index("/etc/passwd"), CheckpointError),
    Attack(507, "an index of `..`", _index(".."), CheckpointError),
    Attack(508, "an index of a pickle", _pickled_shard, CheckpointError),
    Attack(509, "an index of numbers and lists", _index(1, [2]), CheckpointError),
    Attack(510, "an index of a name of 10,000 characters", _index("x" * 10_000), CheckpointError),
    Attack(511, "an index of a name with a NUL", _index("a\0b"), CheckpointError),
    Attack(512, "an index of shards that are missing", _index("model-00001-of-00002.safetensors"), CheckpointError),
    Attack(513, "an index of 100,000 nested lists", _with(_INDEX, "[" * 100_000, without="model.safetensors"),
           CheckpointError),
    Attack(514, "an index that is a list", _with(_INDEX, "[]", without="model.safetensors"), CheckpointError),
    Attack(521, "a config.json that is a pipe", _instead("config.json", os.mkfifo), CheckpointError),
    Attack(522, "a config.json that is a link to /dev/zero",
           _instead("config.json", lambda path: path.symlink_to("/dev/zero")), CheckpointError),
    Attack(523, "a config.json that is a folder", _instead("config.json", Path.mkdir), CheckpointError),
    Attack(524, "a config.json of a gigabyte", _large_config, CheckpointError),
    Attack(525, "a config.json of 100,000 nested lists", _with("config.json", "[" * 100_000), CheckpointError),
    Attack(526, "a config.json that is a list", _with("config.json", "[]"), CheckpointError),
    Attack(527, "a config.json with a key twice", _with("config.json", '{"a":1,"a":2}'), CheckpointError),
    Attack(528, "weights that are a pipe", _instead("model.safetensors", os.mkfifo), CheckpointError),
    Attack(529, "weights that are a link to /dev/zero",
           _instead("model.safetensors", lambda path: path.symlink_to("/dev/zero")), CheckpointError),
    Attack(530, "weights that are a link to themselves",
           _instead("model.safetensors", lambda path: path.symlink_to(path)), CheckpointError),
    Attack(531, "weights that are a link to a file elsewhere", _linked,
           harmless="read, as in the cache of Hugging Face; what is no safetensors file is refused"),
    Attack(532, "weights that are a link to /etc/passwd",
           _instead("model.safetensors", lambda path: path.symlink_to("/etc/passwd")), CheckpointError),
    Attack(533, "a tokenizer.json that is a link to a secret, materialized", _linked_secret, CheckpointError),
    Attack(534, "the same in the cache of Hugging Face, where it leads to a blob", _linked_blob,
           harmless="copied, as every file there is a link"),
    Attack(541, "a parameter NaN", _weights(lambda: _one("F32", [1], b"\0\0\xc0\x7f")), CheckpointError),
    Attack(542, "a parameter infinite", _weights(lambda: _one("BF16", [1], b"\x80\xff")), CheckpointError),
    Attack(543, "parameters in 4 bits", _weights(lambda: _one("F4", [1], b"\0")), CheckpointError),
    Attack(544, "parameters in 64 bits", _weights(lambda: _one("F64", [1], bytes(8))), CheckpointError),
    Attack(545, "no parameter at all", _weights(lambda: container({})), CheckpointError),
    Attack(546, "a tensor of no parameters", _weights(lambda: _one("F32", [0], b"")), harmless="a space of size 0"),
    Attack(547, "a header of 2^63 bytes", _weights(lambda: (1 << 63).to_bytes(8, "little") + b"{}"), CheckpointError),
    Attack(548, "two tensors of the same bytes",
           _weights(lambda: with_header(material().base["model.safetensors"], lambda h: h.update(w=dict(
               next(entry for name, entry in h.items() if name != "__metadata__"))))), CheckpointError),
    Attack(549, "a tensor of a terabyte of holes", _sparse, FormatError),
    Attack(551, "a base's name of 10,000 characters", _named("x" * 10_000), CheckpointError),
    Attack(552, "a base's name with a NUL", _named("a\0b"), CheckpointError),
    Attack(553, "a base's name that is a device", _named("/dev/zero"), CheckpointError),
    Attack(554, "a base's name `../..//x`", _named("../..//x"), CheckpointError),
]  # fmt: skip

"""What an attack is, and the place that it is made from: a sound hub, delta, mask and base to spoil."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from deltahub import keys, sealed, tensorfile
from deltahub.checkpoint import Base
from deltahub.delta import Delta
from deltahub.digest import of_bytes
from deltahub.errors import DeltahubError
from deltahub.hub import Hub
from deltahub.mask import Mask
from deltahub.rawtensor import RawTensor
from tests.deltas import random_delta

MIB = 1 << 20
REFERENCE = "sst2@1"


@dataclass(frozen=True)
class Place:
    """An attack's own folder: it may write below ``target``, and what lies beside that must stay as it is."""

    target: Path

    @property
    def outside(self) -> Path:
        return self.target.parent / "outside"

    def write(self, name: str, data: bytes | str) -> Path:
        path = self.target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def hub(self) -> Hub:
        """A hub in ``target/hub`` with sst2@1, its tag prod, and a mask that only its positions give."""
        if not (self.target / "hub").exists():
            for name, data in material().hub.items():
                self.write(f"hub/{name}", data)
        return Hub.open(self.target / "hub", create=False)

    def base(self) -> Path:
        """The folder of the checkpoint that the delta and the mask were made on."""
        for name, data in material().base.items():
            self.write(f"base/{name}", data)
        return self.target / "base"

    def reseal(self, key: str, change: Callable[[dict[str, Any]], object]) -> Hub:
        """The hub with one document changed and sealed again, as whoever may write there can do it."""
        hub = self.hub()
        document = json.loads(hub.store.get(key))
        del document["check"]
        change(document)
        hub.store.put(key, sealed.seal(document))
        return hub

    def section(self, stored: bytes, **changes: Any) -> Hub:
        """The hub whose sst2@1 has its values in the blob ``stored``, described by ``changes``."""
        name = of_bytes(stored)
        self.hub().store.put(keys.blob(name), stored)
        described = {"blob": name, "stored": len(stored), **changes}
        return self.reseal(RECORD, lambda document: values_of(document).update(described))


@dataclass(frozen=True)
class Attack:
    """One row of the table.

    Attributes:
        number: never used again for another attack.
        tries: what it tries, in a few words.
        run: makes it; raises what the library raises, or AssertionError where its answer is wrong.
        error: of this type it must be; None where the attack does no harm.
        harmless: what happens then.
        memory: bytes that it may take at most, beside what was taken before.
    """

    number: int
    tries: str
    run: Callable[[Place], object]
    error: type[DeltahubError] | None = None
    harmless: str = ""
    memory: int = 64 * MIB

    @property
    def name(self) -> str:
        return f"A{self.number:03d}"

    @property
    def happens(self) -> str:
        return self.harmless if self.error is None else f"refused ({self.error.__name__})"


@dataclass(frozen=True)
class Elsewhere:
    """A row whose attack is made by a test that stands with what it tests: ``file::function``."""

    number: int
    tries: str
    test: str
    happens: str

    @property
    def name(self) -> str:
        return f"A{self.number:03d}"


def values_of(document: dict[str, Any]) -> dict[str, Any]:
    """The section of the values in a version record."""
    found: dict[str, Any] = next(section for section in document["sections"] if section["group"] == "values")
    return found


RECORD = keys.version("sst2", 1)
TAG = keys.tag("sst2", "prod")


@dataclass(frozen=True)
class Material:
    """Files by name of a hub and of its base, a delta and a mask in their file bytes, and the mask's digest."""

    hub: Mapping[str, bytes]
    base: Mapping[str, bytes]
    delta: bytes
    mask: bytes
    mask_key: str


@cache
def material() -> Material:
    rng = np.random.default_rng(0)
    weights = {
        f"encoder.layer.{number}.weight": RawTensor.of_bits(
            "F32", (64, 64), rng.normal(0, 0.1, 4096).astype(np.float32).view(np.uint32)
        )
        for number in range(2)
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").mkdir()
        (folder / "base" / "model.safetensors").write_bytes(tensorfile.dumps(weights, {"format": "pt"}))
        (folder / "base" / "config.json").write_bytes(b"{}")
        base = Base.open(folder / "base", cache=folder / "cache")
        mask = Mask.of_indices(base, np.arange(5, 8192, 11))
        delta = random_delta(base, mask, classes=2)
        Hub.open(folder / "hub").push(delta, ["prod"], mask=mask)
        return Material(
            _files(folder / "hub"), _files(folder / "base"), b"".join(delta.dump()),
            mask.save(folder / "m.mask").read_bytes(), keys.mask(mask.digest),
        )  # fmt: skip


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def container(header: object, data: bytes = b"") -> bytes:
    """A safetensors file of any header: an object to write as JSON, or its text."""
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_header(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A safetensors file with its header changed, whatever follows."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    return container(header, data[end:])


def with_manifest(text: str) -> bytes:
    """The delta with another manifest."""
    return with_header(material().delta, lambda header: header["__metadata__"].update(deltahub=text))


def manifest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Delta.loads(material().delta).manifest.to_json())
    return found

"""The JSON documents of a hub, each sealed with a checksum and read without trust. FORMAT.md has the text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deltahub import keys, sealed, tensorfile
from deltahub.delta import GROUPS
from deltahub.digest import is_digest
from deltahub.errors import FormatError
from deltahub.manifest import BaseRef, Manifest
from deltahub.rawtensor import FLOATS, ITEMSIZE

HUB = b'{"format":"deltahub","format_version":1}'
FORMAT_VERSION = 2
"""The newest of version records; each is written in the lowest that can say it. Of mask records there is only 1."""
MOST_BYTES = 16 << 20
"""A longer document is refused unread: a manifest has at most 4 MiB."""
_MOST_SIZE = 1 << 48
_PUSHED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True)
class Blob:
    """One immutable object of the store, and what it decodes to.

    Attributes:
        blob: sha256 of the stored bytes, which is also the object's name.
        stored: number of stored bytes.
        digest: sha256 of the decoded bytes.
        size: number of decoded bytes.
        config: what `codecs.decode` needs to know.
    """

    blob: str
    stored: int
    digest: str
    size: int
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """Tensors of one group and dtype, one after the other in the order of their names, in one blob.

    Attributes:
        group: ``values``, ``dense``, ``adapter`` or ``head``.
        dtype: one of `rawtensor.FLOATS`.
        tensors: full name (``head.classifier.weight``) and shape.
        data: where the bytes are.
    """

    group: str
    dtype: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    data: Blob


@dataclass(frozen=True)
class VersionRecord:
    """One immutable version of a task.

    Attributes:
        task: the task's name.
        number: 1, 2, ...
        digest: sha256 of the delta's canonical file.
        size: bytes of that file.
        pushed: UTC, ``YYYY-MM-DDTHH:MM:SSZ``.
        manifest_json: the delta's manifest as its file has it.
        sections: where the tensors are.
    """

    task: str
    number: int
    digest: str
    size: int
    pushed: str
    manifest_json: str
    sections: tuple[Section, ...]

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.from_json(self.manifest_json)

    @property
    def reference(self) -> str:
        return f"{self.task}@{self.number}"

    @property
    def stored(self) -> int:
        """Bytes of its blobs, some of which other versions may share."""
        return sum(section.data.stored for section in self.sections)

    @property
    def format_version(self) -> int:
        """Version 1 has one section for each group and dtype, and no group of numbers that restarts within one."""
        kinds = {(section.group, section.dtype) for section in self.sections}
        joined = any("parts" in section.data.config for section in self.sections)
        return FORMAT_VERSION if joined or len(kinds) < len(self.sections) else 1

    def to_bytes(self) -> bytes:
        sections = [
            {"group": s.group, "dtype": s.dtype, "tensors": [[name, list(shape)] for name, shape in s.tensors]}
            | _blob_json(s.data)
            for s in self.sections
        ]
        document = {name: getattr(self, name) for name in ("task", "number", "digest", "size", "pushed")}
        document |= {"format_version": self.format_version, "manifest": self.manifest_json, "sections": sections}
        return sealed.seal(document)

    @staticmethod
    def from_bytes(data: bytes, what: str) -> VersionRecord:
        """Raises FormatError or IntegrityError, named by ``what``, unless all fields are there and fit each other."""
        fields = sealed.unseal(data, what, "task number digest size pushed manifest sections", newest=FORMAT_VERSION)
        version = fields.pop("format_version")
        good = (
            isinstance(fields["task"], str)
            and _whole(fields["number"], keys.MOST_NUMBER)
            and is_digest(fields["digest"])
            and _whole(fields["size"], _MOST_SIZE)
            and isinstance(fields["pushed"], str)
            and _PUSHED.fullmatch(fields["pushed"]) is not None
            and isinstance(fields["manifest"], str)
            and isinstance(fields["sections"], list)
        )
        if not good:
            raise FormatError(what, expected="the fields of a version record, each of its kind")
        sections = tuple(_section(item, what) for item in fields["sections"])
        fields |= {"sections": sections, "manifest_json": fields.pop("manifest")}
        record = VersionRecord(**fields)
        if record.format_version != version:
            raise FormatError(f"format_version of {what}", expected=record.format_version, got=version)
        _check_size(record, what)
        return record


@dataclass(frozen=True)
class MaskRecord:
    """A mask of the hub.

    Attributes:
        digest: the mask's digest.
        base: the base that it was made on.
        n: size of that base's parameter space.
        k: number of positions.
        recipe: what made it.
        data: its encoded positions; None where the recipe rebuilds them.
    """

    digest: str
    base: BaseRef
    n: int
    k: int
    recipe: Mapping[str, Any]
    data: Blob | None

    def to_bytes(self) -> bytes:
        document: dict[str, Any] = {"format_version": 1, "digest": self.digest, "n": self.n, "k": self.k}
        document |= {"base": vars(self.base), "recipe": dict(self.recipe)}
        return sealed.seal(document | {"data": None if self.data is None else _blob_json(self.data)})

    @staticmethod
    def from_bytes(data: bytes, what: str) -> MaskRecord:
        """Raises FormatError or IntegrityError, named by ``what``."""
        fields = sealed.unseal(data, what, "digest base n k recipe data", newest=1)
        n, k = fields["n"], fields["k"]
        if not (_whole(n, _MOST_SIZE) and _whole(k, _MOST_SIZE) and 0 < k <= n and is_digest(fields["digest"])):
            raise FormatError(what, expected="a digest and k positions of n, 0 < k <= n")
        if not isinstance(fields["recipe"], dict):
            raise FormatError(f"recipe in {what}", expected="an object")
        blob = None if fields["data"] is None else _blob(fields["data"], what)
        if blob is None and fields["recipe"].get("name") == "file":
            raise FormatError(what, expected="encoded positions, since no recipe can rebuild them")
        if blob is not None and blob.size != 8 * k:
            raise FormatError(f"positions in {what}", expected=f"{8 * k} bytes", got=blob.size)
        return MaskRecord(fields["digest"], _base_ref(fields["base"], what), n, k, fields["recipe"], blob)


def base_bytes(base: BaseRef) -> bytes:
    return sealed.seal(vars(base))


def read_base(data: bytes, what: str) -> BaseRef:
    return _base_ref(sealed.unseal(data, what, "digest id revision"), what)


def tag_bytes(number: int) -> bytes:
    return sealed.seal({"version": number})


def read_tag(data: bytes, what: str) -> int:
    number = sealed.unseal(data, what, "version")["version"]
    if type(number) is not int or not 0 < number <= keys.MOST_NUMBER:
        raise FormatError(what, expected="a version number", got=repr(number)[:40])
    return number


def lease_bytes(blobs: set[str]) -> bytes:
    return sealed.seal({"blobs": sorted(blobs)})


def read_lease(data: bytes, what: str) -> set[str]:
    blobs = sealed.unseal(data, what, "blobs")["blobs"]
    if not isinstance(blobs, list) or not all(is_digest(blob) for blob in blobs):
        raise FormatError(what, expected="a list of blobs")
    return set(blobs)


def _blob_json(data: Blob) -> dict[str, Any]:
    return {**vars(data), "config": dict(data.config)}


def _blob(found: object, what: str) -> Blob:
    names = {"blob", "stored", "digest", "size", "config"}
    if not isinstance(found, dict) or set(found) != names or not isinstance(found["config"], dict):
        raise FormatError(f"a blob in {what}", expected="exactly blob, stored, digest, size and config")
    if not is_digest(found["blob"]) or not is_digest(found["digest"]):
        raise FormatError(f"a blob in {what}", expected="digests of 64 lower-case hex digits")
    if not _whole(found["stored"], _MOST_SIZE) or not _whole(found["size"], _MOST_SIZE):
        raise FormatError(f"blob {found['blob'][:16]} in {what}", expected="sizes from 0 to 2^48")
    return Blob(**found)


def _section(found: object, what: str) -> Section:
    if not isinstance(found, dict) or not {"group", "dtype", "tensors"} <= set(found):
        raise FormatError(f"a section of {what}", expected="an object with group, dtype and tensors")
    group, dtype, tensors = found.pop("group"), found.pop("dtype"), found.pop("tensors")
    if group not in GROUPS or dtype not in FLOATS or not isinstance(tensors, list):
        raise FormatError(f"a section of {what}", expected=f"a group of {GROUPS} and a dtype of {FLOATS}")
    data = _blob(found, what)
    named = tuple(_named_shape(item, group, what) for item in tensors)
    size = sum(math.prod(shape) for _, shape in named) * ITEMSIZE[dtype]
    if size != data.size:
        raise FormatError(f"section {group} {dtype} of {what}", expected=f"{size} bytes for its shapes", got=data.size)
    return Section(group, dtype, named, data)


def _named_shape(found: object, group: str, what: str) -> tuple[str, tuple[int, ...]]:
    match found:
        case [str(name), list(shape)] if name.partition(".")[0] == group and len(shape) <= 16:
            if all(_whole(size, _MOST_SIZE) for size in shape):
                return name, tuple(shape)
    raise FormatError(f"a tensor of {what}", expected=f"a name of group {group} and at most 16 sizes")


def _check_size(record: VersionRecord, what: str) -> None:
    """The file that the record speaks of has the length that its tensors and manifest give it."""
    shapes = {name: (s.dtype, shape) for s in record.sections for name, shape in s.tensors}
    if len(shapes) != sum(len(section.tensors) for section in record.sections):
        raise FormatError(f"{what} has a tensor twice")
    head = tensorfile.header(shapes, {"deltahub": record.manifest_json})
    size = len(head) + sum(section.data.size for section in record.sections)
    if size != record.size:
        raise FormatError(f"the size in {what}", expected=f"{size} bytes", got=record.size)


def _base_ref(found: object, what: str) -> BaseRef:
    match found:
        case {"digest": digest_, "id": str(name), "revision": None | str() as revision, **rest} if not rest:
            if is_digest(digest_):
                return BaseRef(digest_, name, revision)
    raise FormatError(f"the base in {what}", expected="exactly digest, id and revision")


def _whole(found: object, most: int) -> bool:
    return type(found) is int and 0 <= found <= most

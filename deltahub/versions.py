"""Between a delta and its blobs: what a version record says, and how its bytes come back verified."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np

from deltahub import codecs, digest, keys, memory, parallel
from deltahub.codecs import index as index_codec
from deltahub.codecs import quantized
from deltahub.codecs.frames import Encoded
from deltahub.codecs.quantized import Quantized
from deltahub.delta import Delta
from deltahub.errors import FormatError, IntegrityError, NotFoundError
from deltahub.manifest import Manifest
from deltahub.mask import Mask
from deltahub.presence import Presence
from deltahub.rawtensor import ITEMSIZE, Bytes, RawTensor
from deltahub.records import Blob, MaskRecord, Section, VersionRecord
from deltahub.rounding import codes
from deltahub.space import Positions
from deltahub.stores import Store
from deltahub.stores.cached import uncached

Progress = Callable[[int, int], None]
ALONE = 16 << 10
"""Bytes from which on a tensor of the head, or a dense one, is a blob of its own."""


@dataclass(frozen=True)
class _Part:
    """The tensors of a section, and the codes of each if they were rounded to some."""

    group: str
    dtype: str
    names: tuple[str, ...]
    codes: tuple[Quantized, ...]


def encode(delta: Delta) -> list[tuple[Section, bytes]]:
    """Every section of ``delta`` with the bytes to store for it.

    Encoding and the three digests that a push needs (stored, decoded, canonical) run side by side; the canonical one
    stays with ``delta``.
    """
    with ThreadPoolExecutor(2) as pool:
        pool.submit(lambda: delta.digest)
        parts = _parts(delta, dict(zip(delta.tensors, pool.map(partial(codes, delta), delta.tensors), strict=True)))
        data = [_joined([delta.tensors[name].data for name in part.names]) for part in parts]
        encoded = [pool.submit(_encode_part, *pair) for pair in zip(parts, data, strict=True)]
        decoded = [pool.submit(digest.of_bytes, one.data) for one in data]
        found = []
        for part, one, coded, decoded_digest in zip(parts, data, encoded, decoded, strict=True):
            made, stored_digest = coded.result()
            blob = Blob(stored_digest, len(made.stored), decoded_digest.result(), one.nbytes, made.config)
            shapes = tuple((name, delta.tensors[name].shape) for name in part.names)
            found.append((Section(part.group, part.dtype, shapes, blob), made.stored))
    return found


def _parts(delta: Delta, coded: Mapping[str, Quantized | None]) -> list[_Part]:
    """Tensors of one group, dtype and coding together, but large ones that many tasks may share alone.

    An equal tensor is then an equal blob, which the hub stores once, whatever else the tasks have.
    """

    def key(name: str) -> tuple[str, str, bool, str]:
        group, tensor = name.partition(".")[0], delta.tensors[name]
        alone = group in ("dense", "head") and tensor.data.nbytes >= ALONE
        return group, tensor.dtype, coded[name] is not None, name if alone else ""

    found = []
    for (group, dtype, *_), members in groupby(sorted(delta.tensors, key=lambda name: (key(name), name)), key=key):
        names = tuple(members)
        found.append(_Part(group, dtype, names, tuple(one for name in names if (one := coded[name]) is not None)))
    return found


def _joined(parts: list[Bytes]) -> Bytes:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _encode_part(part: _Part, data: Bytes) -> tuple[Encoded, str]:
    encoded = quantized.encode_quantized(quantized.join(part.codes)) if part.codes else codecs.encode(data, part.dtype)
    return encoded, digest.of_bytes(encoded.stored)


def encode_mask(mask: Mask) -> tuple[Blob, bytes]:
    encoded = index_codec.encode_index(mask.indices)
    data = _little(mask.indices)
    names = digest.of_bytes(encoded.stored), digest.of_bytes(data.data)
    return Blob(names[0], len(encoded.stored), names[1], data.nbytes, encoded.config), encoded.stored


def _little(indices: Positions) -> Bytes:
    return indices.astype("<i8", copy=False).view(np.uint8)


def read(store: Store, record: VersionRecord, progress: Progress | None = None) -> Delta:
    """The delta of ``record``; nothing is returned unless every digest is right.

    Raises:
        NotFoundError, FormatError, IntegrityError: a blob is missing or damaged; the message names blob and version.
    """
    delta = assemble(store, record, progress)
    check(store, record, delta)
    return delta


def assemble(
    store: Store, record: VersionRecord, progress: Progress | None = None, *, at_once: int | None = None
) -> Delta:
    """As `read`, but only the stored bytes are verified: whoever uses the delta calls `check` first.

    ``at_once`` is for one who reads several versions at once.
    """
    memory.check(record.size, record.reference)
    manifest = Manifest.from_json(record.manifest_json)
    if manifest.task != record.task:
        raise FormatError(f"the manifest in {record.reference}", expected=f"task {record.task}", got=manifest.task)
    decoded: dict[int, Bytes] = {}
    numbered = dict(enumerate(record.sections))

    def done(index: int, data: Bytes) -> None:
        decoded[index] = data
        if progress:
            progress(sum(numbered[one].data.stored for one in decoded), record.stored)

    at_once = at_once or parallel.threads(store)
    parallel.for_each(lambda index: _decode(store, numbered[index].data, record.reference), numbered, at_once, done)
    tensors: dict[str, RawTensor] = {}
    for index, section in numbered.items():
        start = 0
        for name, shape in section.tensors:
            size = math.prod(shape) * ITEMSIZE[section.dtype]
            tensors[name] = RawTensor(section.dtype, shape, decoded[index][start : start + size])
            start += size
    return Delta(manifest, tensors)


def check(store: Store, record: VersionRecord, delta: Delta) -> None:
    """Raises IntegrityError unless ``delta`` is the file that ``record`` speaks of.

    That digest covers all decoded bytes; those of single blobs are only looked at to name the one that is wrong.
    """
    if delta.digest != record.digest:
        for section in record.sections:
            decode(store, section.data, record.reference)
    digest.check(record.reference, record.digest, delta.digest)


def decode(store: Store, blob: Blob, owner: str) -> Bytes:
    """The decoded bytes of ``blob``, stored and decoded digest verified; ``owner`` is named in errors."""
    data = _decode(store, blob, owner)
    digest.check(f"what blob {blob.blob[:16]} of {owner} decodes to", blob.digest, digest.of_bytes(data.data))
    return data


def _decode(store: Store, blob: Blob, owner: str) -> Bytes:
    """Hashes and decodes side by side: the decoder trusts nothing, and what it gives waits for the hash."""
    stored = _fetch(store, blob, owner)
    with ThreadPoolExecutor(1) as pool:
        hashed = pool.submit(digest.of_bytes, stored)
        try:
            data = codecs.decode(blob.config, stored, blob.size)
        except FormatError as error:
            _check_stored(blob, owner, hashed.result())
            raise FormatError(f"blob {blob.blob[:16]} of {owner}: {error}") from None
        _check_stored(blob, owner, hashed.result())
    return data


def read_mask(store: Store, record: MaskRecord) -> Mask | None:
    """The mask of ``record``, verified; None where only its recipe is kept."""
    if record.data is None:
        return None
    owner = f"mask {record.digest[:16]}"
    stored = read_stored(store, record.data, owner)
    indices = index_codec.decode_index(record.data.config, stored, record.k, record.n)
    digest.check(f"what the blob of {owner} decodes to", record.data.digest, digest.of_bytes(_little(indices).data))
    mask = Mask(record.base, record.n, record.recipe, indices)
    digest.check(owner, record.digest, mask.digest)
    return mask


def put_blob(store: Store, name: str, stored: bytes, *, check: bool = False) -> None:
    """Writes a blob unless it `is_whole`; one that is not is healed by the same stroke."""
    if not is_whole(store, name, len(stored), stored, check=check):
        store.put(keys.blob(name), stored)


def is_whole(
    store: Store,
    name: str,
    size: int,
    stored: bytes | None = None,
    *,
    check: bool = False,
    seen: Presence | None = None,
) -> bool:
    """Whether the blob ``name`` of ``size`` bytes is there and right.

    On this machine it is read. On a remote store it is taken for right by its size, and by its MD5 where the store
    tells it and the bytes are given as ``stored``; ``check`` has it read there too. ``seen`` is who to ask for it.
    """
    if store.remote and not check:
        entry = seen.entry(keys.blob(name)) if seen else store.stat(keys.blob(name))
        if entry is None or entry.size != size:
            return False
        if stored is None or entry.md5 in (None, hashlib.md5(stored, usedforsecurity=False).hexdigest()):
            return True
    try:
        found = uncached(store).get(keys.blob(name), 0, size + 1)
    except NotFoundError:
        return False
    return found == stored if stored is not None else len(found) == size and digest.of_bytes(found) == name


def read_stored(store: Store, blob: Blob, owner: str) -> bytes:
    """The bytes of ``blob`` as they are stored, verified; ``owner`` is named in errors."""
    stored = _fetch(store, blob, owner)
    _check_stored(blob, owner, digest.of_bytes(stored))
    return stored


def _check_stored(blob: Blob, owner: str, found: str) -> None:
    digest.check(f"blob {blob.blob[:16]} of {owner}", blob.blob, found)


def _fetch(store: Store, blob: Blob, owner: str) -> bytes:
    memory.check(blob.stored, f"blob {blob.blob[:16]} of {owner}")
    try:
        stored = store.get(keys.blob(blob.blob), 0, blob.stored + 1)
    except NotFoundError:
        raise NotFoundError(
            f"blob {blob.blob[:16]} of {owner} is missing", hint="push the task again, or restore the hub's folder"
        ) from None
    if len(stored) != blob.stored:
        raise IntegrityError(
            f"blob {blob.blob[:16]} of {owner}", expected=f"{blob.stored} bytes", got=f"{len(stored)} or more",
            hint="push the task again, or restore the hub's folder",
        )  # fmt: skip
    return stored

"""Between a delta and its blobs: what a version record says, and how its bytes come back verified."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import numpy as np

from deltahub import codecs, digest, keys
from deltahub.codecs import index as index_codec
from deltahub.codecs import quantized
from deltahub.codecs.frames import Encoded
from deltahub.delta import Delta
from deltahub.errors import FormatError, IntegrityError, NotFoundError
from deltahub.manifest import Manifest, Quantization
from deltahub.mask import Mask
from deltahub.rawtensor import ITEMSIZE, Bytes, RawTensor
from deltahub.records import Blob, MaskRecord, Section, VersionRecord
from deltahub.space import Positions
from deltahub.stores import Store

Progress = Callable[[int, int], None]


def quantise(delta: Delta, bits: int, group: int = 256) -> Delta:
    """The task that ``delta`` becomes when its values are rounded to ``bits``; itself if it was before."""
    values = delta.tensors.get("values")
    earlier = delta.manifest.quantization
    if values is None or (earlier is not None and earlier.bits <= bits):
        return delta
    rounded = quantized.dequantize(quantized.quantize(values, bits, group), values.dtype)
    error, rms = quantized.measure(values, rounded)
    made = delta.with_manifest(quantization=Quantization(bits, group, error, rms))
    return Delta(made.manifest, {**made.tensors, "values": rounded})


def encode(delta: Delta) -> list[tuple[Section, bytes]]:
    """Every section of ``delta`` with the bytes to store for it."""

    def kind(name: str) -> tuple[str, str]:
        return name.partition(".")[0], delta.tensors[name].dtype

    parts = groupby(sorted(delta.tensors, key=lambda name: (kind(name), name)), key=kind)
    jobs = [(group, dtype, tuple(members)) for (group, dtype), members in parts]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: _encode_section(delta, *job), jobs))


def _encode_section(delta: Delta, group: str, dtype: str, names: tuple[str, ...]) -> tuple[Section, bytes]:
    parts = [delta.tensors[name].data for name in names]
    data = np.concatenate(parts) if len(parts) > 1 else parts[0]
    encoded = _encode_values(delta, data) if group == "values" else None
    encoded = encoded or codecs.encode(data, dtype)
    shapes = tuple((name, delta.tensors[name].shape) for name in names)
    return Section(group, dtype, shapes, _blob(encoded, data)), encoded.stored


def _encode_values(delta: Delta, data: Bytes) -> Encoded | None:
    """Rounded values as the codes that they were rounded to."""
    lossy = delta.manifest.quantization
    found = quantized.requantize(delta.tensors["values"], lossy.bits, lossy.group) if lossy else None
    return None if found is None else quantized.encode_quantized(found)


def encode_mask(mask: Mask) -> tuple[Blob, bytes]:
    encoded = index_codec.encode_index(mask.indices)
    return _blob(encoded, _little(mask.indices)), encoded.stored


def _little(indices: Positions) -> Bytes:
    return indices.astype("<i8", copy=False).view(np.uint8)


def _blob(encoded: Encoded, data: Bytes) -> Blob:
    return Blob(
        digest.of_bytes(encoded.stored), len(encoded.stored), digest.of_bytes(data.data), data.nbytes, encoded.config
    )


def read(store: Store, record: VersionRecord, progress: Progress | None = None) -> Delta:
    """The delta of ``record``; nothing is returned unless every digest is right.

    Raises:
        NotFoundError, FormatError, IntegrityError: a blob is missing or damaged; the message names blob and version.
    """
    done = 0
    tensors: dict[str, RawTensor] = {}
    for section in record.sections:
        data = decode(store, section.data, record.reference)
        start = 0
        for name, shape in section.tensors:
            size = math.prod(shape) * ITEMSIZE[section.dtype]
            tensors[name] = RawTensor(section.dtype, shape, data[start : start + size])
            start += size
        done += section.data.stored
        if progress:
            progress(done, record.stored)
    delta = Delta(Manifest.from_json(record.manifest_json), tensors)
    digest.check(record.reference, record.digest, delta.digest)
    return delta


def decode(store: Store, blob: Blob, owner: str) -> Bytes:
    stored = _stored(store, blob, owner)
    try:
        data = codecs.decode(blob.config, stored, blob.size)
    except FormatError as error:
        raise FormatError(f"blob {blob.blob[:16]} of {owner}: {error}") from None
    digest.check(f"what blob {blob.blob[:16]} of {owner} decodes to", blob.digest, digest.of_bytes(data.data))
    return data


def read_mask(store: Store, record: MaskRecord) -> Mask | None:
    """The mask of ``record``, verified; None where only its recipe is kept."""
    if record.data is None:
        return None
    owner = f"mask {record.digest[:16]}"
    stored = _stored(store, record.data, owner)
    indices = index_codec.decode_index(record.data.config, stored, record.k, record.n)
    digest.check(f"what the blob of {owner} decodes to", record.data.digest, digest.of_bytes(_little(indices).data))
    mask = Mask(record.base, record.n, record.recipe, indices)
    digest.check(owner, record.digest, mask.digest)
    return mask


def put_blob(store: Store, name: str, stored: bytes) -> None:
    """Writes a blob unless it is there whole; one that is damaged is healed by the same stroke."""
    found = store.stat(keys.blob(name))
    if found is None or found.size != len(stored) or store.get(keys.blob(name)) != stored:
        store.put(keys.blob(name), stored)


def is_whole(store: Store, blob: Blob) -> bool:
    """Whether the stored bytes of ``blob`` are all there and right."""
    try:
        _stored(store, blob, "")
    except (NotFoundError, IntegrityError):
        return False
    return True


def _stored(store: Store, blob: Blob, owner: str) -> bytes:
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
    digest.check(f"blob {blob.blob[:16]} of {owner}", blob.blob, digest.of_bytes(stored))
    return stored

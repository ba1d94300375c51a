"""What a hub takes, part by part, and what the usual ways of keeping the same tasks would take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from deltahub.checkpoint import Base
from deltahub.delta import GROUPS
from deltahub.manifest import Manifest
from deltahub.rawtensor import ITEMSIZE
from deltahub.rounding import is_frozen

if TYPE_CHECKING:
    from deltahub.hub import Hub
    from deltahub.records import Section, VersionRecord

PROJECTIONS = (10, 100, 1000)
LORA_RANK = 8


@dataclass(frozen=True)
class TaskBytes:
    """Stored bytes of a version, part by part, and what its peers would take. All in bytes.

    Attributes:
        stored: its blobs and its record together; blobs shared with other versions count in full.
        alone: its record and the blobs that no other version has: what the hub would be smaller without it.
        shared_layers: of ``head``, layers made once for many tasks; a further task does not store them again.
        full_checkpoint: a checkpoint of base and head in the base's dtype.
        plain_sparse: values in fp16 with an int32 index of its own, dense tensors and head as they are.
        lora: a PEFT file of rank 8 on all linear layers in fp32, with the head; None where the base was not given.
        lossy: ``bf16``, ``int8`` or ``int4`` where values were rounded, with the relative root mean square of the
            moves; the same of other groups behind their names.
        coding: ``lossy`` without figures; ``exact`` where nothing was rounded.
    """

    version: str
    values: int
    dense: int
    adapter: int
    head: int
    record: int
    alone: int
    shared_layers: int
    full_checkpoint: int | None
    plain_sparse: int
    lora: int | None
    lossy: str | None
    coding: str

    @property
    def stored(self) -> int:
        return self.values + self.dense + self.adapter + self.head + self.record


@dataclass(frozen=True)
class MaskBytes:
    """Bytes of a mask's positions.

    Attributes:
        stored: 0 where the recipe rebuilds them.
        floor: log2 C(n, k) bits: no code can store a random mask in less.
    """

    digest: str
    k: int
    n: int
    stored: int
    floor: int


@dataclass(frozen=True)
class Peer:
    name: str
    total: int
    mean_task: float


@dataclass(frozen=True)
class Coding:
    """The versions that are coded alike: ``exact``, ``int8``, ``int8, head int8`` and so on.

    Attributes:
        mean_task: mean bytes of one, without layers that tasks share.
        shared: bytes of those layers, each once.
    """

    name: str
    versions: int
    mean_task: float
    shared: int


@dataclass(frozen=True)
class Projection:
    """Bytes of so many tasks: in a hub where all are coded alike, by coding, and kept in other ways."""

    tasks: int
    hub: dict[str, float]
    peers: dict[str, float]


@dataclass(frozen=True)
class Report:
    """A hub's bytes.

    Attributes:
        names: how many tasks the versions belong to.
        parts: of the whole hub, each blob once: ``values``, ``dense``, ``adapter``, ``head``, ``record``, ``index``.
        total: their sum; the base itself is never in a hub, nor counted for any peer.
    """

    tasks: tuple[TaskBytes, ...]
    names: int
    masks: tuple[MaskBytes, ...]
    parts: dict[str, int]
    total: int
    codings: tuple[Coding, ...]
    peers: tuple[Peer, ...]
    projections: tuple[Projection, ...]


def report(hub: Hub, base: Base | None = None) -> Report:
    """Counts every live version of ``hub``.

    Args:
        base: the base of the tasks, which tells the linear layers that LoRA would adapt.
    """
    records = [record for task in hub.tasks() for record in hub.versions(task.task)]
    kept = hub.masks()
    masks = [
        MaskBytes(mask.digest, mask.k, mask.n, mask.data.stored if mask.data else 0, index_floor(mask.n, mask.k))
        for mask in kept
    ]
    spaces = {mask.digest: mask.n for mask in masks}
    users = Counter(blob for record in records for blob in {section.data.blob for section in record.sections})
    tasks = tuple(_task(record, users, spaces, base) for record in records)
    shared = sum(mask.stored for mask in masks) + sum(len(mask.to_bytes()) for mask in kept)
    parts = _parts(records) | {"record": sum(row.record for row in tasks), "index": shared}
    columns: dict[str, list[int | None]] = {
        "full checkpoint each": [row.full_checkpoint for row in tasks],
        "fp16 values + int32 index": [row.plain_sparse for row in tasks],
        "PEFT LoRA r=8, all linear": [row.lora for row in tasks],
    }
    known = {name: [count for count in column if count is not None] for name, column in columns.items()}
    peers = tuple(
        Peer(name, sum(column), sum(column) / len(tasks))
        for name, column in known.items()
        if column and len(column) == len(tasks)
    )
    codings = _codings(tasks, records)
    projections = tuple(
        Projection(
            count,
            {coding.name: shared + coding.shared + coding.mean_task * count for coding in codings},
            {peer.name: peer.mean_task * count for peer in peers},
        )
        for count in PROJECTIONS
    )
    names = len({record.task for record in records})
    return Report(tasks, names, tuple(masks), parts, sum(parts.values()), codings, peers, projections if tasks else ())


def _parts(records: Sequence[VersionRecord]) -> dict[str, int]:
    """Stored bytes by group, every blob once."""
    blobs = {section.data.blob: section for record in records for section in record.sections}
    return {group: sum(section.data.stored for section in blobs.values() if section.group == group) for group in GROUPS}


def _codings(tasks: Sequence[TaskBytes], records: Sequence[VersionRecord]) -> tuple[Coding, ...]:
    found: dict[str, list[int]] = {}
    layers: dict[str, dict[str, int]] = {}
    for row, record in zip(tasks, records, strict=True):
        found.setdefault(row.coding, []).append(row.stored - row.shared_layers)
        layers.setdefault(row.coding, {}).update({s.data.blob: s.data.stored for s in _shared_layers(record)})
    return tuple(
        Coding(name, len(sizes), sum(sizes) / len(sizes), sum(layers[name].values()))
        for name, sizes in sorted(found.items())
    )


def _shared_layers(record: VersionRecord) -> list[Section]:
    """Blobs that hold nothing but one layer made for many tasks; small ones lie among the task's own."""
    return [s for s in record.sections if len(s.tensors) == 1 and is_frozen(record.manifest, s.tensors[0][0])]


def index_floor(n: int, k: int) -> int:
    """Bytes of log2 C(n, k)."""
    nats = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.ceil(nats / math.log(2) / 8 - 1e-9)  # a whole number of bytes must not become one more by rounding


def lora_parameters(base: Base, rank: int = LORA_RANK) -> int:
    """Parameters of LoRA factors on every linear layer of the bare model: rank x (in + out) each."""
    return sum(
        rank * sum(tensor.shape)
        for tensor in base.space.tensors
        if len(tensor.shape) == 2 and tensor.role in ("block", "pooler")
    )


def _task(record: VersionRecord, users: Counter[str], spaces: dict[str, int], base: Base | None) -> TaskBytes:
    stored = dict.fromkeys(("values", "dense", "adapter", "head"), 0)
    plain = dict.fromkeys(stored, 0)
    item = 4
    for section in record.sections:
        stored[section.group] += section.data.stored
        plain[section.group] += section.data.size
        if section.group == "values":
            item = ITEMSIZE[section.dtype]
    manifest = record.manifest
    k = manifest.mask.k if manifest.mask else 0
    n = spaces.get(manifest.mask.digest) if manifest.mask else None
    matches = base is not None and base.digest == manifest.base.digest
    if base is not None and matches:
        full: int | None = sum(tensor.size * ITEMSIZE[tensor.dtype] for tensor in base.space.tensors) + plain["head"]
    else:
        full = n * item + plain["head"] if n is not None else None
    lone = {s.data.blob: s.data.stored for s in record.sections if users[s.data.blob] == 1}
    own = len(record.to_bytes())
    return TaskBytes(
        record.reference, **stored, record=own, alone=own + sum(lone.values()),
        shared_layers=sum(section.data.stored for section in _shared_layers(record)), full_checkpoint=full,
        plain_sparse=k * (2 + 4) + plain["dense"] + plain["adapter"] + plain["head"],
        lora=4 * lora_parameters(base) + plain["head"] if base is not None and matches else None,
        lossy=_lossy(manifest), coding=_coding(manifest),
    )  # fmt: skip


def _lossy(manifest: Manifest) -> str | None:
    shown = [
        f"{'' if group == 'values' else f'{group} '}{lossy.rounding}, {lossy.relative_rms:.2%} rms"
        for group in GROUPS
        if (lossy := manifest.quantization.get(group))
    ]
    return "; ".join(shown) or None


def _coding(manifest: Manifest) -> str:
    """As `Hub.push` was told, which rounds values, dense tensors and adapter factors alike."""
    found = manifest.quantization
    names = [found[group].rounding for group in ("values", "dense", "adapter") if group in found][:1]
    return ", ".join(names + ([f"head {found['head'].rounding}"] if "head" in found else [])) or "exact"


def html(found: Report) -> str:
    """The report as one self-contained page."""
    head = ["version", "values", "dense", "adapter", "head", "record", "stored", "alone", "full checkpoint", "lossy"]
    tasks = [
        [t.version, t.values, t.dense, t.adapter, t.head, t.record, t.stored, t.alone, t.full_checkpoint, t.lossy]
        for t in found.tasks
    ]
    ways = [["this hub", found.total]] + [[peer.name, peer.total] for peer in found.peers]
    projected = [
        [p.tasks, *(round(value) for value in [*p.hub.values(), *p.peers.values()])] for p in found.projections
    ]
    names = [f"hub, {coding.name}" for coding in found.codings] + [peer.name for peer in found.peers]
    return (
        "<!doctype html><meta charset=utf-8><title>deltahub report</title>"
        "<style>body{font:15px system-ui;margin:2em}table{border-collapse:collapse;margin:1em 0}"
        "td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}"
        "td:first-child,th:first-child{text-align:left}</style>"
        f"<h1>deltahub report</h1><p>{len(found.tasks)} versions of {found.names} tasks, {found.total:,} bytes.</p>"
        + _table(head, tasks)
        + "<h2>Against other ways, in bytes</h2>"
        + _table(["way", "bytes"], ways)
        + "<h2>Projected, in bytes</h2>"
        + _table(["tasks", *names], projected)
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    top = "".join(f"<th>{escape(cell)}" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_html_cell(cell)}" for cell in row) for row in rows)
    return f"<table><tr>{top}{body}</table>"


def _html_cell(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else escape("-" if cell is None else str(cell))

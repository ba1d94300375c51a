"""What a delta says of itself: a frozen dataclass, and its one JSON form, read without trust."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from deltahub import formats
from deltahub.errors import ManifestError, UsageError
from deltahub.fields import digest_of, exactly, number_of, object_of, optional_text, part_of, text_of
from deltahub.names import KINDS, check_task
from deltahub.tensorfile import strict_json

FORMAT_VERSION = 2
"""The newest; a manifest is written in the lowest that can say it."""
ROUNDINGS = ("exact", "bf16", "int8", "int4")
"""What numbers may be rounded to, ascending by what is lost."""
REBUILDABLE = ("smallest-magnitude", "random")
_MAX_TEXT = 4 << 20
_MAX_LABELS = 100_000
_BITS = {"int8": 8, "int4": 4}
_ROUNDED_GROUPS = ("values", "dense", "adapter", "head")
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")

Scalar = str | int | float | bool | None
Plain = Scalar | list["Plain"] | dict[str, "Plain"]


@dataclass(frozen=True)
class BaseRef:
    """The base that a delta or mask belongs to; only the digest decides, the id tells people where to look."""

    digest: str
    id: str
    revision: str | None = None


@dataclass(frozen=True)
class MaskRef:
    """The mask that a delta's values are aligned to: k positions of n, and the recipe that rebuilds it."""

    digest: str
    k: int
    n: int
    recipe: Mapping[str, Plain]

    @property
    def rebuildable(self) -> bool:
        """Whether whoever has the base can make the positions again from the recipe."""
        return self.recipe.get("name") in REBUILDABLE


@dataclass(frozen=True)
class Quantization:
    """A rounding that made the tensors of a group what they are.

    Attributes:
        rounding: one of ROUNDINGS but ``exact``.
        group: numbers per scale; None for ``bf16``, which has no scales.
        max_error: largest distance that any number moved.
        relative_rms: root mean square of the moves over that of the numbers.
    """

    rounding: str
    group: int | None
    max_error: float
    relative_rms: float

    @property
    def bits(self) -> int | None:
        """Of a code: 8 or 4; None for ``bf16``, which has no codes."""
        return _BITS.get(self.rounding)


@dataclass(frozen=True)
class Manifest:
    """One task's manifest.

    Attributes:
        task: name in a hub, see `names.check_task`.
        kind: one of KINDS.
        base: the base that the values replace parameters of.
        mask: None where no parameter is replaced through a mask.
        labels: class names in the order of the head's outputs; empty where the kind has none.
        method: how it was made, ``{"name": "pafi", ...}`` with hyper-parameters.
        metrics: finite numbers by name, such as ``{"validation_accuracy": 0.91}``.
        inputs: what turns text into model input: ``max_length``, ``pooling``, ``normalize``, and the like.
        backbone_prefix: where the base's tensors live in the task model (``"bert."``), empty when it is the base.
        architecture: the task model's class name, for people and for a materialized config.
        licence: SPDX expression.
        created: UTC, ``YYYY-MM-DDTHH:MM:SSZ``.
        parent: the version that training started from, ``"task@3"``.
        quantization: by group of tensors (``values``, ``dense``, ``adapter``, ``head``), where some were rounded.
    """

    task: str
    kind: str
    base: BaseRef
    mask: MaskRef | None = None
    labels: tuple[str, ...] = ()
    method: Mapping[str, Plain] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    inputs: Mapping[str, Plain] = field(default_factory=dict)
    backbone_prefix: str = ""
    architecture: str | None = None
    licence: str | None = None
    created: str = "1970-01-01T00:00:00Z"
    parent: str | None = None
    quantization: Mapping[str, Quantization] = field(default_factory=dict)

    @property
    def format_version(self) -> int:
        """The lowest that can say it: version 1 knows of nothing rounded but values, to int8 or int4."""
        return (
            1 if all(name == "values" and lossy.bits for name, lossy in self.quantization.items()) else FORMAT_VERSION
        )

    @property
    def headline(self) -> dict[str, float]:
        """The two metrics that say most, for a line about the task: of its test rows, else of its validation rows."""

        def rank(name: str) -> int:
            ranks = {"test": 0, "validation": 1, "train": 3, "best": 3}
            return 4 if name.endswith("_rows") else ranks.get(name.partition("_")[0], 2)

        return {name: self.metrics[name] for name in sorted(self.metrics, key=lambda name: (rank(name), name))[:2]}

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no blanks, so that equal manifests are equal bytes.

        Raises:
            ManifestError: a number that is not finite, or text with half a surrogate pair.
        """
        document = {"format_version": self.format_version, **_plain(self)}
        if self.format_version == 1:
            document["quantization"] = _first_quantization(self.quantization.get("values"))
        try:
            text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
            text.encode()
        except ValueError as error:
            raise ManifestError("the manifest cannot be written", expected="finite numbers, text", got=error) from None
        return text

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Raises ManifestError unless it is complete and has no field more, NewerFormatError for a later version."""
        if len(text) > _MAX_TEXT:
            raise ManifestError("the manifest is too large", expected=f"at most {_MAX_TEXT} characters", got=len(text))
        document = strict_json(text, "the manifest")
        if not isinstance(document, dict):
            raise ManifestError("the manifest", expected="a JSON object", got=type(document).__name__)
        version = document.pop("format_version", None)
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            if type(version) is int and version > FORMAT_VERSION:
                raise formats.newer("the manifest", version, FORMAT_VERSION)
            raise ManifestError(
                "the manifest's format_version", expected=f"1 to {FORMAT_VERSION}", got=ascii(version)[:40]
            )
        found = _manifest(document, version)
        if found.format_version != version:
            raise ManifestError("the manifest's format_version", expected=found.format_version, got=version)
        return found


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _first_quantization(lossy: Quantization | None) -> dict[str, Plain] | None:
    """As version 1 says it."""
    if lossy is None:
        return None
    return {
        "bits": lossy.bits, "group": lossy.group, "max_error": lossy.max_error, "relative_rms": lossy.relative_rms,
    }  # fmt: skip


def _manifest(document: dict[str, Any], version: int) -> Manifest:
    exactly(document, Manifest, "the manifest")
    task = text_of(document, "task", 100)
    try:
        check_task(task)
    except UsageError as error:
        raise ManifestError(str(error)) from None
    created = text_of(document, "created", 20)
    if not _CREATED.fullmatch(created):
        raise ManifestError("created", expected="YYYY-MM-DDTHH:MM:SSZ", got=ascii(created))
    if document["kind"] not in KINDS:
        raise ManifestError("kind", expected=f"one of {', '.join(KINDS)}", got=ascii(document["kind"])[:60])
    labels = document["labels"]
    if (
        not isinstance(labels, list)
        or len(labels) > _MAX_LABELS
        or not all(isinstance(label, str) and len(label) <= 1000 for label in labels)
        or len(set(labels)) != len(labels)
    ):
        raise ManifestError("labels", expected=f"at most {_MAX_LABELS} different strings")
    return Manifest(
        task=task,
        kind=document["kind"],
        base=read_base(document["base"]),
        mask=None if document["mask"] is None else _mask(document["mask"]),
        labels=tuple(labels),
        method=object_of(document, "method"),
        metrics=_metrics(document["metrics"]),
        inputs=object_of(document, "inputs"),
        backbone_prefix=text_of(document, "backbone_prefix", 200),
        architecture=optional_text(document, "architecture", 200),
        licence=optional_text(document, "licence", 200),
        created=created,
        parent=optional_text(document, "parent", 120),
        quantization=(_read_first if version == 1 else _quantization)(document["quantization"]),
    )


def read_base(found: object) -> BaseRef:
    """Raises ManifestError unless ``found`` is an object of exactly digest, id and revision."""
    part = part_of(found, BaseRef, "base")
    return BaseRef(digest_of(part, "base"), text_of(part, "id", 1000), optional_text(part, "revision", 200))


def _mask(found: object) -> MaskRef:
    part = part_of(found, MaskRef, "mask")
    k, n = part["k"], part["n"]
    if type(k) is not int or type(n) is not int or not 0 < k <= n < 1 << 48:
        raise ManifestError("mask", expected="whole numbers 0 < k <= n < 2^48", got=f"k {k!r}, n {n!r}"[:60])
    return MaskRef(digest_of(part, "mask"), k, n, object_of(part, "recipe"))


def _read_first(found: object) -> dict[str, Quantization]:
    """As version 1 says it."""
    if found is None:
        return {}
    if not isinstance(found, dict) or set(found) != {"bits", "group", "max_error", "relative_rms"}:
        raise ManifestError("quantization", expected="exactly bits, group, max_error and relative_rms, or null")
    bits = found["bits"]
    if type(bits) is not int or bits not in (8, 4):
        raise ManifestError("quantization", expected="bits 8 or 4", got=ascii(bits)[:40])
    return {"values": _rounding(f"int{bits}", found)}


def _quantization(found: object) -> dict[str, Quantization]:
    if not isinstance(found, dict) or not set(found) <= set(_ROUNDED_GROUPS):
        raise ManifestError("quantization", expected=f"an object of {', '.join(_ROUNDED_GROUPS)}")
    parts = {name: part_of(item, Quantization, f"quantization.{name}") for name, item in found.items()}
    for part in parts.values():
        if part["rounding"] not in ROUNDINGS[1:]:
            raise ManifestError("rounding", expected=" or ".join(ROUNDINGS[1:]), got=ascii(part["rounding"])[:40])
    return {name: _rounding(part["rounding"], part) for name, part in parts.items()}


def _rounding(rounding: str, part: dict[str, Any]) -> Quantization:
    group = part["group"]
    fits = group is None if rounding == "bf16" else type(group) is int and 1 <= group <= 1 << 20
    if not fits:
        raise ManifestError(
            f"group of {rounding}", expected="null" if rounding == "bf16" else "1 to 2^20", got=ascii(group)[:40]
        )
    return Quantization(rounding, group, number_of(part, "max_error"), number_of(part, "relative_rms"))


def _metrics(found: object) -> dict[str, float]:
    if not isinstance(found, dict) or len(found) > 1000:
        raise ManifestError("metrics", expected="an object of at most 1000 numbers")
    return {name: number_of(found, name) for name in found}

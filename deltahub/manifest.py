"""What a delta says of itself: a frozen dataclass, and its one JSON form, read without trust."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from deltahub.digest import is_digest
from deltahub.errors import ManifestError, UsageError
from deltahub.names import KINDS, check_task
from deltahub.tensorfile import strict_json

FORMAT_VERSION = 1
REBUILDABLE = ("smallest-magnitude", "random")
_MAX_TEXT = 4 << 20
_MAX_LABELS = 100_000
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
    """A lossy coding that made the values what they are.

    Attributes:
        bits: 8 or 4.
        group: values per scale.
        max_error: largest distance that any value moved.
        relative_rms: root mean square of the moves over that of the values.
    """

    bits: int
    group: int
    max_error: float
    relative_rms: float


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
        quantization: present where values were coded with loss.
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
    quantization: Quantization | None = None

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no blanks, so that equal manifests are equal bytes.

        Raises:
            ManifestError: a number that is not finite, or text with half a surrogate pair.
        """
        document = {"format_version": FORMAT_VERSION, **_plain(self)}
        try:
            text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
            text.encode()
        except ValueError as error:
            raise ManifestError("the manifest cannot be written", expected="finite numbers, text", got=error) from None
        return text

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Raises ManifestError for anything but a manifest of this format version, complete and with no field more."""
        if len(text) > _MAX_TEXT:
            raise ManifestError("the manifest is too large", expected=f"at most {_MAX_TEXT} characters", got=len(text))
        document = strict_json(text, "the manifest")
        if not isinstance(document, dict):
            raise ManifestError("the manifest", expected="a JSON object", got=type(document).__name__)
        version = document.pop("format_version", None)
        if version != FORMAT_VERSION or type(version) is not int:
            raise ManifestError(
                "the manifest's format_version", expected=FORMAT_VERSION, got=version,
                hint="a newer deltahub wrote it: upgrade" if isinstance(version, int) else None,
            )  # fmt: skip
        return _manifest(document)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _manifest(document: dict[str, Any]) -> Manifest:
    _exactly(document, Manifest, "the manifest")
    task = _text(document, "task", 100)
    try:
        check_task(task)
    except UsageError as error:
        raise ManifestError(str(error)) from None
    created = _text(document, "created", 20)
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
        base=_base(document["base"]),
        mask=None if document["mask"] is None else _mask(document["mask"]),
        labels=tuple(labels),
        method=_object(document, "method"),
        metrics=_metrics(document["metrics"]),
        inputs=_object(document, "inputs"),
        backbone_prefix=_text(document, "backbone_prefix", 200),
        architecture=_optional(document, "architecture", 200),
        licence=_optional(document, "licence", 200),
        created=created,
        parent=_optional(document, "parent", 120),
        quantization=None if document["quantization"] is None else _quantization(document["quantization"]),
    )


def _base(found: object) -> BaseRef:
    part = _part(found, BaseRef, "base")
    return BaseRef(_digest(part, "base"), _text(part, "id", 1000), _optional(part, "revision", 200))


def _mask(found: object) -> MaskRef:
    part = _part(found, MaskRef, "mask")
    k, n = part["k"], part["n"]
    if type(k) is not int or type(n) is not int or not 0 < k <= n < 1 << 48:
        raise ManifestError("mask", expected="whole numbers 0 < k <= n < 2^48", got=f"k {k!r}, n {n!r}"[:60])
    return MaskRef(_digest(part, "mask"), k, n, _object(part, "recipe"))


def _quantization(found: object) -> Quantization:
    part = _part(found, Quantization, "quantization")
    bits, group = part["bits"], part["group"]
    if type(bits) is not int or bits not in (8, 4) or type(group) is not int or not 1 <= group <= 1 << 20:
        raise ManifestError("quantization", expected="bits 8 or 4 and a group of 1 to 2^20")
    return Quantization(bits, group, _number(part, "max_error"), _number(part, "relative_rms"))


def _metrics(found: object) -> dict[str, float]:
    if not isinstance(found, dict) or len(found) > 1000:
        raise ManifestError("metrics", expected="an object of at most 1000 numbers")
    return {name: _number(found, name) for name in found}


def _part(found: object, kind: type, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ManifestError(where, expected="an object", got=type(found).__name__)
    _exactly(found, kind, where)
    return found


def _exactly(found: dict[str, Any], kind: type, where: str) -> None:
    wanted = {item.name for item in fields(kind)}
    if missing := sorted(wanted - set(found)):
        raise ManifestError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(set(found) - wanted):
        raise ManifestError(
            f"{where} has unknown fields {ascii(unknown)[:120]}", hint="a newer deltahub may have made it"
        )


def _text(found: dict[str, Any], name: str, most: int) -> str:
    value = found[name]
    if not isinstance(value, str) or len(value) > most or "\0" in value:
        raise ManifestError(name, expected=f"a string of at most {most} characters", got=ascii(value)[:60])
    return value


def _optional(found: dict[str, Any], name: str, most: int) -> str | None:
    return None if found[name] is None else _text(found, name, most)


def _digest(found: dict[str, Any], where: str) -> str:
    if not is_digest(digest := found["digest"]):
        raise ManifestError(f"{where}.digest", expected="64 lower-case hex digits", got=ascii(digest)[:70])
    return digest


def _number(found: dict[str, Any], name: str) -> float:
    value = found[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ManifestError(name[:80], expected="a finite number", got=ascii(value)[:40])
    return value


def _object(found: dict[str, Any], name: str) -> dict[str, Plain]:
    value = found[name]
    if not isinstance(value, dict):
        raise ManifestError(name, expected="an object", got=type(value).__name__)
    return value

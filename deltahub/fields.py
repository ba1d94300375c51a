"""Fields of a manifest and of the objects in it, each read as what it must be; ManifestError says what else it is."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from deltahub.digest import is_digest
from deltahub.errors import ManifestError


def part_of(found: object, kind: type, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ManifestError(where, expected="an object", got=type(found).__name__)
    exactly(found, kind, where)
    return found


def exactly(found: dict[str, Any], kind: type, where: str) -> None:
    wanted = {item.name for item in fields(kind)}
    if missing := sorted(wanted - set(found)):
        raise ManifestError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(set(found) - wanted):
        raise ManifestError(
            f"{where} has unknown fields {ascii(unknown)[:120]}", hint="a newer deltahub may have made it"
        )


def text_of(found: dict[str, Any], name: str, most: int) -> str:
    value = found[name]
    if not isinstance(value, str) or len(value) > most or "\0" in value:
        raise ManifestError(name, expected=f"a string of at most {most} characters", got=ascii(value)[:60])
    return value


def optional_text(found: dict[str, Any], name: str, most: int) -> str | None:
    return None if found[name] is None else text_of(found, name, most)


def digest_of(found: dict[str, Any], where: str) -> str:
    if not is_digest(value := found["digest"]):
        raise ManifestError(f"{where}.digest", expected="64 lower-case hex digits", got=ascii(value)[:70])
    return value


def number_of(found: dict[str, Any], name: str) -> float:
    value = found[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ManifestError(name[:80], expected="a finite number", got=ascii(value)[:40])
    return value


def object_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    value = found[name]
    if not isinstance(value, dict):
        raise ManifestError(name, expected="an object", got=type(value).__name__)
    return value

"""SHA-256 digests of bytes, files and streams, always written as 64 lower-case hex digits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeGuard

from deltahub.errors import IntegrityError

BytesLike = bytes | bytearray | memoryview

_CHUNK = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")


def is_digest(text: object) -> TypeGuard[str]:
    return isinstance(text, str) and _HEX.fullmatch(text) is not None


def of_bytes(*parts: BytesLike) -> str:
    """Digest of the concatenation of ``parts``."""
    return of_stream(parts)


def of_stream(parts: Iterable[BytesLike]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()


def of_file(path: Path) -> str:
    sha = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            sha.update(buffer[:size])
    return sha.hexdigest()


def check(what: str, expected: str, got: str) -> None:
    """Raises IntegrityError unless both digests are equal; ``what`` names the thing in the message."""
    if got != expected:
        raise IntegrityError(
            f"{what} is damaged",
            expected=f"sha256 {expected[:16]}",
            got=f"sha256 {got[:16]}",
            hint="fetch it again from where it came",
        )

"""JSON documents as a hub writes them: canonical bytes, with a checksum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deltahub import digest, formats
from deltahub.errors import FormatError, IntegrityError
from deltahub.tensorfile import strict_json


def seal(document: Mapping[str, Any]) -> bytes:
    """Canonical ASCII JSON with ``check``, the sha256 of the same without it: one flipped byte anywhere is seen."""
    return _canonical({**document, "check": digest.of_bytes(_canonical(document))})


def unseal(data: bytes, what: str, names: str, *, newest: int | None = None) -> dict[str, Any]:
    """The fields of a sealed document, which must be exactly ``names``.

    Args:
        newest: where given, ``format_version`` must be there too, from 1 to this.

    Raises:
        FormatError: it is not such a document, or (NewerFormatError) one that a later deltahub wrote.
        IntegrityError: its checksum is wrong, or its bytes are not canonical.
    """
    document = strict_json(data, what)
    if not isinstance(document, dict):
        raise FormatError(what, expected="a JSON object", got=type(document).__name__)
    document.pop("check", None)
    try:
        sealed = seal(document)
    except RecursionError:  # nested just within the reader's limit
        raise FormatError(what, expected="few levels") from None
    if sealed != data:
        raise IntegrityError(f"{what} is damaged", hint="its checksum is wrong; restore the file, or remove what it is")
    wanted = set(names.split())
    if newest is not None:
        version, wanted = document.get("format_version"), wanted | {"format_version"}
        if type(version) is not int or not 1 <= version <= newest:
            if type(version) is int and version > newest:
                raise formats.newer(what, version, newest)
            raise FormatError(f"format_version of {what}", expected=f"1 to {newest}", got=repr(version)[:40])
    if set(document) != wanted:
        raise FormatError(f"fields of {what}", expected=names, got=ascii(sorted(document))[:120])
    return document


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

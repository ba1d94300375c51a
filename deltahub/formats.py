"""What a newer deltahub wrote, told apart from damage."""

from __future__ import annotations

from deltahub.errors import FormatError, NewerFormatError
from deltahub.tensorfile import strict_json


def newer(what: str, found: int, newest: int) -> NewerFormatError:
    """The error for ``what`` in format ``found``, which is above the ``newest`` that is known here."""
    known = f"1 to {newest}" if newest > 1 else "1"
    return NewerFormatError(f"{what} has format {found}, this deltahub reads {known}", hint="upgrade deltahub")


def check_head(data: bytes, head: bytes, url: str) -> None:
    """Raises FormatError unless ``data``, the hub.json of the hub at ``url``, is ``head``."""
    if data == head:
        return
    try:
        document = strict_json(data, "hub.json")
    except FormatError:
        document = None
    match document:
        case {"format": "deltahub", "format_version": version} if type(version) is int and version > 1:
            raise newer(f"the hub at {url}", version, 1)
    raise FormatError(
        f"hub.json at {url} is damaged", expected=head.decode(), got=ascii(data[:80]),
        hint="write these very bytes into it again, then run `deltahub verify`",
    )  # fmt: skip

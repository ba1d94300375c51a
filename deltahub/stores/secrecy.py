"""Keeping secrets out of messages."""

from __future__ import annotations

import re

_USER = re.compile(r"//[^/\s]*@")
_QUERY = re.compile(r"(?<=[\w/])\?[\w.-]+=[^\s'\")]*")


def masked(text: str) -> str:
    """``text`` without what may be secret in a URL: user and password, and the query."""
    return _QUERY.sub("?***", _USER.sub("//***@", text))

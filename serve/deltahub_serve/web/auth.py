"""Keys: who may ask, and who may change what is served."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from deltahub_serve.web.errors import Fault, fault_response
from deltahub_serve.web.paths import route_path

_OPEN = ("/", "", "/health")


class Keys:
    """ASGI middleware that turns away whoever has no key, before anything of the request is read.

    Args:
        api_keys, admin_keys: sha256 of each key, in hex. Without an API key everybody may ask; without an admin key
            nobody may use the admin routes. An admin key may ask, too.
    """

    def __init__(self, app: ASGIApp, api_keys: Sequence[str], admin_keys: Sequence[str]) -> None:
        self.app = app
        self._admin = tuple(key.encode() for key in admin_keys)
        self._any = tuple(key.encode() for key in api_keys) + self._admin
        self._ask_freely = not api_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._fault(scope) if scope["type"] == "http" else None
        if fault is None:
            await self.app(scope, receive, send)
        else:
            await fault_response(scope, fault)(scope, receive, send)

    def _fault(self, scope: Scope) -> Fault | None:
        path = route_path(scope)
        admin = path == "/admin" or path.startswith("/admin/")
        if admin and not self._admin:
            return Fault(
                "forbidden", "the admin routes are shut, as no admin key is configured; start the server with one"
            )
        if not admin and (self._ask_freely or path in _OPEN):
            return None
        key = _bearer(scope)
        if key is None:
            return _unauthorized("expected one header 'Authorization: Bearer KEY'")
        if _known(key, self._admin if admin else self._any):
            return None
        if admin and _known(key, self._any):
            return Fault("forbidden", "the admin routes take an admin key, which this is not")
        return _unauthorized("the key is not one of this server's")


def _bearer(scope: Scope) -> bytes | None:
    """The key in the only Authorization header."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) != 1:
        return None
    scheme, _, key = found[0].partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" and key.strip() else None


def _known(key: bytes, hashed: Sequence[bytes]) -> bool:
    """Takes as long whichever of ``hashed`` it is, and where it is none."""
    mine = hashlib.sha256(key).hexdigest().encode()
    return sum(hmac.compare_digest(mine, other) for other in hashed) > 0


def _unauthorized(message: str) -> Fault:
    return Fault("unauthorized", message, headers={"www-authenticate": 'Bearer realm="deltahub"'})

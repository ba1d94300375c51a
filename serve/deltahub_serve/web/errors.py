"""What went wrong, in the words of the API that was asked: ours, OpenAI's, or Text Embeddings Inference's (TEI)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from deltahub_serve.questions import Refusal
from deltahub_serve.web.paths import route_path
from deltahub_serve.web.writing import json_response

NATIVE, OPENAI, TEI = "native", "openai", "tei"


@dataclass(frozen=True)
class Manner:
    """How a reason is told.

    Attributes:
        native, openai, tei: the status of each family.
        openai_type, tei_type: what they call it.
    """

    native: int
    openai: int
    tei: int
    openai_type: str
    tei_type: str


MANNERS: Mapping[str, Manner] = {
    "unknown": Manner(404, 404, 404, "invalid_request_error", "Validation"),
    "kind": Manner(400, 400, 400, "invalid_request_error", "Validation"),
    "invalid": Manner(400, 400, 422, "invalid_request_error", "Validation"),
    "too_long": Manner(413, 400, 413, "invalid_request_error", "Validation"),
    "too_many": Manner(413, 400, 413, "invalid_request_error", "Validation"),
    "unusable": Manner(424, 424, 424, "server_error", "Backend"),
    "overloaded": Manner(429, 429, 429, "rate_limit_error", "Overloaded"),
    "timeout": Manner(408, 408, 408, "timeout_error", "Backend"),
    "unavailable": Manner(503, 503, 503, "server_error", "Unhealthy"),
    "failed": Manner(500, 500, 424, "server_error", "Backend"),
    "malformed": Manner(400, 400, 400, "invalid_request_error", "Validation"),
    "media_type": Manner(415, 415, 415, "invalid_request_error", "Validation"),
    "too_large": Manner(413, 413, 413, "invalid_request_error", "Validation"),
    "too_slow": Manner(408, 408, 408, "timeout_error", "Validation"),
    "no_route": Manner(404, 404, 404, "invalid_request_error", "Validation"),
    "no_method": Manner(405, 405, 405, "invalid_request_error", "Validation"),
    "unauthorized": Manner(401, 401, 401, "authentication_error", "Validation"),
    "forbidden": Manner(403, 403, 403, "permission_error", "Validation"),
    "internal": Manner(500, 500, 500, "server_error", "Backend"),
    "gone": Manner(499, 499, 499, "invalid_request_error", "Validation"),
}
"""The reasons of a `Refusal`, then those of the web application itself; 499 is for logs, as nobody is there to read."""

_OPENAI_CODES = {
    "unknown": "model_not_found", "too_long": "context_length_exceeded", "overloaded": "rate_limit_exceeded",
    "unauthorized": "invalid_api_key",
}  # fmt: skip
_TEI_ROUTES = ("/predict", "/embed", "/token-classify", "/info")


class Fault(Exception):
    """An answer other than the one that was hoped for.

    Args:
        reason: one of MANNERS.
        message: one line: expected, found, what to do next.
        param: the field of the request that is meant.
        retry_after: seconds after which the same request may be answered.
        near: names of tasks like the one that was not found.
        headers: more of them, such as ``Allow``.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        near: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.near = tuple(near)
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, refusal: Refusal) -> Fault:
        param = "model" if refusal.reason in ("unknown", "kind", "unusable") else None
        return cls(refusal.reason, refusal.message, param=param, retry_after=refusal.retry_after, near=refusal.near)


def family_of(path: str) -> str:
    """Whose words are used for a path."""
    if path in ("/classify", "/v1") or path.startswith("/v1/"):
        return OPENAI
    return TEI if path in _TEI_ROUTES else NATIVE


def fault_response(scope: Mapping[str, Any], fault: Fault) -> Response:
    """The fault in the words of the family that ``scope`` belongs to."""
    family = family_of(route_path(scope))
    manner = MANNERS[fault.reason]
    if family == OPENAI:
        code = _OPENAI_CODES.get(fault.reason, fault.reason)
        content: dict[str, Any] = {
            "error": {"message": _told(fault), "type": manner.openai_type, "param": fault.param, "code": code}
        }
    elif family == TEI:
        content = {"error": _told(fault), "error_type": manner.tei_type}
    else:
        content = {
            "error": {
                "reason": fault.reason, "message": fault.message, "near": list(fault.near),
                "retry_after": fault.retry_after,
            }
        }  # fmt: skip
    headers = dict(fault.headers)
    if fault.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(fault.retry_after)))
    return json_response(content, status={NATIVE: manner.native, OPENAI: manner.openai, TEI: manner.tei}[family],
                         headers=headers)  # fmt: skip


def _told(fault: Fault) -> str:
    """The message, with the near names where it does not say them itself."""
    if not fault.near or any(name in fault.message for name in fault.near):
        return fault.message
    return f"{fault.message}; did you mean {', '.join(fault.near)}?"

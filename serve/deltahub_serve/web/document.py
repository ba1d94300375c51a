"""The OpenAPI document: what FastAPI writes of itself, and the keys."""

from __future__ import annotations

from typing import Any

from deltahub_serve.config import Config


def describe(document: dict[str, Any], config: Config) -> dict[str, Any]:
    """Adds which routes need which key."""
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "one of the server's API keys"},
        "admin": {"type": "http", "scheme": "bearer", "description": "one of the server's admin keys"},
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path.startswith("/admin/"):
                operation["security"] = [{"admin": []}]
            elif config.api_keys and path not in ("/", "/health"):
                operation["security"] = [{"key": []}, {"admin": []}]
    return document
